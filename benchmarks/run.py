"""The order of things: which cases, are they right, how long do they take, what becomes a row.

    listed --> green? (gate) --> right? (judge) --> peak memory --> times in turns --> rows

Not here: what is timed (the suites), how results are shown (table.py, plots.py).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import gate, machine, timing
from .case import SUITES, Case, Skipped, Unavailable, Wish
from .rows import FIELDS, Row

# A wrong result of these stops the run; a wrong result of anybody else leaves its row out.
OURS = ("eager", "cpu", "triton", "cuda", "default", "default+compile")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """Rows, and what was asked for without one."""

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]


def listed(
    suites: Sequence[str], wish: Wish, *, only: Sequence[str] = ()
) -> tuple[list[Case], list[Skipped]]:
    """The cases of the suites whose label (op/shape/dtype/mode) holds one of `only`.

    Nothing is built yet. Heavy cases are in only where `only` names their shape. Raises ValueError
    where nothing is left.
    """
    cases: list[Case] = []
    skipped: list[Skipped] = []
    known: list[str] = []
    for suite in suites:
        if suite not in SUITES:
            raise ValueError(f"no suite {suite!r}; expected some of {', '.join(SUITES)}")
        for case in importlib.import_module(f".{suite}", __package__).cases(wish):
            known.append(case.label)
            if only and not any(part in case.label for part in only):
                continue
            if isinstance(case, Skipped):
                skipped.append(case)
            elif case.heavy and not any(part in case.shape for part in only):
                skipped.append(Skipped(case.label, f"too long for every run: --only {case.shape}"))
            else:
                cases.append(case)
    if not cases and not skipped:
        raise ValueError(
            f"--only {' '.join(only)}: names nothing; labels are op/shape/dtype/mode: "
            + ", ".join(dict.fromkeys(known))
        )
    return cases, skipped


def run(
    suites: Sequence[str],
    wish: Wish,
    *,
    only: Sequence[str] = (),
    impls: Sequence[str] = (),
    say: Say = lambda _: None,
    told: Callable[[int, int, str], None] = lambda *_: None,
) -> Measured:
    """Measure everything that is asked for. Raises gate.Red where tests or results are wrong."""
    cases, skipped = listed(suites, wish, only=only)
    names = sorted({name for case in cases for name in case.providers})
    if impls and not set(impls) & set(names):  # one that is known but unavailable is told below
        raise ValueError(f"--impl {' '.join(impls)}: nobody of that name; have {', '.join(names)}")
    for tests in dict.fromkeys(case.tests for case in cases):
        say(f"gate: running {' '.join(tests)}")
        say(f"gate: {gate.require_green(tests)}")
    stamp = machine.stamp(wish.device)
    rows: list[Row] = []
    for dtype in wish.dtypes:
        for row in machine.roofs(wish.device, dtype, samples=wish.samples):
            rows.append(ordered(row | stamp))
    products = {row["dtype"]: row["tflops"] for row in rows if row["op"] == "matmul"}
    cases, _ = listed(suites, replace(wish, measured_tflops=products), only=only)
    for number, case in enumerate(cases):
        told(number, len(cases), case.label)
        measured = measure(case, wish, impls=impls)
        rows += [ordered(row | stamp) for row in measured.rows]
        skipped += measured.skipped
    told(len(cases), len(cases), "done")
    return Measured(tuple(rows), tuple(skipped))


def ready(
    case: Case, impls: Sequence[str] = ()
) -> Iterator[tuple[str, Sequence[Callable[[], object]] | Skipped]]:
    """Each implementation's calls once its results were judged, or why it has none.

    Raises gate.Red where one of ours is wrong.
    """
    torch._dynamo.reset()  # compilations of the case before count against a limit
    for name, provider in case.providers.items():
        if impls and name not in impls:
            continue
        label = f"{case.label}/{name}"
        try:
            fault = case.judge(name) if case.judge else None
            if fault is None:
                yield name, provider()
                continue
        except Unavailable as reason:
            yield name, Skipped(label, str(reason))
            continue
        if name in OURS:
            raise gate.Red(f"{label}: {fault}; so no times")
        yield name, Skipped(label, f"its results are wrong: {fault}")


def measure(case: Case, wish: Wish, *, impls: Sequence[str] = ()) -> Measured:
    """The rows of one case, without the fields that all rows of a run share."""
    calls, skipped = {}, []
    try:
        for name, found in ready(case, impls):
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                calls[name] = found
        if not calls:
            return Measured((), tuple(skipped))
        for turns in calls.values():
            turns[0]()  # compiled and warm before memory is looked at
        peaks = {name: timing.peak_mb(turns[0], wish.device) for name, turns in calls.items()}
        launches = {name: timing.launches(turns[0], wish.device) for name, turns in calls.items()}
        times = timing.interleaved(calls, samples=wish.samples, device=wish.device)
        flops = case.flops() if callable(case.flops) else case.flops
        rows = []
        for name, (p20, p50, p80) in times.items():
            row: dict[str, Any] = {
                "suite": case.suite,
                "op": case.op,
                "impl": name,
                "shape": case.shape,
                "sizes": dict(case.sizes),
                "dtype": case.dtype,
                "mode": case.mode,
                "p20_ms": _short(p20),
                "p50_ms": _short(p50),
                "p80_ms": _short(p80),
                "gb_s": _short(case.bytes_moved / p50 / 1e6) if case.bytes_moved else None,
                "tflops": _short(flops / p50 / 1e9) if flops else None,
                "peak_mb": peaks[name],
                "bytes": case.bytes_moved,
                "flops": flops,
                "samples": wish.samples,
            }
            if launches[name] is not None:
                row["launches"] = launches[name]
            if case.rotated_mb is not None:
                row["rotated_mb"] = _short(case.rotated_mb())
            if case.counts:
                row["rates"] = {f"{n}_s": _short(c / p50 * 1e3) for n, c in case.counts.items()}
            if case.details is not None:
                row |= case.details(name, p50)
            rows.append(row)
        return Measured(tuple(rows), tuple(skipped))
    finally:
        case.close()


def _short(value: float) -> float:
    """Four significant digits: what a time is good for."""
    return float(f"{value:.4g}") if math.isfinite(value) else value


def ordered(row: Row) -> Row:
    """The fields that every row has first, in their order."""
    first = {name: row[name] for name in ("suite", *FIELDS)}
    return first | {name: value for name, value in row.items() if name not in first}
