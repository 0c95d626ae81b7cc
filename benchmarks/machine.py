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
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from colaworld import ops

from . import gate
from .case import Call, Case
from .shapes import Shape

PACKAGES = ("colaworld", "av", "torchcodec", "triton", "vector-quantize-pytorch")
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


@cache
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


def ceilings(device: str, dtype: str, *, copied: int = 0, side: int = 0) -> list[Case]:
    """Two cases: a copy on the device, and a matrix product.

    `copied` bytes and matrices of `side`; by themselves as large as the device needs.
    """
    kind, number = torch.device(device).type, getattr(torch, dtype)
    copied, side = copied or _COPIED[kind], side or _SIDE[kind]

    def copy(_: str) -> list[Call]:
        source = torch.ones(copied // number.itemsize, device=device, dtype=number)
        target = torch.empty_like(source)
        return [lambda: target.copy_(source)]

    def product(_: str) -> list[Call]:
        # Random numbers: a GPU multiplies ones and zeros faster, since fewer bits change.
        g = torch.Generator(device).manual_seed(0)
        a, b = (torch.randn(side, side, generator=g, device=device).to(number) for _ in range(2))
        return [lambda: torch.mm(a, b)]

    how, large, square = (f"{dtype}/fwd", ["torch"]), {"bytes": copied}, {"side": side}
    return [
        Case.of("machine", "copy", Shape("roof", large, ""), *how, copy, bytes_moved=2 * copied),
        Case.of("machine", "matmul", Shape("roof", square, ""), *how, product, flops=2 * side**3),
    ]


def launches(device: str) -> list[Case]:
    """One small kernel among many: as Python starts it, and replayed from a graph."""

    def many(_: str) -> list[Call]:
        x = torch.zeros(32, device=device)
        return [lambda: x.add_(1)] * _LAUNCHES

    given = ("machine", "launch", Shape("one", {"n": 32}, ""), "float32/fwd")
    return [Case.of(*given, [name], many, graph=name == "graph") for name in ("python", "graph")]
