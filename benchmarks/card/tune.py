"""Times the block sizes of the Triton kernels on this card and writes the faster ones into the table.

    python -m colaworld.benchmarks.card.tune --out tune.json --seconds 80 --write

A candidate counts only if its results are those of the shipped sizes to the last few bits, twice alike,
and if it spills no register; it replaces what is shipped only where it is faster by more than the noise.
The hot path reads `kernels/tuning.py` and never tunes. Not here: which rows there are (`places.py`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .. import gate, timing
from ..case import Skipped
from ..timing import Times
from . import stage
from .places import Outputs, Place, places
from .stage import Asked, Found, Point, Wrong

# A winner is faster than what is shipped by this much: below, the next run could say otherwise.
GAIN = 0.03
# Largest relative difference from the shipped sizes' results: the same sums in another order, rounded
# to the dtype of the output.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
OPEN = "# --- measured: written by benchmarks/card/tune.py, do not edit ---"
CLOSE = "# --- end of measured ---"

Timed = Callable[[Mapping[str, Any]], Mapping[str, Times]]
Spills = Callable[[Place, Collection[int]], int]


def points(asked: Asked) -> Iterable[Point]:
    arch = architecture(asked.device)
    for place in places():
        # A compilation of each candidate, and a few milliseconds.
        seconds = 1.0 + 0.8 * len(place.candidates)
        yield Point(place.label, lambda place=place: rows(place, arch, asked), seconds)


def architecture(device: str) -> int:
    """80, 90, 100 ..."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@contextlib.contextmanager
def tried(place: Place, arch: int | None, blocks: Any) -> Iterator[None]:
    """Within the block the kernels of this place take `blocks`."""
    table = getattr(import_module("colaworld.kernels.tuning"), place.table)
    key = (arch, *place.key)
    before = table.get(key)
    table[key] = blocks
    try:
        yield
    finally:
        if before is None:
            del table[key]
        else:
            table[key] = before


def rows(
    place: Place,
    arch: int | None,
    asked: Asked,
    *,
    timed: Timed | None = None,
    spills: Spills | None = None,
) -> Iterator[Found]:
    """A row for every candidate that is right; the field `chosen` marks the fastest one.

    `timed` and `spills` stand in for the clock and the compiler (tests).
    """
    tuning = import_module("colaworld.kernels.tuning")
    shipped = tuning.pick(getattr(tuning, place.table), arch, *place.key)
    call = place.prepare(asked.device)
    exact = [out.clone() for out in call()]
    ways = {"shipped": shipped}
    for blocks in place.candidates:
        name = described(blocks)
        if name == described(shipped):
            continue
        label, before = f"{place.label}/{name}", kernels_of(place)
        try:
            with tried(place, arch, blocks):
                fault = differs(call(), exact) or differs(call(), exact)
                spills_now = (spills or spilled)(place, before)
        except Exception as error:  # a tile that does not fit is a reason not to choose it
            yield Skipped(label, stage.first_line(error))
            continue
        if fault:
            yield Wrong(label, fault)
        elif spills_now:
            yield Skipped(label, f"it spills {spills_now} registers")
        else:
            ways[name] = blocks

    def within(blocks: Any) -> Callable[[], None]:
        def run() -> None:
            with tried(place, arch, blocks):
                call()

        return run

    calls = {name: [within(blocks)] for name, blocks in ways.items()}
    times = (
        timed(calls)
        if timed
        else timing.interleaved(calls, samples=asked.samples, device=asked.device)
    )
    best = winner(times)
    for name, found in times.items():
        yield stage.row(
            "card",
            "tune",
            name,
            shape=place.label,
            sizes={},
            dtype="",
            mode=place.key[0] if place.key[0] in ("forward", "backward") else "forward",
            times=found,
            arch=arch,
            table=place.table,
            key=list(place.key),
            blocks=described(ways[name]),
            chosen=name == best,
        )


def winner(times: Mapping[str, Times]) -> str:
    """The fastest name; "shipped" unless another is faster by more than GAIN and beyond noise."""
    best = min(times, key=lambda name: times[name][1])
    shipped = times["shipped"]
    clear = times[best][1] <= (1 - GAIN) * shipped[1] and times[best][2] < shipped[0]
    return best if clear else "shipped"


