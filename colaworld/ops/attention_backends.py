"""Attention backends that a user can name, and why one cannot run.

    auto    the first implementation of `st_attention` that does not refuse; logs once what it took
    fused   one kernel with norm and rotation inside: cpu, triton or cuda
    sdpa    torch's scaled_dot_product_attention; which kernel it runs is torch's choice
    flex    torch's FlexAttention, compiled
    flash   the package flash-attn

FlashAttention 3 and 4 are reached through `sdpa`, once the user has activated them in torch: that
switch is global to the process, so this library never touches it.
Not here: what attention means (`reference.py`) and the fused kernels (`st_attention.py`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import flex_attention

from colaworld.ops import _dispatch, reference

log = logging.getLogger(__name__)

Backend = Literal["auto", "fused", "sdpa", "flex", "flash"]
BACKENDS: tuple[str, ...] = get_args(Backend)

# q, k, v [N, H, L, D] -> [N, H, L, D]
Attend = Callable[..., Tensor]


class BackendUnavailableError(_dispatch.NoImplementationError):
    """The named attention backend cannot run; the message says why and what to do."""


def missing(backend: str) -> str | None:
    """What has to be installed before `backend` can run anywhere; None when nothing has.

    Raises ValueError on an unknown name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "flash" and importlib.util.find_spec("flash_attn") is None:
        return (
            "attention 'flash' needs the package flash-attn: pip install 'colaworld[flash]' (it "
            "compiles against your CUDA torch), or use 'sdpa', which runs torch's own FlashAttention"
        )
    return None


def attend(backend: str, qkv: Tensor, *weights: Tensor | None) -> Attend:
    """The function that runs `backend` ("sdpa", "flex" or "flash") for this qkv.

    Raises BackendUnavailableError with the reason.
    """
    reason = missing(backend)
    if (
        reason is None
        and backend == "flex"
        and qkv.device.type == "cpu"
        and _wants_grad(qkv, *weights)
    ):
        reason = "attention 'flex' has no backward on the CPU; use 'auto', 'fused' or 'sdpa'"
    if reason is None and backend == "flash":
        if qkv.device.type != "cuda":
            reason = f"attention 'flash' runs on CUDA devices, the tensors are on {qkv.device}"
        elif qkv.dtype not in (torch.float16, torch.bfloat16):
            reason = f"attention 'flash' takes float16 and bfloat16, got {qkv.dtype}"
    if reason is not None:
        raise BackendUnavailableError(reason)
    return {"sdpa": reference.sdpa, "flex": _flex, "flash": _flash}[backend]


def _wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _flex(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    mask = _causal_mask(q.shape[2], str(q.device)) if causal else None
    return flex()(q, k, v, block_mask=mask, scale=scale)


def flex() -> Callable[..., Any]:
    """FlexAttention, compiled; in a graph that is being traced the plain function: that compiles it."""
    if torch.compiler.is_compiling():
        return flex_attention.flex_attention
    return _compiled_flex()


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention.flex_attention, dynamic=False)


@functools.lru_cache(maxsize=16)
def _causal_mask(length: int, device: str) -> Any:
    return flex_attention.create_block_mask(
        lambda b, h, i, j: i >= j, None, None, length, length, device=device
    )


def _flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    function = importlib.import_module("flash_attn").flash_attn_func
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # its order is [N, L, H, D]
    return function(q, k, v, causal=causal, softmax_scale=scale).transpose(1, 2)


@functools.cache
def tell_once(implementation: str, axis: str, device: str, dtype: torch.dtype) -> None:
    """One line in the log for each thing that `auto` took."""
    log.info("attention 'auto' on %s, %s, %s axis: %s", device, dtype, axis, implementation)
