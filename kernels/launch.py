"""What every launch function needs: the device to launch on, its architecture, strides for a kernel.

Not here: kernels and block sizes (`tuning.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
import triton.language as tl
from torch import Tensor

VECTOR = 8  # elements: 16 bytes of the 16-bit types, one load instruction


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the one of `tensor`."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def architecture(tensor: Tensor) -> int | None:
    """80, 90, 100, ... of the GPU that holds `tensor`; None on a CPU (the interpreter)."""
    if not tensor.is_cuda:
        return None
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def unit_of(strides: Iterable[int]) -> int:
    """VECTOR when it divides every stride, else 1; a kernel takes strides in this unit.

    Triton looks at run time whether 16 divides an argument, and 72 channels it does not: told that
    each stride is 8 times something, it loads 16 bytes at once all the same.
    """
    return VECTOR if all(stride % VECTOR == 0 for stride in strides) else 1


def wide_of(dtype: torch.dtype) -> tl.dtype:
    """The dtype of sums."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def precision_of(dtype: torch.dtype) -> str:
    """How a product of float32 is made of tensor-core products; other dtypes do not read it.

    Three tf32 products are as exact as float32 to a few bits; one alone has 10 bits of mantissa.
    """
    return "tf32x3" if dtype == torch.float32 else "ieee"
