"""The stages of the GPU script; each runs in a process of its own and writes what it has at once.

    python -m benchmarks.gpu.stages goals --out runs/gpu --seconds 60

A stage is a list of cases (cases.py), or of jobs for several processes. What has a row from the same
code and device is not measured again. A case that would not fit into what is left of the time is not
begun. Not here: the order of the stages and their shares of the time (`__main__.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from colaworld import ops

from .. import gate, machine, rows, run, timing
from ..case import Case, Failed, Skipped
from . import goals, tune, workers
from .cases import BASELINES, GOALS, STAGES, TUNED, Options, cases_of, joint

_FILLED_PAIRS = 2  # of blocks: every graph that more of them have
_CASE_SECONDS = 6  # a case takes about so long once its kernels are there
_STEP_SAMPLES = 7
Keep = Callable[[Any], None]  # takes a Row, a Skipped or a Failed


def options(argv: list[str]) -> Options:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and notes")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for the whole stage")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with stand-ins")
    parser.add_argument("--workers", type=int, default=1, help="processes of a stage of many jobs")
    given = Options(**vars(parser.parse_args(argv)))
    return replace(given, samples=1) if given.dry else given


def beside_tests(name: str) -> ModuleType | None:
    """tests/gpu/NAME.py of the checkout; None in an installed package."""
    root = gate.repository()
    if root is None:
        return None
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", root / f"tests/gpu/{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def device_context(given: Options) -> contextlib.AbstractContextManager[None]:
    """A dry run treats the CPU as a GPU."""
    dry = given.dry and beside_tests("stand_ins")
    return dry.stand_ins(timing) if dry else contextlib.nullcontext()


# --- cases ----------------------------------------------------------------------------------------


def measure(listed: Iterable[tuple[Case, tuple[str, ...]]], options: Options, keep: Keep) -> None:
    """Cases one by one."""
    there = rows.measured(options.out)
    for case, wanted in listed:
        impls = [name for name in wanted or case.providers if name in case.providers]
        missing = [name for name in impls if (case.label, name) not in there]
        if not missing:
            print(f"there already: {case.label}", flush=True)
            continue
        if late := options.late(_CASE_SECONDS):
            keep(Skipped(case.label, late))
            continue
        samples = min(options.samples, _STEP_SAMPLES) if case.op == "step" else options.samples
        request = replace(options.request(case.dtype), samples=samples)
        found = run.measure(case, request, impls=missing)
        for one in (*found.rows, *found.skipped, *found.failed):
            keep(one)
        gc.collect()
        torch.cuda.empty_cache()


# --- stages that are no list of cases ---------------------------------------------------------------


def probe(options: Options, keep: Keep) -> None:
    """What this machine has: printed first, since everything else depends on it."""
    print(f"device: {machine.device_name(options.device)}; {machine.versions()}")
    for package in ("triton", "pytest", "rich", "matplotlib"):
        print(f"{package}: {'there' if importlib.util.find_spec(package) else 'not installed'}")
    for backend in ops.ATTENTION_BACKENDS:
        print(f"attention {backend}: {ops.attention_backend_missing(backend) or 'there'}")
    print(f"compiled library: {ops.build_info() or ops.why_not_compiled()}")
    for op, axis, shape in ops.examples():
        for verdict in ops.explain(op, torch.zeros(shape, device=options.device), axis=axis):
            print(f"{op}: {verdict.name}: {verdict.reason or 'runs'}")


def memcheck(options: Options, keep: Keep) -> None:
    """The small checks one after another, for a tool that watches every access (and is slow)."""
    for name, job in jobs("memcheck", options).items():
        if late := options.late(5):
            keep(Skipped(f"memcheck: {name}", late))
            continue
        try:
            job()
            print(f"ran {name}", flush=True)
        except Exception as error:
            if not workers.missing(error):
                raise
            keep(Skipped(f"memcheck: {name}", str(error)))


def tuning(options: Options, keep: Keep) -> None:
    for one in tune.of_cases(cases_of(TUNED, options), options):
        keep(one)


def share(source: str, options: Options, keep: Keep) -> int:
    """Run the jobs of `source` in several processes; how many failed."""
    command = [sys.executable, "-m", __spec__.name, "serve", source, "--out", str(options.out)]
    command += ["--dry"] if options.dry else []
    # One compiler thread each: there are as many processes as cores.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    outcomes: Counter[str] = Counter()

    def done(name: str, outcome: str, reason: str) -> None:
        outcomes[outcome] += 1
        rows.note(options.out, outcome, f"{source}: {name}", reason)
        if outcome != "ok":
            print(f"{outcome.upper()} {name}: {reason}", flush=True)

    names, how = list(jobs(source, options)), {"count": options.workers, "seconds": options.left()}
    for name in workers.share_out(names, command, **how, done=done):
        done(name, "skipped", "the time was over")
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"{source}: {counted} of {len(names)}", flush=True)
    return outcomes["failed"]


def jobs(source: str, options: Options) -> dict[str, Callable[[], None]]:
    """The small jobs of a stage by name: checks of tests/gpu, and first calls that compile."""
    made: dict[str, Callable[[], None]] = {}
    module = None if source == "compilation" else beside_tests("checks")
    groups = ("large", "compile") if source == "large" else ("quick",)
    for check in module.checks(options.device) if module else ():
        quick = check.small or ("/cpu/" in check.label and source != "memcheck")
        if check.group in groups and (quick or not (options.dry or source == "memcheck")):
            made[check.label] = partial(check.run, torch.device(options.device))
    cases: list[tuple[Case, str]] = []
    if source == "correctness":
        cases = [(case, "triton") for case in cases_of(GOALS, options)]
    elif source == "compilation":
        names = goals.table()[1]
        cases = [(case, name) for case in cases_of(BASELINES, options) for name in names]
        if all(map(importlib.util.find_spec, ("yaml", "safetensors"))):
            steps = joint(_FILLED_PAIRS)(options)
            cases += [(case, name) for case, _ in steps for name in ("default+compile", "compile")]
    known = ((case, name) for case, name in cases if name in case.providers)
    return made | {f"{case.label}/{name}": partial(once, case, name) for case, name in known}


def once(case: Case, name: str) -> None:
    """One call, for what the compilers keep of it."""
    torch._dynamo.reset()  # compilations of the jobs before count against a limit
    try:
        case.providers[name]()[0]()
    finally:
        case.close()


def serve(source: str, options: Options) -> None:
    """A worker process of `share`."""

    def alive() -> bool:  # after an access outside of memory a GPU takes no more work
        try:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.zeros(1, device="cuda").add_(1).cpu()
        except RuntimeError:
            return False
        return True

    torch.set_num_threads(1)
    with device_context(options):
        workers.serve(jobs(source, options), alive)


OTHERS: dict[str, Callable[[Options, Keep], int | None]] = {
    **{"probe": probe, "tune": tuning, "memcheck": memcheck},
    **{name: partial(share, name) for name in ("correctness", "compilation", "large")},
}


def line(row: dict[str, Any]) -> str:
    """A row in one line."""
    units = {"gb_s": "GB/s", "tflops": "TFLOP/s", "peak_mb": "MB", "launches": "launches"}
    units["mfu"] = "MFU"
    told = [f"{row[name]:.4g} {unit}" for name, unit in units.items() if row.get(name) is not None]
    text = "{op}/{shape}/{dtype}/{mode} {impl}: {p50_ms:.4g} ms".format(**row)
    return ", ".join([text, *told])


def main(argv: list[str] | None = None) -> int:
    """One stage. 0; 1 where something of ours failed; 2 without a GPU."""
    name, *rest = sys.argv[1:] if argv is None else argv
    if name == "serve":
        serve(rest[0], options(rest[1:]))
        return 0
    given = options(rest)
    if not given.dry and not torch.cuda.is_available():
        print("torch sees no CUDA device; nothing was run")
        return 2
    failures = 0
    with device_context(given):

        def keep(one: Any) -> None:
            nonlocal failures
            if isinstance(one, dict):
                rows.add(given.out, one)
                print(line(one), flush=True)
                return
            failed = isinstance(one, Failed)
            failures += failed
            rows.note(given.out, "failed" if failed else "skipped", one.label, one.reason)
            said = "FAILED" if failed else "not measured:"
            print(f"{said} {one.label}: {one.reason}", flush=True)

        try:
            if name in STAGES:
                measure(STAGES[name](given), given, keep)
            else:
                failures += OTHERS[name](given, keep) or 0
        except ModuleNotFoundError as error:
            keep(Skipped(name, f"the package {error.name} is not installed"))
    print(f"{name}: {given.left():.0f} s left", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
