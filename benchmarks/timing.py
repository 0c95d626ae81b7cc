"""How a call is timed, and what a result row holds.

Providers take turns sample by sample, so that noise of the machine falls on all of them alike.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
SAMPLE_SECONDS = (
    2e-3  # a sample repeats a short call until it lasts this long: clock and loop vanish
)


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, samples: int
) -> dict[str, tuple[float, float, float]]:
    """Milliseconds per call of each provider: the 20th, 50th and 80th percentile of `samples`."""
    repeats = {}
    for name, call in calls.items():
        call()  # warm: compilation, caches, pages
        start = time.perf_counter()
        call()
        repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(samples):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) * 1e3 / repeats[name])
    fifths = {name: statistics.quantiles(t, n=5, method="inclusive") for name, t in times.items()}
    return {
        name: (fifths[name][0], statistics.median(t), fifths[name][3]) for name, t in times.items()
    }


def peak_mb(call: Callable[[], object]) -> float | None:
    """MB that one call adds to the resident memory at its peak; None where Linux is not."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return round((_status("VmHWM") - before) / 1024, 1)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def device_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Hash of the commit that was timed, "-dirty" appended when tracked files differ from it."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    code = ("csrc", "colaworld/ops", "kernels", "benchmarks", "CMakeLists.txt")
    dirty = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if dirty else "")


def write_rows(name: str, rows: list[dict[str, Any]]) -> Path:
    """benchmarks/results/<name>.json, one row per line."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return path


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
