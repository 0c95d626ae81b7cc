"""Everything that needs a GPU, in one command: tests, sanitizer, ceilings, block sizes, times, goals.

    python -m colaworld.benchmarks.gpu            make gpu         (cut off at 9 minutes)
    python -m colaworld.benchmarks.gpu --quick    make gpu-quick   (under 3)
    python -m benchmarks.gpu --build              in a checkout: builds the library here first

Stages run one after another, each in a process of its own and within its share of the time; a stage that
fails or runs out of time is named at the end and does not take the others with it. Nothing is
downloaded. Not run on a GPU so far. Not here: what a stage does (the tests, `card/`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .rows import Row, read

RESULTS = Path(__file__).parent / "results"
PACKAGE = __package__ or "benchmarks"
# Seconds for everything, stages and what lies between them.
BUDGET, QUICK_BUDGET = 9 * 60 - 15, 3 * 60 - 10
_SPARE = 8  # that a stage's process gets beyond what it is told, to start and to write
_TOOLKITS = ("/usr/local/cuda/bin", "/opt/cuda/bin")
FILES = ("ceilings", "attention", "ops", "generator", "tune")  # of rows, by stage


@dataclass(frozen=True)
class Stage:
    """One process and what it may take."""

    name: str
    command: list[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """A stage that is not run, and why."""

    name: str
    reason: str


def sanitizer() -> str | None:
    """compute-sanitizer of the CUDA toolkit, on the path or where toolkits are."""
    homes = [os.environ[n] + "/bin" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    return shutil.which("compute-sanitizer") or next(
        (found for home in (*homes, *_TOOLKITS) if (found := shutil.which("compute-sanitizer", path=home))),
        None,
    )  # fmt: skip


def stages(
    *, quick: bool, root: Path | None, out: Path, build: bool = False
) -> Iterator[Stage | Left]:
    """The stages in order; tests come from a checkout (`root`) and are left out without one."""
    python = sys.executable

    def card(name: str, seconds: int, *more: str) -> Stage:
        command = [python, "-m", f"{PACKAGE}.card.{name}", "--seconds", str(seconds - _SPARE)]
        command += ["--out", str(out / f"{name}_cuda.json"), "--samples", "20", *more]
        return Stage(name, command + (["--quick"] if quick else []), seconds)

    def tests(name: str, seconds: int, *paths: str, only: str = "") -> Stage:
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [str(root / path) for path in paths] + (["-k", only] if only else [])
        return Stage(name, command, seconds, {"FAIL_WITHOUT_CUDA": "1"})

    if build and root is not None:
        install = [
            "-m",
            "pip",
            "install",
            "-q",
            "--no-build-isolation",
            "--no-deps",
            "-e",
            str(root),
        ]
        yield Stage("build", [python, *install], 150, {"COLAWORLD_CUDA_ARCHITECTURES": _own()})
    yield card("ceilings", 15)
    if root is None:
        yield Left("tests", "an installed package has none; run this in a checkout")
    else:
        small = "not 2_31 and not two_to_the_31" if quick else ""
        yield tests("tests", 60 if quick else 80, "tests/gpu", "tests/ops/test_cuda.py", only=small)
    tool = sanitizer()
    if tool is None:
        yield Left("memory", "no compute-sanitizer (of the CUDA toolkit) on this machine")
    elif quick:
        yield Left("memory", "left out by --quick")
    else:
        # Every allocation its own, or a read beyond one would find its neighbour.
        command = [tool, "--tool", "memcheck", "--error-exitcode", "1", python]
        command += ["-m", f"{PACKAGE}.card.smallest", "--seconds", "25"]
        yield Stage("memory", command, 40, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    if not quick:
        yield card("tune", 70, *(["--write"] if root is not None else []))
    yield card("ops", 75 if quick else 105)
    yield card("attention", 20 if quick else 45)
    if not quick:
        yield card("generator", 110)
        if root is not None:
            # What the interpreter checks without a GPU, natively: in whatever time is left.
            yield tests("kernels", 50, "tests/kernels", only="on_the_gpu")


def _own() -> str:
    """The architecture of this card, as the build takes it: one machine code builds in a minute."""
    import torch

    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return str(10 * major + minor)


def run(stage: Stage, *, cwd: Path | None = None) -> str | None:
    """Run one stage with its output on the terminal; what went wrong, or None."""
    print(f"\n== {stage.name} (at most {stage.seconds} s) ==", flush=True)
    process = subprocess.Popen(
        stage.command, env={**os.environ, **stage.environment}, cwd=cwd, start_new_session=True
    )
    try:
        code = process.wait(timeout=stage.seconds)
    except subprocess.TimeoutExpired:
        return f"did not end within {stage.seconds} s"
    finally:
        if process.poll() is None:  # its own processes too: compilers go on without it
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return None if code == 0 else f"ended with {code}"


def run_all(
    listed: Iterator[Stage | Left],
    seconds: float,
    *,
    cwd: Path | None,
    now: Callable[[], float] = time.monotonic,
) -> tuple[list[str], list[str]]:
    """(what went wrong, what was not run), within `seconds` for all; a stage that would begin with
    less than half of its share left is not begun."""
    began, wrong, left_out = now(), [], []
    for stage in listed:
        if isinstance(stage, Left):
            left_out.append(f"{stage.name}: {stage.reason}")
            continue
        left = int(seconds - (now() - began))
        if left < stage.seconds / 2:
            left_out.append(f"{stage.name}: {max(left, 0)} s of {seconds:.0f} are left")
            continue
        cut = Stage(stage.name, stage.command, min(stage.seconds, left), stage.environment)
        problem = run(cut, cwd=cwd)
        if problem:
            wrong.append(f"{stage.name}: {problem}")
    return wrong, left_out


def collected(out: Path, since: float) -> list[Row]:
    """The rows that stages wrote at or after `since` (seconds of the system's clock)."""
    files = [out / f"{name}_cuda.json" for name in FILES]
    new = [file for file in files if file.is_file() and file.stat().st_mtime >= since]
    return [row for file in new for row in read(file)]


def report(out: Path, since: float) -> None:
    """The goals beside what was reached, a table, and pictures with a roofline."""
    from rich.console import Console

    from . import plots, table
    from .card import goals

    found = collected(out, since)
    shown = [row for row in found if row["op"] != "tune"]
    if shown:
        table.show(shown, (), Console(width=None if sys.stdout.isatty() else 160))
        print(f"plots: {plots.write(out / 'plots_cuda', shown)[-1]}")
    print()
    for line in goals.lines(found):
        print(f"goal: {line}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="tests, ceilings and the main ops alone"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON rows")
    parser.add_argument(
        "--build", action="store_true", help="build the library for this card first"
    )
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu: torch sees no CUDA device; nothing was run", file=sys.stderr)
        return 2
    from . import gate

    out, root = arguments.out.resolve(), gate.repository()
    out.mkdir(parents=True, exist_ok=True)
    began, since = time.monotonic(), time.time() - 1  # file systems round
    listed = stages(quick=arguments.quick, root=root, out=out, build=arguments.build)
    seconds = (QUICK_BUDGET if arguments.quick else BUDGET) + 150 * arguments.build
    wrong, left_out = run_all(listed, seconds, cwd=root)
    try:
        report(out, since)
    except Exception as error:  # rows that were measured are there, whatever a table makes of them
        wrong.append(f"report: {type(error).__name__}: {error}")
    print(f"\ngpu: {time.monotonic() - began:.0f} s; rows are in {out}")
    for line in left_out:
        print(f"gpu: not run: {line}")
    for line in wrong:
        print(f"gpu: WRONG {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
