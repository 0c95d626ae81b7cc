"""The stages of the GPU script; each runs in a process of its own and writes what it has at once.

    python -m benchmarks.gpu.stages goals --out runs/gpu --seconds 60

A stage is a list of cases (or of jobs, for several processes). What has a row from the same code and
device is not measured again. A case that would not fit into what is left of the time is not begun.
Not here: the order of the stages and their shares of the time (`__main__.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from colaworld import ops

from .. import gate, machine, run, shapes
from ..case import Case, Failed, Request, Skipped
from . import dry, store
from .goals import RIVALS as COMPILED

# (op, shape, dtype), the most important first: what a goal is about, then what rivals are timed for.
GOALS = (
    ("st_attention", "stdit3-xl.b8.temporal", "bfloat16"),
    ("adaln", "stdit3-xl.b8.autocast", "bfloat16"),
    ("codebook_step", "lam.codes", "float32"),
    ("qkv_norm_rope", "stdit3-xl.b8.spatial", "bfloat16"),
    ("vector_quantize", "bounded.codes", "float32"),
    ("vector_quantize", "lam.codes", "float32"),
    ("code_statistics", "lam.codes", "float32"),
)
RIVALS = (
    *GOALS[:4],
    ("st_attention", "stdit3-xl.b8.spatial", "bfloat16"),
    ("vector_quantize", "lam.codes", "float32"),
    ("vector_quantize", "goal.codes", "float32"),
    ("qk_norm_rope", "wan-1.3b", "bfloat16"),
    ("adaln", "stdit3-xl.b8.block", "bfloat16"),
    ("code_statistics", "bounded.codes", "float32"),
)
_FILLED_PAIRS = 2  # of blocks: every graph that more of them have
_CASE_SECONDS = 6  # a case takes about so long once its kernels are there
_STEP_SAMPLES = 7


@dataclass(frozen=True)
class Options:
    """What a stage is asked for."""

    out: Path
    seconds: float = 60.0
    samples: int = 20
    dry: bool = False
    workers: int = 1
    began: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def left(self) -> float:
        """Seconds that remain."""
        return self.seconds - (time.monotonic() - self.began)

    def request(self, *dtypes: str, **more: Any) -> Request:
        return Request(dtypes=dtypes, device=self.device, samples=self.samples, **more)

    def device_context(self) -> contextlib.AbstractContextManager[None]:
        return dry.stand_ins() if self.dry else contextlib.nullcontext()


def options(argv: list[str]) -> Options:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and notes")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for the whole stage")
    parser.add_argument("--samples", type=int, default=20, help="samples of each implementation")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with stand-ins")
    parser.add_argument("--workers", type=int, default=1, help="processes of a stage of many jobs")
    given = Options(**vars(parser.parse_args(argv)))
    return replace(given, samples=1) if given.dry else given


# --- cases ----------------------------------------------------------------------------------------


def cases_of(chosen: Iterable[tuple[str, str, str]], options: Options) -> Iterator[Case]:
    """The cases of (op, shape, dtype), forward and backward."""
    definition = importlib.import_module("..ops.definition", __package__)
    for op, name, dtype in chosen:
        module = importlib.import_module(f"..ops.{op}", __package__)
        shape = shapes.fixed(op, name)
        if options.dry:
            dtype, shape = "float32", small(shape)
        for case in definition.cases(module.DEFINITION, [shape], options.request(dtype)):
            if isinstance(case, Case):
                yield case
            else:
                store.note(options.out, "skipped", case.label, case.reason)


def small(shape: shapes.Shape) -> shapes.Shape:
    """The same shape in sizes that a CPU is done with at once."""
    most = {
        "B": 1,
        "T": 3,
        "S": 2,
        "H": 1,
        "D": 8,
        "C": 16,
        "L": 4,
        "N": 20,
        "K": 6,
        "n": 4,
        "d": 8,
    }
    sizes = {name: min(size, most[name]) for name, size in shape.sizes.items()}
    options = dict(shape.options)
    if options.get("sections") is not None:
        options["sections"] = (2, 1, 1)
    return replace(shape, sizes=sizes, options=options)


def goals(options: Options) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """Ours and the eager reference at the sizes of the goals."""
    ours = ("eager", "cuda", "triton", "default", *(("cpu",) if options.dry else ()))
    return ((case, ours) for case in cases_of(GOALS, options))


def rivals(options: Options) -> Iterator[tuple[Case, tuple[str, ...]]]:
    return ((case, ()) for case in cases_of(RIVALS, options))


def attention(options: Options) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """Torch's attention by backend at the sequences of the models."""
    chosen = [("attention", shape.name, "bfloat16") for shape in shapes.FIXED["attention"]]
    return ((case, ()) for case in cases_of(chosen, options))


