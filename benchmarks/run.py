"""The order of things: which cases, are they right, how long do they take, what becomes a row.

    listed --> tests pass? (gate) --> verified? --> peak memory --> times in turns --> kernels --> rows

Not here: what is timed (the suites), how results are shown (table.py, plots.py).
"""

from __future__ import annotations

import importlib
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from . import gate, machine, timing
from .case import SUITES, Call, Case, Failed, Request, Skipped, Unavailable
from .rows import FIELDS, Row

# An error or a wrong result of these is a failure; of anybody else it leaves that row out.
OURS = ("eager", "cpu", "triton", "cuda", "default", "default+compile")


@dataclass
class Measured:
    """Rows, and what was asked for without one."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)

    def miss(self, one: Skipped | Failed) -> None:
        (self.failed if isinstance(one, Failed) else self.skipped).append(one)


def missed(case: Case, name: str, reason: str) -> Skipped | Failed:
    """An implementation without a row: a failure where it is one of ours."""
    return (Failed if name in OURS else Skipped)(f"{case.label}/{name}", reason)


def listed(
    suites: Sequence[str], request: Request, *, only: Sequence[str] = ()
) -> tuple[list[Case], list[Skipped]]:
    """The cases of the suites whose label (op/shape/dtype/mode) holds one of `only`.

    Nothing is built yet. Heavy cases are in only where `only` names their shape. Raises ValueError
    where nothing is left.
    """
    cases, skipped, known = [], [], {}
    for suite in suites:
        if suite not in SUITES:
            raise ValueError(f"no suite {suite!r}; expected some of {', '.join(SUITES)}")
        for case in importlib.import_module(f".{suite}", __package__).cases(request):
            known[case.label] = None
            if only and not any(part in case.label for part in only):
                continue
            if isinstance(case, Skipped):
                skipped.append(case)
            elif case.heavy and not any(part in case.shape for part in only):
                skipped.append(Skipped(case.label, f"too long for every run: --only {case.shape}"))
            else:
                cases.append(case)
    if not cases and not skipped:
        names = f"labels are op/shape/dtype/mode: {', '.join(known)}"
        raise ValueError(f"--only {' '.join(only)}: names nothing; {names}")
    return cases, skipped


def run(
    suites: Sequence[str],
    request: Request,
    *,
    only: Sequence[str] = (),
    impls: Sequence[str] = (),
    log: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Measured:
    """Measure everything that is asked for. Raises gate.GateError where tests or results fail."""
    cases, skipped = listed(suites, request, only=only)
    names = sorted({name for case in cases for name in case.providers})
    if impls and not set(impls) & set(names):  # one that is known but unavailable is named below
        raise ValueError(f"--impl {' '.join(impls)}: nobody of that name; have {', '.join(names)}")
    for tests in dict.fromkeys(case.tests for case in cases):
        log(f"gate: running {' '.join(tests)}")
        log(f"gate: {gate.require_passing(tests)}")
    stamp = machine.stamp(request.device)
    found = Measured(skipped=skipped)
    for dtype in request.dtypes:
        ceilings = machine.ceilings(request.device, dtype, samples=request.samples)
        found.rows += [ordered(row | stamp) for row in ceilings]
    products = {row["dtype"]: row["tflops"] for row in found.rows if row["op"] == "matmul"}
    cases, _ = listed(suites, replace(request, measured_tflops=products), only=only)
    for number, case in enumerate(cases):
        progress(number, len(cases), case.label)
        measured = measure(case, request, impls=impls)
        if measured.failed:
            first = measured.failed[0]
            raise gate.GateError(f"{first.label}: {first.reason}; so no times")
        found.rows += [ordered(row | stamp) for row in measured.rows]
        found.skipped += measured.skipped
    progress(len(cases), len(cases), "done")
    return found


def ready(
    case: Case,
    impls: Sequence[str] = (),
    *,
    prepare: Callable[[Sequence[Call]], Any] = lambda calls: calls,
) -> Iterator[tuple[str, Any]]:
    """Each implementation's calls, verified, run once and prepared; or a Skipped or Failed.

    An error of one implementation is its own: the others are still made.
    """
    torch._dynamo.reset()  # compilations of the case before count against a limit
    for name, provider in case.providers.items():
        if impls and name not in impls:
            continue
        try:
            fault = case.verify(name) if case.verify else None
            if fault is None:
                calls = provider()
                calls[0]()
                made = prepare(calls)
            else:
                made = missed(case, name, f"its results are wrong: {fault}")
        except (Unavailable, torch.OutOfMemoryError) as reason:
            made = Skipped(f"{case.label}/{name}", one_line(reason))
        except Exception as error:
            if name in OURS:
                traceback.print_exc()
            made = missed(case, name, one_line(error))
        yield name, made


class _Prepared(NamedTuple):
    calls: Sequence[Call]  # those that are timed
    batch: int  # how many of the case's calls one of them stands for
    peak_mb: float | None
    kernels: Sequence[str] | None  # that one call of the case starts on a GPU


def measure(case: Case, request: Request, *, impls: Sequence[str] = ()) -> Measured:
    """The rows of one case, without the fields that all rows of a run share."""
    found, good = Measured(), {}
    try:
        for name, made in ready(case, impls, prepare=lambda c: _prepared(c, case, request.device)):
            if isinstance(made, _Prepared):
                good[name] = made
            else:
                found.miss(made)
        failed = lambda name, error: found.miss(missed(case, name, one_line(error)))  # noqa: E731
        found.rows += _rows(case, request, good, failed)
        return found
    finally:
        case.close()


def _prepared(calls: Sequence[Call], case: Case, device: str) -> _Prepared:
    peak = timing.peak_mb(calls[0], device)
    kernels = timing.kernels(calls[0], device)
    if not (timing.on_gpu(device) and case.graph):
        return _Prepared(calls, 1, peak, kernels)
    try:
        return _Prepared([timing.captured(calls)], len(calls), peak, kernels)
    except RuntimeError as error:  # timed from Python then, and the row says so
        print(f"{case.label}: no CUDA graph: {one_line(error)}", flush=True)
        return _Prepared(calls, 0, peak, kernels)


def _rows(
    case: Case,
    request: Request,
    good: Mapping[str, _Prepared],
    failed: Callable[[str, Exception], None],
) -> Iterator[Row]:
    calls = {name: made.calls for name, made in good.items()}
    batch = {name: made.batch or 1 for name, made in good.items()}
    how = {"samples": request.samples, "device": request.device}
    times = timing.interleaved(calls, **how, batch=batch, failed=failed)
    flops = case.flops() if callable(case.flops) else case.flops
    for name, found in times.items():
        p50, moved = found[1], case.bytes_moved
        row: Row = {"suite": case.suite, "op": case.op, "impl": name, "shape": case.shape}
        row |= {"sizes": dict(case.sizes), "dtype": case.dtype, "mode": case.mode}
        row |= {f"p{n}_ms": _short(ms) for n, ms in zip((20, 50, 80), found, strict=True)}
        row |= {"gb_s": _short(moved / p50 / 1e6) if moved else None, "bytes": moved}
        row |= {"tflops": _short(flops / p50 / 1e9) if flops else None, "flops": flops}
        row |= {"peak_mb": good[name].peak_mb, "samples": request.samples}
        if timing.on_gpu(request.device):
            row["timed"] = "graph" if case.graph and good[name].batch else "python"
        if good[name].kernels:  # their names say which backend it really was
            row["launches"] = len(good[name].kernels)
            row["kernels"] = [kernel[:60] for kernel in dict.fromkeys(good[name].kernels)][:8]
        if case.rotated_mb is not None:
            row["rotated_mb"] = _short(case.rotated_mb())
        if case.counts:
            row["rates"] = {f"{n}_s": _short(c / p50 * 1e3) for n, c in case.counts.items()}
        if case.details is not None:
            row |= case.details(name, p50)
        yield row


def one_line(error: BaseException) -> str:
    """What an error says, short enough for a terminal; its type too unless it explains itself."""
    lines = str(error).strip().splitlines() or ["no message"]
    named = lines[0] if isinstance(error, Unavailable) else f"{type(error).__name__}: {lines[0]}"
    return named[:300]


def _short(value: float) -> float:
    """Four significant digits: what a time is good for."""
    return float(f"{value:.4g}") if math.isfinite(value) else value


def ordered(row: Row) -> Row:
    """The fields that every row has first, in their order."""
    first = {name: row[name] for name in ("suite", *FIELDS)}
    return first | {name: value for name, value in row.items() if name not in first}
