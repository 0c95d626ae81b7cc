"""Attention backends that a user can name, and why one cannot run.

    auto    the first implementation of `st_attention` that does not refuse; logs once what it took
    fused   one kernel with norm and rotation inside: cpu, triton or cuda
    sdpa    torch's scaled_dot_product_attention; which kernel it runs is torch's choice
    cudnn   the same, held to the kernels of cuDNN
    flex    torch's FlexAttention, compiled
    flash   FlashAttention 2, the package flash-attn
    flash3  FlashAttention 3, for Hopper, built from source
    flash4  FlashAttention 4, the package flash-attn-4 (`_flash4.py`)

All but the first two run behind `qkv_norm_rope` and can be traced in one graph. FlashAttention 3 and 4 are
also reached through `sdpa`, once the user has activated them in torch: that switch is global to the
process, so this library never touches it.
Not here: what attention means (`reference.py`) and the fused kernels (`st_attention.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from colaworld.contracts import AttentionBackend as Backend
from colaworld.ops import _dispatch, _flash4, reference
from colaworld.ops.block_mask import block_mask

log = logging.getLogger(__name__)

BACKENDS: tuple[str, ...] = get_args(Backend)

# q, k, v [N, L, H, D] -> [N, L, H, D]; keyword arguments causal and scale
Attend = Callable[..., Tensor]


@dataclass(frozen=True)
class _OnGPU:
    """What a backend needs that runs float16 and bfloat16 on a GPU."""

    modules: tuple[str, ...]  # all of them
    install: str
    majors: tuple[int, ...]  # of compute capabilities
    multiple: int = 8  # that the channels of a head must be


# Sources, read 2026: the packages' README files and interfaces (github.com/Dao-AILab/flash-attention:
# flash_attn/flash_attn_interface.py, hopper/flash_attn_interface.py, flash_attn/cute/interface.py), and
# torch/nn/attention/_fa3.py and _fa4.py, which name the same generations of GPUs. How many channels a
# head may have depends on the build and the GPU (256 in most, 128 on Blackwell): the packages say it.
_ON_GPU = {
    "cudnn": _OnGPU(
        (), "a torch that was built with cuDNN: https://pytorch.org/get-started", (8, 9, 10, 11, 12)
    ),
    # An install of FlashAttention 4 alone leaves a package flash_attn as well. Version 2 pads channels.
    "flash": _OnGPU(
        ("flash_attn.flash_attn_interface",),
        "the package flash-attn: pip install 'colaworld[flash]' (it compiles against your CUDA torch)",
        (8, 9, 10, 11, 12),
        multiple=1,
    ),
    "flash3": _OnGPU(
        ("flash_attn_interface",),
        "FlashAttention 3: python setup.py install in the folder hopper of "
        "https://github.com/Dao-AILab/flash-attention",
        (9,),
    ),
    # flash-attn ships the sources of version 4, too, but not the compiler that they need.
    "flash4": _OnGPU(
        ("flash_attn.cute", "cutlass"),
        "the package flash-attn-4: pip install 'colaworld[flash4]'",
        (9, 10, 11, 12),
    ),
}


class BackendUnavailableError(_dispatch.NoImplementationError):
    """The named attention backend cannot run; the message says why and what to do."""


def missing(backend: str) -> str | None:
    """What has to be installed before `backend` can run anywhere; None when nothing has.

    Raises ValueError on an unknown name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    needs = _ON_GPU.get(backend)
    if needs is None:
        return None
    if backend == "cudnn":
        there = torch.backends.cudnn.is_available()
    else:
        there = all(_importable(module) for module in needs.modules)
    if there:
        return None
    return f"attention {backend!r} needs {needs.install}; or use 'sdpa', which torch brings along"


def _importable(module: str) -> bool:
    """Whether there is such a module; the packages above it are imported."""
    if module in sys.modules:
        return True
    above = module.rpartition(".")[0]
    return (not above or _importable(above)) and importlib.util.find_spec(module) is not None


