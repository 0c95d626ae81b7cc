"""`colaworld info`: versions, devices, what was compiled, what each op would run and why.

Reads facts and prints them; changes nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import colaworld
from colaworld import ops

PACKAGES = ("torch", "triton", "numpy", "av", "pyarrow", "safetensors", "tensorboard", "crafter")
# A small call of each op: the shape decides nothing today, but the dtype and the device do.
EXAMPLES = {
    "st_attention": (1, 2, 4, 3, 1, 8),
    "vector_quantize": (4, 8),
    "code_statistics": (4, 8),
    "adaln": (1, 2, 4, 8),
}
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


def collect() -> dict[str, Any]:
    """Everything `colaworld info` tells, as plain values that JSON takes."""
    kinds = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    table = [
        {
            "op": op,
            "device": kind,
            "implementation": verdict.name,
            "would_run": verdict.would_run,
            "reason": verdict.reason,
        }
        for op in ops.names()
        for kind in kinds
        for verdict in ops.explain(op, torch.empty(EXAMPLES[op], device=kind))
    ]
    return {
        "colaworld": colaworld.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "extension": ops.build_info() or {"absent": ops.why_not_compiled()},
        "kernels": importlib.util.find_spec("colaworld.kernels") is not None,
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "ops": table,
    }


def _print(info: dict[str, Any]) -> None:
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
    for name, value in info["environment"].items():
        console.print(f"variable   {name}={value}", markup=False)
    table = Table(title="ops (float32)", title_justify="left")
    for column in ("op", "device", "implementation", "runs", "why not"):
        table.add_column(column, overflow="fold")
    previous = None
    for row in info["ops"]:
        call = (row["op"], row["device"])
        names = call if call != previous else ("", "")
        previous = call
        runs = "[green]yes[/]" if row["would_run"] else "no"
        table.add_row(*names, row["implementation"], runs, row["reason"])
    console.print(table)


def run(argv: Sequence[str]) -> int:
    """Entry of the verb. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="colaworld info",
        description="Versions, devices, what was compiled, and what each op would run.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args(list(argv))
    info = collect()
    if arguments.json:
        json.dump(info, sys.stdout, indent=2)
        print()
    else:
        _print(info)
    return 0
