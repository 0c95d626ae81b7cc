"""`colaworld info`: versions, devices, what was compiled, what each op would run and why.

Reads facts and prints them; changes nothing. torch is imported where it is asked: --help needs none of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import colaworld
from colaworld.cli.command_line import from_command_line

PACKAGES = ("torch", "triton", "numpy", "av", "pyarrow", "safetensors", "tensorboard", "crafter")

VARIABLES = (
    "COLAWORLD_OPS",
    "COLAWORLD_NO_EXTENSION",
    "COLAWORLD_CPU_ISA",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [
        {"device": "cpu", "name": platform.machine(), "threads": torch.get_num_threads()}
    ]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        devices.append(
            {
                "device": f"cuda:{i}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gb": round(properties.total_memory / 2**30, 1),
            }
        )
    return devices


def _explained(device: str, dtype: str) -> list[dict[str, Any]]:
    """What each op would run. A device that is not here is asked about with fake tensors."""
    import torch
    from torch._subclasses import FakeTensorMode

    from colaworld import ops

    here = device == "cpu" or torch.cuda.is_available()
    with contextlib.nullcontext() if here else FakeTensorMode():
        return [
            {
                "op": op,
                "axis": axis,
                "device": device,
                "dtype": dtype,
                "implementation": verdict.name,
                "would_run": verdict.would_run,
                "reason": verdict.reason,
            }
            for op, axis, shape in ops.examples()
            for verdict in ops.explain(
                op, torch.empty(shape, device=device, dtype=getattr(torch, dtype)), axis=axis
            )
        ]


def collect(device: str | None = None, dtype: str = "float32") -> dict[str, Any]:
    """Everything `colaworld info` tells, as plain values that JSON takes.

    `device`: what the ops are asked about, here or not; None for every kind that is here.
    """
    import torch

    from colaworld import ops

    kinds = [device] if device else ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    table = [row for kind in kinds for row in _explained(kind, dtype)]
    return {
        "colaworld": colaworld.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "extension": ops.build_info() or {"absent": ops.why_not_compiled()},
        "kernels": importlib.util.find_spec("colaworld.kernels") is not None,
        "attention": {name: ops.attention_backend_missing(name) for name in ops.ATTENTION_BACKENDS},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "ops": table,
    }


def _print(info: dict[str, Any], *, explain: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"colaworld {info['colaworld']}, Python {info['python']}")
    found = [f"{name} {value}" for name, value in info["packages"].items() if value]
    absent = [name for name, value in info["packages"].items() if not value]
    console.print("packages   " + ", ".join(found))
    if absent:
        console.print("absent     " + ", ".join(absent))
    for device in info["devices"]:
        details = [
            f"{key} {value}" for key, value in device.items() if key not in ("device", "name")
        ]
        console.print(f"device     {device['device']}: {', '.join([device['name'], *details])}")
    extension = info["extension"]
    if "absent" in extension:
        console.print(f"extension  absent: {extension['absent']}", markup=False)
    else:
        console.print(
            f"extension  built by {extension['compiler']} against torch "
            f"{extension['torch_built_against']}; instruction sets "
            f"{', '.join(extension['compiled_instruction_sets'])}; "
            f"runs {extension['chosen_instruction_set']}"
        )
        architectures = ", ".join(map(str, extension["cuda_architectures"]))
        console.print(f"cuda       {architectures or 'none'} ({extension['cuda_note']})")
    there = [name for name, reason in info["attention"].items() if reason is None]
    console.print("attention  " + ", ".join(there))
    if explain:
        for reason in filter(None, info["attention"].values()):
            console.print("           " + reason, markup=False, soft_wrap=True)
    for name, value in info["environment"].items():
        console.print(f"variable   {name}={value}", markup=False)
    if explain:
        for row in info["ops"]:
            call = f"{row['op']}{' ' + row['axis'] if row['axis'] else ''} on {row['device']}"
            verdict = "runs" if row["would_run"] else row["reason"]
            console.print(
                f"{call}: {row['implementation']}: {verdict}", markup=False, soft_wrap=True
            )
        return
    dtype = info["ops"][0]["dtype"]
    table = Table(title=f"ops ({dtype})", title_justify="left")
    for column in ("op", "device", "implementation", "runs", "why not"):
        table.add_column(column, overflow="fold")
    previous = None
    for row in info["ops"]:
        place = (f"{row['op']} {row['axis'] or ''}".strip(), row["device"])
        names = place if place != previous else ("", "")
        previous = place
        runs = "[green]yes[/]" if row["would_run"] else "no"
        table.add_row(*names, row["implementation"], runs, row["reason"])
    console.print(table)


def _print_kernels() -> None:
    """A line for each CUDA kernel: what a launch takes, and on a GPU what the driver says of it."""
    import torch

    from colaworld import ops

    kernels = ops.cuda_kernels(ask_driver=torch.cuda.is_available())
    for kernel in kernels:
        shared = kernel.dynamic_shared + (kernel.static_shared or 0)
        line = f"{kernel.name}: {kernel.threads} threads, {shared / 1024:.1f} kB shared"
        if kernel.blocks is not None:
            line += f", {kernel.registers} registers, {kernel.local} bytes of stack and spills"
            line += f", {kernel.blocks} blocks a multiprocessor"
        print(line)
    if not kernels:
        built = ops.build_info()
        print(f"no CUDA kernels: {built['cuda_note'] if built else ops.why_not_compiled()}")


@dataclass(frozen=True)
class InfoOptions:
    """Options of `colaworld info`."""

    json: bool = False
    """Print one JSON object instead."""
    device: Literal["cpu", "cuda"] | None = None
    """Ask about this device, whether or not it is here."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Of the tensors asked about."""
    explain: bool = False
    """A line for each implementation, in full."""
    kernels: bool = False
    """List the CUDA kernels alone: what a launch takes."""


def run(argv: Sequence[str]) -> int:
    """Entry of the verb. Returns the exit status."""
    options: InfoOptions = from_command_line(
        InfoOptions(),
        argv,
        program="colaworld info",
        description="Versions, devices, what was compiled, and what each op would run.",
    )
    if options.kernels:
        _print_kernels()
        return 0
    info = collect(options.device, options.dtype)
    if options.json:
        json.dump(info, sys.stdout, indent=2)
        print()
    else:
        _print(info, explain=options.explain)
    return 0
