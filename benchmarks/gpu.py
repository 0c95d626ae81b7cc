"""Everything that needs a GPU, in one command: tests, sanitizer, block sizes, times.

    python -m colaworld.benchmarks.gpu            make gpu         (under 9 minutes on an H200)
    python -m colaworld.benchmarks.gpu --quick    make gpu-quick   (under 3)

Stages run one after another, each in a process of its own and within its share of the time; a stage that
fails or runs out of time is named at the end and does not take the others with it. Nothing is
downloaded. Not run on a GPU so far. Not here: what a stage does (the tests, `colaworld bench`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Stage:
    """One process and what it may take."""

    name: str
    command: list[str]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)


def stages(*, quick: bool, root: Path | None, out: Path) -> Iterator[Stage]:
    """The stages in order; tests come from a checkout (`root`) and are left out without one."""
    python = sys.executable
    strict = {"FAIL_WITHOUT_CUDA": "1"}
    if root is not None:
        tests = [
            python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(root / "tests" / "gpu"),
        ]
        yield Stage("tests", tests, 60 if quick else 150, strict)
        sanitizer = shutil.which("compute-sanitizer")
        if sanitizer and not quick:
            small = [*tests, "-k", "nan or graph"]
            yield Stage("memory", [sanitizer, "--error-exitcode", "1", *small], 60, strict)

    def bench(suite: str, seconds: int, *more: str) -> Stage:
        file = str(out / f"{suite}_cuda.json")
        command = [
            python,
            "-m",
            "colaworld",
            "bench",
            suite,
            "--device",
            "cuda",
            "--json",
            file,
            *more,
        ]
        return Stage(f"bench {suite}", command, seconds)

    samples = ["--samples", "20"]
    dtypes = ["--dtype", "bfloat16"] if quick else ["--dtype", "bfloat16", "float32"]
    yield bench("ops", 70 if quick else 180, *dtypes, *samples)
    if not quick:
        yield bench("models", 60, "--dtype", "bfloat16", *samples)
        yield bench("training", 60, "--dtype", "bfloat16", *samples)


def run(stage: Stage) -> str | None:
    """Run one stage with its output on the terminal; what went wrong, or None."""
    print(f"\n== {stage.name} (at most {stage.seconds} s) ==", flush=True)
    try:
        done = subprocess.run(
            stage.command,
            env={**os.environ, **stage.environment},
            timeout=stage.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {stage.seconds} s"
    return None if done.returncode == 0 else f"ended with {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tests and the ops alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON rows")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu: torch sees no CUDA device; nothing was run", file=sys.stderr)
        return 2
    from . import gate

    arguments.out.mkdir(parents=True, exist_ok=True)
    began, wrong = time.monotonic(), []
    for stage in stages(quick=arguments.quick, root=gate.repository(), out=arguments.out):
        problem = run(stage)
        if problem:
            wrong.append(f"{stage.name}: {problem}")
    print(f"\ngpu: {time.monotonic() - began:.0f} s; rows are in {arguments.out}")
    for line in wrong:
        print(f"gpu: WRONG {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
