"""Whether the compiled CPU kernels can run, and why not.

Not here: what a single op can take (its own file), and loading the library (`_native.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from colaworld.ops import _dispatch, _native

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def refuses(facts: _dispatch.CallInfo) -> str | None:
    """Why no compiled CPU kernel can run for a call led by such a tensor; None when one can."""
    if not _native.AVAILABLE:
        return _native.reason()
    if facts.device != "cpu":
        return f"the tensors are on {facts.device}, it needs cpu"
    if facts.dtype not in DTYPES:
        return f"the dtype is {facts.dtype}, it takes float32, float64 and bfloat16"
    return None


def converted(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in `dtype`. One that has it is handed on untouched: inside a torch.func transform
    of something else, what torch computes counts as that transform's and would be refused.
    """
    return tuple(t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors)