def joint(pairs: int) -> Callable[[Options], Iterator[tuple[Case, tuple[str, ...]]]]:
    """A joint step at the paper's size, one way of running it after the other."""

    def cases(options: Options) -> Iterator[tuple[Case, tuple[str, ...]]]:
        from .. import training  # recipes: more packages than the ops need

        config, dtype = joint_config(pairs, options), "float32" if options.dry else "bfloat16"
        product = machine.ceilings(options.device, "bfloat16", samples=5)[1]["tflops"]
        request = options.request(dtype, measured_tflops={dtype: product})
        return ((case, ()) for case in training.joint(config, request, dtype))

    return cases


def joint_config(pairs: int, options: Options) -> Any:
    from colaworld.config import from_dict

    from .. import training

    config = training.xl(pairs)
    if not options.dry:
        return config
    narrow = {"width": 16, "heads": 2}
    tiny = {
        "data": {"frames_per_clip": 3, "height": 32, "width": 32},
        "model": {
            "backbone": {"depth": 1, **narrow},
            "idm": {"depth": 1, **narrow, "dim": 4},
            "conditioner": {"depth": 1, "heads": 2},
            "quantizer": {"codebook_size": 4},
        },
        "objective": {"history": (1, 2)},
        "training": {"batch_size": 2},
    }
    return from_dict(type(config), tiny, base=config)


def measure(
    listed: Iterable[tuple[Case, tuple[str, ...]]], options: Options, keep: Callable
) -> None:
    """Cases one by one; `keep` takes a Row, a Skipped or a Failed."""
    there = store.measured(options.out)
    for case, wanted in listed:
        impls = [name for name in wanted or case.providers if name in case.providers]
        missing = [name for name in impls if (case.label, name) not in there]
        if not missing:
            print(f"there already: {case.label}", flush=True)
            continue
        if options.left() < (0 if options.dry else _CASE_SECONDS):
            keep(Skipped(case.label, f"{max(options.left(), 0):.0f} s are left"))
            continue
        samples = min(options.samples, _STEP_SAMPLES) if case.op == "step" else options.samples
        request = options.request(case.dtype)
        found = run.measure(case, replace(request, samples=samples), impls=missing)
        for one in (*found.rows, *found.skipped, *found.failed):
            keep(one)
        gc.collect()
        torch.cuda.empty_cache()


# --- stages that are no list of cases ---------------------------------------------------------------


def probe(options: Options, keep: Callable) -> None:
    """What this machine has: printed first, since everything else depends on it."""
    print(f"device: {machine.device_name(options.device)}; {machine.versions()}")
    for package in ("triton", "pytest", "rich", "matplotlib"):
        found = importlib.util.find_spec(package) is not None
        print(f"{package}: {'there' if found else 'not installed'}")
    for backend in ops.ATTENTION_BACKENDS:
        print(f"attention {backend}: {ops.attention_backend_missing(backend) or 'there'}")
    built = ops.build_info()
    print(f"compiled library: {built if built else ops.why_not_compiled()}")
    probes = {
        "st_attention": (1, 2, 3, 3, 2, 72),
        "adaln": (1, 2, 3, 8),
        "qkv_norm_rope": (1, 2, 3, 1, 8),
        "qk_norm_rope": (1, 2, 1, 8),
    }
    for op in ops.names():
        lead = torch.zeros(probes.get(op, (4, 8)), device=options.device)
        axis = "temporal" if op == "st_attention" else None
        for verdict in ops.explain(op, lead, axis=axis):
            print(f"{op}: {verdict.name}: {verdict.reason or 'runs'}")


def ceilings(options: Options, keep: Callable) -> None:
    if options.dry:
        machine._COPIED["cpu"], machine._SIDE["cpu"] = 1 << 12, 8
    for dtype in ("bfloat16", "float32"):
        for row in machine.ceilings(options.device, dtype, samples=options.samples):
            keep(row)
    for row in machine.launch(options.device, samples=options.samples):
        keep(row)


def correctness(options: Options, keep: Callable) -> int:
    return share(options, "correctness")


def compilation(options: Options, keep: Callable) -> int:
    return share(options, "compilation")


def large(options: Options, keep: Callable) -> int:
    return share(options, "large")


def memcheck(options: Options, keep: Callable) -> None:
    """The small checks one after another, for a tool that watches every access (and is slow)."""
    for name, job in jobs("memcheck", options).items():
        if options.left() < 5 and not options.dry:
            keep(Skipped(f"memcheck: {name}", f"{max(options.left(), 0):.0f} s are left"))
            continue
        try:
            job()
        except Exception as error:
            if not missing(error):
                raise
            keep(Skipped(f"memcheck: {name}", str(error)))
        else:
            print(f"ran {name}", flush=True)


def missing(error: Exception) -> bool:
    """Whether an error says that this machine lacks what a job is about."""
    return type(error).__name__ in ("Missing", "Unavailable")


