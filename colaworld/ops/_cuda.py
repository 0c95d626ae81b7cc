"""What the compiled CUDA kernels share: whether they can run, and why not.

They are registered for CUDA tensors on the same ops as the CPU kernels (`csrc/cuda`), so a call
needs no function of its own. A library without them, or one that is older than the GPU or newer
than its driver, is normal: the predicate says so and the next implementation runs.
Not here: what a single op can take (its own file), and loading the library (`_native.py`).
"""

from __future__ import annotations

import functools

import torch

from colaworld.ops import _dispatch, _native

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PTX = 90  # compiled beside the machine code: any GPU from here on can translate it

_INFO = _native.build_info() or {}
# Compute capabilities times ten that the library has machine code for; empty without CUDA.
ARCHITECTURES: tuple[int, ...] = tuple(_INFO.get("cuda_architectures", ()))


def runs_on(capability: int, architectures: tuple[int, ...] = ARCHITECTURES) -> bool:
    """Whether a GPU of this compute capability (times ten) can run the library.

    Machine code runs on later GPUs of the same generation; PTX on any later GPU.
    """
    same = any(a // 10 == capability // 10 and a <= capability for a in architectures)
    return same or (bool(architectures) and capability >= PTX)


@functools.cache
def _reason_here() -> str | None:
    """Why this process's GPU cannot run the library; None when it can, or when there is no GPU."""
    if not torch.cuda.is_available():
        return None  # fake tensors: the choice is that of a machine with a GPU
    if not _INFO["cuda_stream"]:
        return "the library does not find the CUDA stream of this torch: rebuild it"
    major, minor = torch.cuda.get_device_capability()
    if not runs_on(10 * major + minor):
        built = ", ".join(map(str, ARCHITECTURES))
        return f"the GPU has compute capability {major}.{minor}, the library was built for {built}"
    version = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    driver, note = version // 1000, _INFO["cuda_note"]  # "nvcc 13.0.88"
    if driver < int(note.split()[-1].split(".")[0]):
        return f"the driver is for CUDA {driver}, the library was built with {note}: rebuild it"
    return None


@_dispatch.constant_in_graphs
def _refuses_here() -> str | None:
    return _reason_here()


def refuses(facts: _dispatch.CallInfo) -> str | None:
    """Why no compiled CUDA kernel can run for a call led by such a tensor; None when one can."""
    if not _native.AVAILABLE:
        return _native.reason()
    if facts.device != "cuda":
        return f"the tensors are on {facts.device}, it needs cuda"
    if not ARCHITECTURES:
        return f"the library was built without CUDA: {_INFO['cuda_note']}"
    if facts.dtype not in DTYPES:
        return f"the dtype is {facts.dtype}, it takes float32, bfloat16 and float16"
    return _refuses_here()
