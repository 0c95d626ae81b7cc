"""The first minutes on a GPU, in two commands that each fit into one short lease of a machine.

    python -m benchmarks.gpu A          under 3 minutes: is every kernel right, how fast is it
    python -m benchmarks.gpu B          under 7: against compilers and libraries; a joint step
    python -m benchmarks.gpu rest       under 9: block sizes, SDPA table, sanitizer, large tensors
    python -m benchmarks.gpu apply-tuning gpu.tar.gz      home: block sizes into kernels/tuning.py

Needs a checkout with torch, Triton and numpy. A compiled library is used where it is installed or
named by COLAWORLD_NATIVE_LIBRARY. Stages run one after another, each in a process of its own and
within its own time; after each one the goals are printed and everything is packed into OUT/gpu.tar.gz,
from which a later call goes on (`--resume`). Nothing is downloaded. Not run on a GPU so far.
Not here: what a stage does (stages.py).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import rows
from . import goals

PACKAGE = __package__ or "benchmarks.gpu"
ROOT = Path(__file__).resolve().parents[2]
OUTCOMES = ("ok", "missing", "skipped", "failed")
ARCHIVE = "gpu.tar.gz"
_GRACE = 3  # seconds that a stage's process gets beyond what it is told
_DRY = 10  # times as long for a dry run: an interpreter on a CPU is not held to a GPU's seconds
_TOOLKITS = ("/usr/local/cuda/bin", "/opt/cuda/bin")


class Stage(NamedTuple):
    """One process and the seconds it may take."""

    name: str
    seconds: int
    command: Callable[[list[str]], list[str] | str] = lambda usual: usual
    """From the usual one (a stage of stages.py) to what is run, or why it cannot be."""


def sanitizer(usual: list[str]) -> list[str] | str:
    """The stage under compute-sanitizer, from the path or where toolkits are."""
    homes = [os.environ[n] + "/bin" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
    found = (shutil.which("compute-sanitizer", path=p) for p in (None, *homes, *_TOOLKITS))
    if tool := next(filter(None, found), None):
        return [tool, "--tool", "memcheck", "--error-exitcode", "1", *usual]
    return "no compute-sanitizer (of the CUDA toolkit) on this machine"


def pytests(usual: list[str]) -> list[str] | str:
    """What only pytest runs: the memory planner, and the tests of rooms that ask for a GPU."""
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed on this machine"
    paths = ("tests/gpu/test_memory_on_gpu.py", "tests/ops/test_cuda.py", "tests/kernels")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--maxfail", "5"]
    command += ["--collect-only", "-q"] if "--dry" in usual else []
    return [*command, "-k", "gpu or cuda", *(str(ROOT / path) for path in paths)]


# Seconds in all, and the stages in their order, the most valuable first.
PLAN: dict[str, tuple[int, tuple[Stage, ...]]] = {
    "A": (170, (Stage("probe", 15), Stage("correctness", 75), Stage("ceilings", 20), Stage("goals", 55))),
    "B": (420, (Stage("compilation", 75), Stage("rivals", 130), Stage("step8", 105), Stage("step28", 105))),
    "rest": (540, (Stage("tune", 150), Stage("attention", 70), Stage("large", 90),
                   Stage("memcheck", 100, sanitizer), Stage("pytest", 120, pytests))),
}  # fmt: skip


def run(stage: Stage, folder: Path, *, workers: int, dry: bool) -> str | None:
    """Run one stage, its output on the terminal and in the log; what went wrong, or None."""
    limit = stage.seconds * (_DRY if dry else 1)
    command = [sys.executable, "-m", f"{PACKAGE}.stages", stage.name, "--out", str(folder)]
    command += ["--seconds", str(limit - _GRACE), "--workers", str(workers)]
    command = stage.command(command + (["--dry"] if dry else []))
    if isinstance(command, str):
        return f"not run: {command}"
    caches = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    environment = os.environ | {name: str(folder / "cache" / at) for name, at in caches.items()}
    environment |= {"PYTHONUNBUFFERED": "1", "FAIL_WITHOUT_CUDA": "1"}
    environment |= {"TRITON_INTERPRET": "1"} if dry else {}
    if stage.name == "memcheck":  # every allocation its own, or a read beyond one finds a neighbour
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    log = folder / "logs" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def copy() -> None:
        with log.open("a", buffering=1) as file:  # line by line
            for line in process.stdout:
                print(f"{time.monotonic() - began:5.0f} {line}", end="", flush=True)
                file.write(line)

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers and compilers go on without it
        process.wait()
        thread.join(timeout=5)
    return None if code == 0 else f"ended with {code}"


def summary(folder: Path, problems: list[str]) -> bool:
    """What failed and what was not run, at the end, and every goal; whether all is well."""
    notes = rows.notes(folder)
    said = {kind: [n for n in notes if n["outcome"] == kind] for kind in OUTCOMES}
    absent = [(n["label"], n["reason"]) for n in said["missing"] + said["skipped"]]
    lines = [f"not run: {line}" for line in rows.grouped(absent)]
    lines += [f"stage {problem}" for problem in problems]
    lines += [f"FAILED {n['label']}: {n['reason']}" for n in said["failed"]]
    lines.append(", ".join(f"{len(found)} {kind}" for kind, found in said.items()))
    print(*lines, *goal_lines(folder), sep="\n", flush=True)
    return not said["failed"] and not any("ended with" in problem for problem in problems)


def goal_lines(folder: Path) -> list[str]:
    return [f"goal: {line}" for line in goals.lines(rows.kept(folder))]


def go(verb: str, folder: Path, out: Path, *, first: str | None, workers: int, dry: bool) -> bool:
    """The stages of a verb, from `first` on; whether all is well."""
    total, stages = PLAN[verb]
    names = [stage.name for stage in stages]
    if first is not None and first not in names:
        raise SystemExit(f"--from: expected one of {', '.join(names)}, got {first!r}")
    began, problems = time.monotonic(), []
    for stage in stages[names.index(first) if first else 0 :]:
        print(f"\n== {stage.name}: at most {stage.seconds} s ==", flush=True)
        problem = run(stage, folder, workers=workers, dry=dry)
        if problem:
            problems.append(f"{stage.name}: {problem}")
            print(f"stage {problems[-1]}", flush=True)
        known = [line for line in goal_lines(folder) if "not measured" not in line]
        more = len(goal_lines(folder)) - len(known)
        print(*known, f"goal: {more} more are not measured so far", sep="\n", flush=True)
        rows.pack(folder, out / ARCHIVE)
    well = summary(folder, problems)
    spent = time.monotonic() - began
    print(f"{verb}: {spent:.0f} of {total} s; everything is in {rows.pack(folder, out / ARCHIVE)}")
    return well


def main(argv: list[str] | None = None) -> int:
    raw, runs = argparse.RawDescriptionHelpFormatter, ROOT / "runs"
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", None, __doc__, formatter_class=raw)
    parser.add_argument("verb", choices=[*PLAN, "apply-tuning"])
    parser.add_argument("archive", nargs="?", type=Path, help="apply-tuning: the archive of a run")
    parser.add_argument("--out", type=Path, default=runs, help="folder for gpu.tar.gz")
    parser.add_argument("--work", type=Path, default=runs / "gpu", help="rows, logs, caches")
    parser.add_argument("--resume", type=Path, help="an archive whose rows are not measured again")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="leave out the stages before")
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 4) - 2)))
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: tiny sizes, stand-ins")
    given = parser.parse_args(argv)
    if given.verb == "apply-tuning":
        return apply_tuning(given.archive)
    folder, out = given.work.resolve(), given.out.resolve()
    for made in (folder, out):
        made.mkdir(parents=True, exist_ok=True)
    if given.resume:
        rows.unpack(given.resume, folder)
    how = {"first": given.first, "workers": given.workers, "dry": given.dry_run}
    return 0 if go(given.verb, folder, out, **how) else 1


def apply_tuning(archive: Path | None) -> int:
    from . import tune

    if archive is None or not archive.is_file():
        print(f"apply-tuning: expected the archive of a run, got {archive}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        rows.unpack(archive, Path(folder))
        print(tune.apply(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
