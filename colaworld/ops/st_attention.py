"""`st_attention`: attention along the spatial or the temporal axis of a clip.

The public function: checks, the choice of an implementation, and what autograd and the compiler
must know of the compiled op. The meaning is in `reference.py`, the CPU kernel in
`csrc/cpu/st_attention_kernel.h`.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from colaworld.ops import _dispatch, _native, attention_backends, reference
from colaworld.ops._checks import check_beside
from colaworld.ops.attention_backends import Backend

_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def _cpu_refuses(facts: _dispatch.Facts) -> str | None:
    if not _native.AVAILABLE:
        return _native.reason()
    if facts.device != "cpu":
        return f"the tensors are on {facts.device}, it needs cpu"
    if facts.dtype not in _CPU_DTYPES:
        return f"the dtype is {facts.dtype}, it takes float32, float64 and bfloat16"
    return None


def _cpu(
    qkv: Tensor,  # [B, T, S, 3, H, D]
    q_weight: Tensor | None,  # [D]
    k_weight: Tensor | None,  # [D]
    cos: Tensor | None,  # [L, D/2]
    sin: Tensor | None,  # [L, D/2]
    *,
    temporal: bool,
    causal: bool,
    eps: float,
    scale: float,
) -> Tensor:  # [B, T, S, H, D]
    if cos is not None and sin is not None and (cos.requires_grad or sin.requires_grad):
        # The kernel has no gradient for the tables: norm and rotation run outside of it.
        q, k, v = qkv.unbind(3)
        if q_weight is not None:
            q = reference.rms_norm(q, q_weight, eps=eps)
        if k_weight is not None:
            k = reference.rms_norm(k, k_weight, eps=eps)
        shape = (-1, 1, 1, cos.shape[1]) if temporal else (-1, 1, cos.shape[1])
        cos, sin = cos.reshape(shape), sin.reshape(shape)
        q, k = (reference.rotate_pairs(x, cos, sin) for x in (q, k))
        qkv = torch.stack((q, k, v), 3)
        q_weight = k_weight = cos = sin = None
    return torch.ops.colaworld.st_attention(
        qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale
    )


def _fake(qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale) -> Tensor:
    B, T, S, _, H, D = qkv.shape
    return qkv.new_empty((B, T, S, H, D))


def _fake_backward(
    grad, qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale
) -> tuple[Tensor, Tensor, Tensor]:
    def of(weight: Tensor | None) -> Tensor:
        return qkv.new_empty((0,)) if weight is None else weight.new_empty(weight.shape)

    return qkv.new_empty(qkv.shape), of(q_weight), of(k_weight)


def _setup_context(ctx, inputs, output) -> None:
    qkv, q_weight, k_weight, cos, sin, *ctx.options = inputs
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None and table.requires_grad:
            raise ValueError(
                f"st_attention: {name}: the compiled op has no gradient for it; call "
                "colaworld.ops.st_attention, or detach the table"
            )
    ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, q_weight, k_weight, cos, sin = ctx.saved_tensors
    dqkv, dq_weight, dk_weight = torch.ops.colaworld.st_attention_backward(
        grad, qkv, q_weight, k_weight, cos, sin, *ctx.options
    )
    dq_weight = None if q_weight is None else dq_weight
    dk_weight = None if k_weight is None else dk_weight
    return dqkv, dq_weight, dk_weight, None, None, None, None, None, None


def _setup_no_second(ctx, inputs, output) -> None:
    pass


def _no_second(ctx, *_) -> None:
    raise RuntimeError(
        "st_attention: the cpu implementation has no second derivative; compute it within "
        'colaworld.ops.force("reference")'
    )


if _native.AVAILABLE:
    torch.library.register_fake("colaworld::st_attention", _fake)
    torch.library.register_autograd(
        "colaworld::st_attention", _backward, setup_context=_setup_context
    )
    torch.library.register_fake("colaworld::st_attention_backward", _fake_backward)
    torch.library.register_autograd(
        "colaworld::st_attention_backward", _no_second, setup_context=_setup_no_second
    )

_dispatch.register(
    "st_attention",
    (
        _dispatch.Implementation("cpu", _cpu, _cpu_refuses),
        _dispatch.Implementation("reference", reference.st_attention, _dispatch.always),
    ),
)


def st_attention(
    qkv: Tensor,
    *,
    axis: Literal["spatial", "temporal"],
    causal: bool = False,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    rope: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Self-attention along one axis, with q/k norm and rotary embedding inside.

    Args:
        qkv: [B, T, S, 3, H, D] queries, keys and values; any strides.
        axis: "spatial" attends over S within each frame, "temporal" over T at each location.
        causal: a position sees itself and earlier positions of the chosen axis only.
        q_weight, k_weight: [D] weights of an RMSNorm over D, per head, computed in float32, cast
            back and multiplied; None leaves the queries (keys) as they are.
        eps: added to the mean square inside that norm.
        rope: (cos, sin), each [L, D/2] with L = T (temporal) or S (spatial), applied after the
            norm to interleaved pairs; None for no rotation.
        scale: factor on the scores; 1 / sqrt(D) when None.
        backend: "auto", "fused", "sdpa", "flex" or "flash" (`attention_backends.py`). The last three
            are what is named, whatever COLAWORLD_OPS or `force` say.

    Returns:
        [B, T, S, H, D] in the dtype of qkv, contiguous.

    Raises:
        ValueError: an argument of a wrong shape, device or value; a forced implementation refuses,
            or the named backend cannot run.

    Source: scaled dot-product attention (Vaswani et al. 2017, section 3.2.1); rotary embedding (Su
    et al. 2021, equation 34); normalised queries and keys (Henry et al. 2020) with RMSNorm.
    """
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv: expected [B, T, S, 3, H, D], got {list(qkv.shape)}")
    if not qkv.is_floating_point():
        raise ValueError(f"qkv: expected a floating-point tensor, got {qkv.dtype}")
    if axis not in ("spatial", "temporal"):
        raise ValueError(f"axis: expected 'spatial' or 'temporal', got {axis!r}")
    temporal = axis == "temporal"
    length, D = qkv.shape[1 if temporal else 2], qkv.shape[5]
    if q_weight is not None:
        check_beside("q_weight", q_weight, (D,), "qkv", qkv)
    if k_weight is not None:
        check_beside("k_weight", k_weight, (D,), "qkv", qkv)
    cos = sin = None
    if rope is not None:
        if D % 2:
            raise ValueError(f"rope: rotates pairs, so qkv needs an even D, got D = {D}")
        cos, sin = rope
        check_beside("rope cos", cos, (length, D // 2), "qkv", qkv)
        check_beside("rope sin", sin, (length, D // 2), "qkv", qkv)
    if backend in ("auto", "fused"):
        chosen = _dispatch.pick("st_attention", qkv, fused=backend == "fused")
        run = chosen.run
        if backend == "auto" and not torch.compiler.is_compiling():
            attention_backends.tell_once(chosen.name, axis, qkv.device.type, qkv.dtype)
    else:
        attend = attention_backends.attend(backend, qkv, q_weight, k_weight)
        run = functools.partial(reference.st_attention, attend=attend)
    return run(
        qkv,
        q_weight,
        k_weight,
        cos,
        sin,
        temporal=temporal,
        causal=causal,
        eps=eps,
        scale=D**-0.5 if scale is None else scale,
    )
