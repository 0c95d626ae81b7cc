"""Times the block sizes of the Triton kernels on this GPU; `apply` writes the faster ones into the table.

A row of `kernels/tuning.py` is found by calling an op and seeing which rows it asks for. A candidate
counts only if its results are those of the shipped sizes to the last few bits, twice alike, and if it
spills no register; it replaces what is shipped only where it is faster by more than the noise. The hot
path reads the table and never tunes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from .. import gate, run, timing
from ..case import Case, Failed, Skipped, off
from ..rows import Row, every_row
from .cases import Options

# A winner is faster than what is shipped by this much: below, the next run could say otherwise.
GAIN = 0.03
# Largest relative difference from the shipped sizes' results: the same sums in another order, rounded
# to the dtype of the output.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
OPEN = "# --- measured: written by `python -m benchmarks.gpu apply-tuning`, do not edit ---"
CLOSE = "# --- end of measured ---"
Key = tuple[Any, ...]
Results = Mapping[str, torch.Tensor]


def tables() -> Any:
    return import_module("colaworld.kernels.tuning")


@contextlib.contextmanager
def asked() -> Iterator[dict[tuple[str, Key], Any]]:
    """Within the block: which rows of which tables are asked for, and what they hold."""
    module, seen = tables(), {}
    names = {id(t): n for n, t in vars(module).items() if isinstance(t, dict) and n.isupper()}
    pick = module.pick

    def watched(table: Mapping, arch: int | None, *key: Any) -> Any:
        found = pick(table, arch, *key)
        seen.setdefault((names[id(table)], (arch, *key)), found)
        return found

    with mock.patch.object(module, "pick", watched):
        yield seen


@contextlib.contextmanager
def tried(table: str, key: Key, blocks: Any) -> Iterator[None]:
    """Within the block kernels take `blocks` in the place of a row."""
    with mock.patch.dict(getattr(tables(), table), {key: blocks}):
        yield


def candidates(shipped: Any) -> list[Any]:
    """Rows to try beside the one that is shipped: one number changed at a time."""
    warps = [w for w in (1, 2, 4, 8, 16) if w / 4 <= shipped.num_warps <= w * 4]
    changes = {"num_warps": warps, "num_stages": (1, 2, 3, 4) if shipped.num_stages > 1 else ()}
    changes |= {"BN": (16, 32, 64, 128), "BK": (32, 64, 128)}
    each = [(name, value) for name, values in changes.items() for value in values]
    each = [(name, value) for name, value in each if getattr(shipped, name, value) != value]
    return [dataclasses.replace(shipped, **{name: value}) for name, value in each]


def of_cases(cases: Iterable[Case], options: Options) -> Iterator[Row | Skipped | Failed]:
    """A row for every candidate of every row of the tables that these cases ask for, once."""
    done: set[tuple[str, Key]] = set()
    for case in cases:
        if late := options.late(5):
            yield Skipped(f"tune/{case.label}", late)
            continue
        try:
            call = case.providers["triton"]()[0]
            with asked() as seen:
                call()
            for (table, key), shipped in seen.items():
                if (table, key) not in done:
                    done.add((table, key))
                    yield from of_row(case, call, table, key, shipped, options)
        except Exception as error:  # of one op: the others are tuned
            yield Skipped(f"tune/{case.label}", run.one_line(error))
        finally:
            case.close()


def of_row(
    case: Case,
    call: Callable[[], Results],
    table: str,
    key: Key,
    shipped: Any,
    options: Options,
    *,
    spilled: Callable[[str, set[int]], int] | None = None,
    timed: Callable[..., Mapping[str, timing.Times]] = timing.interleaved,
) -> Iterator[Row | Skipped | Failed]:
    """A row for every candidate that is right; the field `chosen` marks the fastest one."""
    exact = {name: result.detach().clone() for name, result in call().items()}
    ways, replays = {"shipped": shipped}, {"shipped": [timing.captured([call])]}
    for blocks in candidates(shipped):
        name = described(blocks)
        label, before = f"tune/{table}/{key}/{name}", set(kernels_of(table))
        try:
            with tried(table, key, blocks):
                fault = differs(call(), exact) or differs(call(), exact)
                spills = (spilled or spills_since)(table, before)
                if not fault and not spills:
                    replays[name] = [timing.captured([call])]
                    ways[name] = blocks
        except Exception as error:  # a tile that does not fit is a reason not to choose it
            yield Skipped(label, run.one_line(error))
            continue
        if fault:
            yield Failed(label, fault)
        elif spills:
            yield Skipped(label, f"it spills {spills} registers")
    times = timed(replays, samples=options.samples, device=options.device)
    best = winner(times)
    shape = f"{table} {' '.join(map(str, key))}"
    own = dataclasses.replace(case, suite="gpu", op="tune", shape=shape, bytes_moved=None)
    for name, found in times.items():
        blocks = ways[name]
        more = {"table": table, "key": list(key), "kind": type(blocks).__name__}
        more |= {"blocks": described(blocks), "measured_on": case.label, "chosen": name == best}
        yield run.row(own, name, found, options.device, **more)


def winner(times: Mapping[str, timing.Times]) -> str:
    """The fastest name; "shipped" unless another is faster by more than GAIN and beyond noise."""
    best = min(times, key=lambda name: times[name][1])
    shipped = times["shipped"]
    clear = times[best][1] <= (1 - GAIN) * shipped[1] and times[best][2] < shipped[0]
    return best if clear else "shipped"


def described(blocks: Any) -> str:
    """Every number of a row that is not its reason: "num_warps=4 num_stages=1"."""
    return " ".join(f"{name}={value}" for name, value in vars(blocks).items() if name != "reason")


def differs(found: Results, exact: Results) -> str | None:
    """The first result that is not what the shipped sizes give."""
    for name, theirs in exact.items():
        ours = found[name]
        if not ours.is_floating_point():
            # Which entry is nearest may change only between equals: a share that is one of rounding.
            share = (ours != theirs).double().mean().item()
            if share > 1e-4:
                return f"{name}: {share:.1%} of the indices differ"
            continue
        if fault := off(name, ours, theirs, BOUNDS[ours.dtype]):
            return fault
    return None


def kernels_of(table: str) -> dict[int, Any]:
    """What Triton has compiled so far of the file that a table belongs to, by identity."""
    found = {}
    for function in vars(import_module(f"colaworld.kernels.{table.lower()}")).values():
        for caches in getattr(function, "device_caches", {}).values():
            found |= {id(kernel): kernel for kernel in caches[0].values()}
    return found


def spills_since(table: str, before: set[int]) -> int:
    """The largest number of spilled registers of a kernel that is new since `before`."""
    new = (kernel for name, kernel in kernels_of(table).items() if name not in before)
    return max((int(getattr(kernel, "n_spills", 0) or 0) for kernel in new), default=0)


# --- home into kernels/tuning.py --------------------------------------------------------------------


def section(found: Iterable[Row]) -> str:
    """The generated lines of `tuning.py`: one statement for each row whose winner was not shipped."""
    rows = sorted(found, key=lambda row: row["shape"])
    shipped = {row["shape"]: row["p50_ms"] for row in rows if row["impl"] == "shipped"}
    lines = []
    for best in (row for row in rows if row["chosen"] and row["impl"] != "shipped"):
        now, before = 1e3 * best["p50_ms"], 1e3 * shipped[best["shape"]]
        key = json.dumps(best["key"])[1:-1]
        lines += [f"# {best['measured_on']}; {best['device']}, torch {best['versions']['torch']}"]
        lines += [f"{best['table']}[{key}] = {best['kind']}("]
        lines += [f"    {part}," for part in best["blocks"].split()]
        lines += [f'    reason="measured: {now:.3g} us, {before:.3g} before",', ")"]
    nothing = "# Nothing was faster than what is above, or nothing was measured."
    return "\n".join([OPEN, *(lines or [nothing]), CLOSE])


def rewrite(text: str, made: str) -> str:
    """The text of `tuning.py` with another generated section. ValueError where it has none."""
    whole = re.compile(f"{re.escape(OPEN)}.*?{re.escape(CLOSE)}", re.DOTALL)
    if not whole.search(text):
        raise ValueError(f"tuning.py: expected a section from {OPEN!r} to {CLOSE!r}, found none")
    return whole.sub(lambda _: made, text, count=1)


def apply(folder: Path, table: Path | None = None) -> str:
    """Write the winners among the rows of a run into kernels/tuning.py; says what was done.

    Raises ValueError where there are no such rows, no checkout, or no section to write.
    """
    found = [row for row in every_row(folder) if row["op"] == "tune"]
    root = gate.repository()
    table = table or (None if root is None else root / "kernels" / "tuning.py")
    if not found or table is None:
        wanted = "expected rows of the stage tune and a checkout"
        raise ValueError(f"apply-tuning: {wanted}, got {folder}")
    text = rewrite(table.read_text(), section(found))
    compile(text, str(table), "exec")  # never leave a file behind that cannot be imported
    table.write_text(text)
    count = sum(row["chosen"] and row["impl"] != "shipped" for row in found)
    said = f"{table.name}: {count} rows of {len({row['shape'] for row in found})} are new"
    return f"{said}; then: python tests/cuda_check --write"