def share(options: Options, source: str) -> int:
    """Run the jobs of `source` in several processes; how many failed."""
    from . import workers

    command = [sys.executable, "-m", workers.__name__, source, "--out", str(options.out)]
    command += ["--dry"] if options.dry else []
    # One compiler thread each: there are as many processes as cores.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    outcomes = {"ok": 0, "missing": 0, "failed": 0}

    def done(name: str, outcome: str, reason: str) -> None:
        outcomes[outcome] += 1
        store.note(options.out, outcome, f"{source}: {name}", reason)
        if outcome != "ok":
            print(f"{outcome.upper()} {name}: {reason}", flush=True)

    names = list(jobs(source, options))
    unfinished = workers.share_out(
        names, command, count=options.workers, seconds=options.left(), done=done
    )
    for name in unfinished:
        store.note(options.out, "skipped", f"{source}: {name}", "the time was over")
    said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    print(f"{source}: {said}, {len(unfinished)} not run of {len(names)}", flush=True)
    return outcomes["failed"]


def jobs(source: str, options: Options) -> dict[str, Callable[[], None]]:
    """The small jobs of a stage by name."""
    made: dict[str, Callable[[], None]] = {}
    if source != "compilation":
        module, device = checks(), torch.device(options.device)
        groups = ("large", "compile") if source == "large" else ("quick",)
        for check in module.checks(options.device) if module else ():
            quick = check.small or ("/cpu/" in check.label and source != "memcheck")
            if check.group in groups and (quick or not (options.dry or source == "memcheck")):
                made[check.label] = lambda check=check: check.run(device)
    if source in ("large", "memcheck"):
        return made
    fits = (lambda name: name == "triton") if source == "correctness" else COMPILED.__contains__
    listed = goals(options) if source == "correctness" else rivals(options)
    for case, _ in listed:
        for name in filter(fits, case.providers):
            made[f"{case.label}/{name}"] = lambda case=case, name=name: once(case, name)
    if source == "compilation" and all(map(importlib.util.find_spec, ("yaml", "safetensors"))):
        for case, _ in joint(_FILLED_PAIRS)(options):
            if "compile" in (name := next(iter(case.providers))):
                made[f"{case.label}/{name}"] = lambda case=case, name=name: once(case, name)
    return made


def once(case: Case, name: str) -> None:
    """One call, for what the compilers keep of it."""
    torch._dynamo.reset()  # compilations of the jobs before count against a limit
    try:
        case.providers[name]()[0]()
    finally:
        case.close()


def checks() -> ModuleType | None:
    """tests/gpu/checks.py of the checkout; None in an installed package."""
    root = gate.repository()
    if root is None:
        print("no checkout, so no tests/gpu: results are verified before each time, no more")
        return None
    spec = importlib.util.spec_from_file_location("gpu_checks", root / "tests/gpu/checks.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tune(options: Options, keep: Callable) -> None:
    from . import tune as tuning

    for one in tuning.rows(options):
        keep(one)


CASES = {
    "goals": goals,
    "rivals": rivals,
    "attention": attention,
    "step8": joint(8),
    "step28": joint(28),
}
OTHERS = {
    "probe": probe,
    "correctness": correctness,
    "ceilings": ceilings,
    "compilation": compilation,
    "tune": tune,
    "large": large,
    "memcheck": memcheck,
}


def line(row: dict[str, Any]) -> str:
    """A row in one line."""
    text = f"{row['op']}/{row['shape']}/{row['dtype']}/{row['mode']} {row['impl']}: "
    text += f"{row['p50_ms']:.4g} ms"
    for name, unit in (("gb_s", "GB/s"), ("tflops", "TFLOP/s"), ("peak_mb", "MB"),
                       ("launches", "launches"), ("mfu", "MFU")):  # fmt: skip
        if row.get(name) is not None:
            text += f", {row[name]:.4g} {unit}"
    return text


def main(argv: list[str] | None = None) -> int:
    """One stage. 0; 1 where something of ours failed; 2 without a GPU."""
    name, *rest = sys.argv[1:] if argv is None else argv
    given = options(rest)
    if not given.dry and not torch.cuda.is_available():
        print("torch sees no CUDA device; nothing was run")
        return 2
    failures = 0
    with given.device_context():
        stamp = machine.stamp(given.device)

        def keep(one: Any) -> None:
            nonlocal failures
            if isinstance(one, Skipped):
                store.note(given.out, "skipped", one.label, one.reason)
                print(f"not measured: {one.label}: {one.reason}", flush=True)
            elif isinstance(one, Failed):
                failures += 1
                store.note(given.out, "failed", one.label, one.reason)
                print(f"FAILED {one.label}: {one.reason}", flush=True)
            else:
                store.add(given.out, run.ordered(one | stamp))
                print(line(one), flush=True)

        try:
            if name in CASES:
                measure(CASES[name](given), given, keep)
            else:
                failures += OTHERS[name](given, keep) or 0
        except ModuleNotFoundError as error:
            keep(Skipped(name, f"the package {error.name} is not installed"))
    print(f"{name}: {given.left():.0f} s left", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
