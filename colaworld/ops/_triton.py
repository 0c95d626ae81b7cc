"""Whether the Triton kernels can run, and why not.

They are implemented for CUDA and, while Triton's interpreter is on (TRITON_INTERPRET=1 before Python
starts), for the CPU as well, which is how they are tested where there is no GPU.
Not here: kernels (`colaworld.kernels`), which are imported when one is about to run, not before, and
how they become ops (`_registry.py`).
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from colaworld.ops import _dispatch

# Both are read once: Triton itself decides at import, and a traced graph must not depend on them.
INSTALLED = find_spec("triton") is not None
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")

DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)  # where a twin is implemented
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# numpy computes for the interpreter: it has float64, and its bfloat16 is silently wrong.
INTERPRETED_DTYPES = (torch.float32, torch.float64, torch.float16)
CAPABILITY = (8, 0)  # the oldest that Triton's bfloat16 and asynchronous copies are made for


def refuses(facts: _dispatch.CallInfo) -> str | None:
    """Why no Triton kernel can run for a call led by such a tensor; None when one can."""
    if not INSTALLED:
        return "triton is not installed; it comes with a CUDA build of torch"
    if facts.device != "cuda" and not (INTERPRETED and facts.device == "cpu"):
        return f"the tensors are on {facts.device}, it needs cuda"
    dtypes = INTERPRETED_DTYPES if facts.device == "cpu" else DTYPES
    if facts.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"the dtype is {facts.dtype}, it takes {names}"
    if facts.device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        have = (properties.major, properties.minor)
        if have < CAPABILITY:
            return f"the GPU has compute capability {have}, it needs {CAPABILITY} or later"
    return None