def described(blocks: Any) -> str:
    """Every number of a row that is not its reason: "num_warps=4 num_stages=1"."""
    return " ".join(f"{name}={value}" for name, value in _numbers(blocks).items())


def _numbers(blocks: Any) -> dict[str, int]:
    return {name: value for name, value in vars(blocks).items() if name != "reason"}


def differs(found: Outputs, exact: Outputs) -> str | None:
    """The first output that is not what the shipped sizes give."""
    for place, (ours, theirs) in enumerate(zip(found, exact, strict=True)):
        if ours is None or not ours.numel():
            continue
        if not ours.is_floating_point():
            # Which entry is nearest may change only between equals: a share that is one of rounding.
            share = (ours != theirs).double().mean().item()
            if share > 1e-4:
                return f"output {place}: {share:.1%} of the indices differ"
            continue
        size = theirs.double().norm().item()
        gap = (ours.double() - theirs.double()).norm().item() / (size or 1)
        if not gap <= BOUNDS[ours.dtype]:
            return f"output {place} is off by {gap:.2e}, expected at most {BOUNDS[ours.dtype]:.2e}"
    return None


def kernels_of(place: Place) -> dict[int, Any]:
    """What Triton has compiled so far of the file that a place belongs to, by identity."""
    module = import_module(f"colaworld.kernels.{place.table.lower()}")
    found = {}
    for function in vars(module).values():
        for caches in getattr(function, "device_caches", {}).values():
            found |= {id(kernel): kernel for kernel in caches[0].values()}
    return found


def spilled(place: Place, before: Collection[int]) -> int:
    """The largest number of spilled registers of a kernel that is new since `before`."""
    new = (kernel for name, kernel in kernels_of(place).items() if name not in before)
    return max((int(getattr(kernel, "n_spills", 0) or 0) for kernel in new), default=0)


def section(rows_: Iterable[Mapping[str, Any]], device: str, versions: Mapping[str, str]) -> str:
    """The generated lines of `tuning.py`: one statement for each place whose winner was not shipped."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows_:
        groups.setdefault((row["table"], row["arch"], *row["key"]), []).append(row)
    lines = [OPEN]
    for (table, *key), group in sorted(groups.items(), key=lambda item: repr(item[0])):
        best = next(row for row in group if row["chosen"])
        if best["impl"] == "shipped":
            continue
        old = next(row for row in group if row["impl"] == "shipped")
        kind = "Tile" if table == "VECTOR_QUANTIZE" else "Blocks"
        place = ", ".join(f'"{part}"' if isinstance(part, str) else str(part) for part in key)
        why = f"{best['p50_ms'] * 1e3:.3g} us, {old['p50_ms'] * 1e3:.3g} before"
        where = f"{best['shape']}; {device}, torch {versions.get('torch', '?')}"
        lines.append(f"# {where}")
        lines.append(f"{table}[{place}] = {kind}(")
        lines += [f"    {part}," for part in best["blocks"].split()]
        lines += [f'    reason="measured: {why}",', ")"]
    if len(lines) == 1:
        lines.append("# Nothing was faster than what is above, or nothing was measured.")
    return "\n".join([*lines, CLOSE])


def rewrite(text: str, made: str) -> str:
    """The text of `tuning.py` with another generated section. ValueError where it has none."""
    before, found, rest = text.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not found or not closed:
        raise ValueError(f"tuning.py: expected a section from {OPEN!r} to {CLOSE!r}, found none")
    return before + made + after


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    write = "--write" in argv
    code = stage.main(points, __doc__, [a for a in argv if a != "--write"])
    if not write or code == 2:
        return code
    from .. import rows as files

    out = Path(argv[argv.index("--out") + 1])
    table = tables()
    if not out.is_file() or table is None:
        print("tune: no rows, or no checkout whose table could be written")
        return 1
    kept = files.read(out)
    made = section(kept, kept[0]["device"], kept[0]["versions"])
    text = rewrite(table.read_text(), made)
    compile(text, str(table), "exec")  # never leave a file behind that cannot be imported
    table.write_text(text)
    print(f"written: {table.name}; then: python -m colaworld.benchmarks.resources --write")
    return code


def tables() -> Path | None:
    """kernels/tuning.py of the checkout; None where the package was installed."""
    root = gate.repository()
    return None if root is None else root / "kernels" / "tuning.py"


if __name__ == "__main__":
    sys.exit(main())