@_dispatch.constant_in_graphs
def _refuses_here(backend: str) -> str | None:
    """Why no call of `backend` can run in this process; None when one can."""
    reason = missing(backend)
    if reason is None and backend in _ON_GPU and torch.cuda.is_available():
        have, majors = torch.cuda.get_device_capability(), _ON_GPU[backend].majors
        if have[0] not in majors:
            takes = ", ".join(f"{major}.x" for major in majors)
            reason = (
                f"attention {backend!r} takes GPUs of compute capability {takes}, this one has "
                f"{have[0]}.{have[1]}"
            )
    return reason


def attend(backend: str, qkv: Tensor, *weights: Tensor | None) -> Attend:
    """The function that runs `backend` (any but "auto" and "fused") for this qkv [..., 3, H, D].

    Raises BackendUnavailableError with the reason.
    """
    reason = _refuses_here(backend)
    if reason is None and backend in _ON_GPU:
        reason = _refuses_tensor(backend, qkv)
    on_cpu = qkv.device.type == "cpu"
    if reason is None and backend == "flex" and on_cpu and wants_grad(qkv, *weights):
        reason = "attention 'flex' has no backward on the CPU; use 'auto', 'fused' or 'sdpa'"
    if reason is not None:
        raise BackendUnavailableError(reason)
    return _ATTEND[backend]


def _refuses_tensor(backend: str, qkv: Tensor) -> str | None:
    """Of the backends for GPUs: why this qkv cannot be taken."""
    if qkv.device.type != "cuda":
        return f"attention {backend!r} runs on CUDA devices, the tensors are on {qkv.device}"
    if qkv.dtype not in (torch.float16, torch.bfloat16):
        return f"attention {backend!r} takes float16 and bfloat16, got {qkv.dtype}"
    D, multiple = qkv.shape[-1], _ON_GPU[backend].multiple
    if D % multiple:
        return f"attention {backend!r} takes heads of a multiple of {multiple} channels, got {D}"
    return None


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a gradient of what is computed from these may be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    """torch's scaled_dot_product_attention on [N, L, H, D], without a copy of ours."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # its order is [N, H, L, D]
    return reference.sdpa(q, k, v, causal=causal, scale=scale).transpose(1, 2)


_CUDNN = SDPBackend.CUDNN_ATTENTION


def _cudnn(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    with sdpa_kernel(_CUDNN):
        return sdpa(q, k, v, causal=causal, scale=scale)


def _flex(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    mask = block_mask(q.shape[1], q.shape[1], 1, str(q.device)) if causal else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return flex()(q, k, v, block_mask=mask, scale=scale).transpose(1, 2)


def flex() -> Callable[..., Any]:
    """FlexAttention, compiled; in a graph that is being traced the plain function: that compiles it."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():
        return flex_attention
    return _compiled_flex()


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


# The packages are imported where they are called: a graph that is being traced does it as it traces.


def _flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Its forward and backward are custom ops from flash-attn 2.7 on: traced in one graph."""
    from flash_attn.flash_attn_interface import flash_attn_func

    return flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)


def _flash3(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Its forward and backward are custom ops since 2025 (pull request 1769): traced in one graph.

    Older ones gave the scores' logarithmic sums as a second output.
    """
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)
    return out[0] if isinstance(out, tuple) else out


_ATTEND: dict[str, Attend] = {
    "sdpa": sdpa,
    "cudnn": _cudnn,
    "flex": _flex,
    "flash": _flash,
    "flash3": _flash3,
    "flash4": _flash4.attend,
}


@functools.cache
def _told(device: str, dtype: torch.dtype) -> set[str]:
    return set()


def tell_once(implementation: str, axis: str, device: str, dtype: torch.dtype) -> None:
    """One line in the log for each thing that `auto` took; the second axis speaks up where it differs."""
    told = _told(device, dtype)
    if implementation not in told:
        only = f", {axis} axis" if told else ""
        told.add(implementation)
        log.info("attention 'auto' on %s, %s%s: %s", device, dtype, only, implementation)
