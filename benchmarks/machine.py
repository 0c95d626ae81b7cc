"""The machine and the code that were timed: names, versions, commit, and its two ceilings.

The ceilings are what this machine reaches in this process: the speed of a copy and of a matrix
product. Everything else is held against them. Not here: the timing itself.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from colaworld import ops

from . import gate, timing

PACKAGES = ("colaworld", "triton", "vector-quantize-pytorch")
PACKAGES += ("flash-attn", "flash-attn-3", "flash-attn-4")
_CODE = ("csrc", "colaworld", "kernels", "benchmarks", "CMakeLists.txt")
# Bytes: past any cache (the H200's holds 60 MB) and still milliseconds.
_COPIED = {"cpu": 1 << 26, "cuda": 1 << 31}
_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices: large enough for full speed there
_LAUNCHES = 200  # small kernels that are timed together: what one costs is lost in the clock


def device_name(device: str = "cpu") -> str:
    """What a row says about where it ran: processor and instruction set, or the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")  # of Linux
    found = re.search(r"model name\s*: (.+)", told.read_text() if told.exists() else "")
    name = found[1] if found else platform.processor() or platform.machine()
    built = ops.build_info()
    return f"{name}, {built['chosen_instruction_set']}" if built else f"{name}, no compiled ops"


def versions() -> dict[str, str]:
    """Python, torch, and those of the packages compared with that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> str:
    """Hash of the commit that was timed, "-dirty" appended when tracked files differ from it."""
    root = gate.repository()
    if root is None:
        return "installed"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        with contextlib.suppress(FileNotFoundError):
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return ""

    results = ":(exclude)benchmarks/results"  # rows written by the run before are not code
    dirty = git("status", "--porcelain", "--untracked-files=no", "--", *_CODE, results)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if dirty else "")


def stamp(device: str) -> dict[str, Any]:
    """The fields that all rows of a run share."""
    return {
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def ceilings(
    device: str, dtype: str, *, samples: int, copied: int = 0, side: int = 0
) -> list[dict[str, Any]]:
    """Two measurements, as fields of rows: a device copy (GB/s) and a matrix product (TFLOP/s).

    `copied` bytes and matrices of `side`; by themselves as large as the device needs.
    """
    kind, number = torch.device(device).type, getattr(torch, dtype)
    copied, side = copied or _COPIED[kind], side or _SIDE[kind]
    source = torch.ones(copied // number.itemsize, device=device, dtype=number)
    target = torch.empty_like(source)
    # Random numbers: a GPU multiplies ones and zeros faster, since fewer bits change.
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=draw, device=device).to(number) for _ in range(2))
    calls = {"copy": [lambda: target.copy_(source)], "matmul": [lambda: torch.mm(a, b)]}
    with torch.no_grad():
        times = timing.interleaved(calls, samples=samples, device=device)
    moved, flops = 2 * copied, 2 * side**3
    copy = _row("copy", dtype, "roof", {"bytes": copied}, times["copy"])
    product = _row("matmul", dtype, "roof", {"side": side}, times["matmul"])
    copy |= {"gb_s": round(moved / copy["p50_ms"] / 1e6, 2), "bytes": moved}
    product |= {"tflops": round(flops / product["p50_ms"] / 1e9, 4), "flops": flops}
    return [copy, product]


def launch(device: str, *, samples: int) -> list[dict[str, Any]]:
    """Milliseconds of one small kernel among many: as Python starts it, and replayed from a graph."""
    x = torch.zeros(32, device=device)

    def many() -> None:
        for _ in range(_LAUNCHES):
            x.add_(1)

    calls: dict[str, Any] = {"python": many}
    if timing.on_gpu(device):
        calls["graph"] = timing.captured([many])
    each, batch = {name: [call] for name, call in calls.items()}, dict.fromkeys(calls, _LAUNCHES)
    times = timing.interleaved(each, samples=samples, device=device, batch=batch)
    sizes = {"n": x.numel()}
    return [_row("launch", "float32", "one", sizes, t) | {"impl": n} for n, t in times.items()]


def _row(op: str, dtype: str, shape: str, sizes: dict[str, int], times: timing.Times) -> Any:
    row = {"suite": "machine", "op": op, "impl": "torch", "shape": shape, "sizes": sizes}
    row |= {"dtype": dtype, "mode": "fwd"}
    row |= dict.fromkeys(("gb_s", "tflops", "peak_mb", "bytes", "flops"))
    return row | {f"p{n}_ms": round(t, 6) for n, t in zip((20, 50, 80), times, strict=True)}
