"""The order of things: which cases, are they right, how long do they take, what becomes a row.

    listed --> tests pass? (gate) --> verified? --> peak memory --> times in turns --> kernels --> rows

Not here: what is timed (the suites), how results are shown (table.py, plots.py).
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from . import gate, machine, timing
from .case import SUITES, Call, Case, Failed, Request, Skipped, Unavailable
from .rows import Row

# An error or a wrong result of these is a failure; of anybody else it leaves that row out.
OURS = ("eager", "cpu", "triton", "cuda", "default", "default+compile", "pyav")


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
    return (Failed if case.ours or name in OURS else Skipped)(f"{case.label}/{name}", reason)


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
    products: dict[str, float] = {}
    request = replace(request, measured_tflops=products)
    cases, skipped = listed(suites, request, only=only)
    names = sorted({name for case in cases for name in case.providers})
    if impls and not set(impls) & set(names):  # one that is known but unavailable is named below
        raise ValueError(f"--impl {' '.join(impls)}: nobody of that name; have {', '.join(names)}")
    for tests in dict.fromkeys(case.tests for case in cases):
        log(f"gate: running {' '.join(tests)}")
        log(f"gate: {gate.require_passing(tests)}")
    found = Measured(skipped=skipped)
    for dtype in request.dtypes:
        for case in machine.ceilings(request.device, dtype):
            ceiling = measure(case, request)
            found.rows += ceiling.rows
            found.skipped += ceiling.skipped
    products |= {row["dtype"]: row["tflops"] for row in found.rows if row["op"] == "matmul"}
    for number, case in enumerate(cases):
        progress(number, len(cases), case.label)
        measured = measure(case, request, impls=impls)
        if measured.failed:
            first = measured.failed[0]
            raise gate.GateError(f"{first.label}: {first.reason}; so no times")
        found.rows += measured.rows
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
    fields: Row  # of the row, beside its times


def measure(case: Case, request: Request, *, impls: Sequence[str] = ()) -> Measured:
    """The rows of one case."""
    found, good = Measured(), {}
    prepare = partial(_prepared, case=case, device=request.device)
    failed = lambda name, error: found.miss(missed(case, name, one_line(error)))  # noqa: E731
    try:
        for name, made in ready(case, impls, prepare=prepare):
            if isinstance(made, _Prepared):
                good[name] = made
            else:
                found.miss(made)
        samples = min(request.samples, case.most or request.samples)
        if case.read is not None:
            read = {name: case.read(name, samples) for name in good}
            times = {name: timing.percentiles(values) for name, values in read.items()}
        else:
            times = timing.interleaved(
                {name: made.calls for name, made in good.items()},
                samples=samples,
                device=request.device,
                batch={name: made.batch for name, made in good.items()},
                failed=failed,
            )
        flops = case.flops() if callable(case.flops) else case.flops
        for name, each in times.items():
            more = good[name].fields | {"samples": samples}
            if case.rotated_mb is not None:
                more["rotated_mb"] = timing.short(case.rotated_mb())
            if case.details is not None:
                more |= case.details(name, each[1])
            found.rows.append(row(case, name, each, request.device, flops=flops, **more))
        return found
    finally:
        case.close()


def row(
    case: Case,
    impl: str,
    times: timing.Times,
    device: str,
    *,
    peak_mb: float | None = None,
    flops: int | None = None,
    **more: Any,
) -> Row:
    """A row: the fields that all have, in their order, then what is particular to this one."""
    p50, moved = times[1], case.bytes_moved
    found: Row = {"suite": case.suite, "op": case.op, "impl": impl, "shape": case.shape}
    found |= {"sizes": dict(case.sizes), "dtype": case.dtype, "mode": case.mode}
    found |= {f"p{n}_ms": timing.short(t) for n, t in zip((20, 50, 80), times, strict=True)}
    found["gb_s"] = timing.short(moved / p50 / 1e6) if moved else None
    found |= {"peak_mb": peak_mb, **machine.stamp(device), "bytes": moved, "flops": flops}
    found["tflops"] = timing.short(flops / p50 / 1e9) if flops else None
    if case.counts:
        found["rates"] = {f"{n}_s": timing.short(c / p50 * 1e3) for n, c in case.counts.items()}
    return found | more


def _prepared(calls: Sequence[Call], case: Case, device: str) -> _Prepared:
    fields: Row = {"peak_mb": timing.peak_mb(calls[0], device)}
    if not timing.on_gpu(device):
        return _Prepared(calls, 1, fields)
    kernels = timing.kernels(calls[0], device)  # their names say which backend it really was
    fields |= {"timed": "python", "launches": len(kernels)}
    fields["kernels"] = [kernel[:60] for kernel in dict.fromkeys(kernels)][:8]
    if case.graph:
        try:
            return _Prepared([timing.captured(calls)], len(calls), fields | {"timed": "graph"})
        except RuntimeError as error:  # timed from Python then, and the row says so
            print(f"{case.label}: no CUDA graph: {one_line(error)}", flush=True)
    return _Prepared(calls, 1, fields)


def one_line(error: BaseException) -> str:
    """What an error says, short enough for a terminal; its type too unless it explains itself."""
    lines = str(error).strip().splitlines() or ["no message"]
    named = lines[0] if isinstance(error, Unavailable) else f"{type(error).__name__}: {lines[0]}"
    return named[:300]
