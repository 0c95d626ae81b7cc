"""`st_attention`: attention along the spatial or the temporal axis of a clip.

The public function: checks, the choice of an implementation, and what autograd and the compiler
must know of the compiled op and of its Triton twin. The meaning is in `reference.py`, the CPU kernel
in `csrc/cpu/st_attention_kernel.h`, the CUDA kernels in `csrc/cuda/st_attention*_kernel.cuh`, the
Triton kernels in `kernels/st_attention.py`.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from colaworld.ops import (
    _cuda,
    _dispatch,
    _eager,
    _native,
    _triton,
    attention_backends,
    reference,
)
from colaworld.ops._checks import check_beside
from colaworld.ops.attention_backends import Backend

_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# Of the CUDA kernels: they hold a whole sequence, and 16-bit heads in tiles without padding.
_CUDA_LONGEST = 32
_CUDA_HEAD_DIMS = (64, 72, 96, 128)


def _cpu_refuses(facts: _dispatch.Facts) -> str | None:
    if not _native.AVAILABLE:
        return _native.reason()
    if facts.device != "cpu":
        return f"the tensors are on {facts.device}, it needs cpu"
    if facts.dtype not in _CPU_DTYPES:
        return f"the dtype is {facts.dtype}, it takes float32, float64 and bfloat16"
    return None


def _cuda_refuses(facts: _dispatch.Facts) -> str | None:
    reason = _cuda.refuses(facts)
    if reason is not None:
        return reason
    if facts.axis == "spatial":
        return "the axis is spatial, it attends over time only"
    T, D = facts.shape[1], facts.shape[5]
    if T > _CUDA_LONGEST:
        return f"there are {T} frames, it takes at most {_CUDA_LONGEST}"
    if facts.dtype == torch.float32:
        if D % 8 or not 8 <= D <= 128:
            return f"the heads have {D} channels, in float32 it takes multiples of 8 up to 128"
    elif D not in _CUDA_HEAD_DIMS:
        return f"the heads have {D} channels, it takes 64, 72, 96 and 128"
    return None


# The compiled op: the dispatcher goes by the device, so this is "cpu" and "cuda" alike.
def _compiled(
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
    _refuse_transforms(qkv, q_weight, k_weight, cos, sin)
    if _tables_want_gradient(cos, sin):
        qkv = _prepared_outside(qkv, q_weight, k_weight, cos, sin, temporal=temporal, eps=eps)
        q_weight = k_weight = cos = sin = None
    return torch.ops.colaworld.st_attention(
        qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale
    )


def _refuse_transforms(*tensors: Tensor | None) -> None:
    # torch's fused attention has no forward mode of its own.
    way = " (forward mode: and torch.nn.attention.sdpa_kernel(SDPBackend.MATH))"
    _eager.refuse_transforms("st_attention", *tensors, beside=way)


def _tables_want_gradient(cos: Tensor | None, sin: Tensor | None) -> bool:
    return cos is not None and sin is not None and (cos.requires_grad or sin.requires_grad)


def _prepared_outside(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    temporal: bool,
    eps: float,
) -> Tensor:
    """qkv after norm and rotation, for kernels that have no gradient for the tables."""
    q, k, v = qkv.unbind(3)
    if q_weight is not None:
        q = reference.rms_norm(q, q_weight, eps=eps)
    if k_weight is not None:
        k = reference.rms_norm(k, k_weight, eps=eps)
    shape = (-1, 1, 1, cos.shape[1]) if temporal else (-1, 1, cos.shape[1])
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    q, k = (reference.rotate_pairs(x, cos, sin) for x in (q, k))
    return torch.stack((q, k, v), 3)


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
        "st_attention: the compiled op has no second derivative; compute it within "
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

# Triton: one kernel for a short temporal axis; norm and rotation ahead of the attention that torch
# chooses for everything else.

_FRAMES, _CHANNELS = 32, 128  # the largest tile of kernels/st_attention.py
_CHANNELS_OF_FLOAT32 = 64  # beyond, the backward pass in float32 does not fit into the registers


def _triton_kernel(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    *,
    temporal: bool,
    causal: bool,
    eps: float,
    scale: float,
) -> Tensor:
    _refuse_transforms(qkv, q_weight, k_weight, cos, sin)
    if _tables_want_gradient(cos, sin):
        qkv = _prepared_outside(qkv, q_weight, k_weight, cos, sin, temporal=temporal, eps=eps)
        q_weight = k_weight = cos = sin = None
    inputs = (qkv, q_weight, k_weight, cos, sin)
    if not (temporal and _tile_fits(qkv)):
        return _prologue_and_attention(*inputs, temporal, causal, eps, scale)
    if torch.compiler.is_compiling():
        return torch.ops.colaworld.st_attention_triton(*inputs, temporal, causal, eps, scale)
    if _eager.wants_gradient(*(x for x in inputs if x is not None)):
        return _RecordedTriton.apply(*inputs, temporal, causal, eps, scale)
    return _RecordedTriton.forward(*inputs, temporal, causal, eps, scale)


def _tile_fits(qkv: Tensor) -> bool:
    """Whether the kernel of the temporal axis is the way for such a qkv."""
    T, D = qkv.shape[1], qkv.shape[5]
    if qkv.is_cuda and qkv.dtype == torch.float32 and D > _CHANNELS_OF_FLOAT32:
        return False
    return T <= _FRAMES and D <= _CHANNELS


def _prologue_and_attention(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    temporal: bool,
    causal: bool,
    eps: float,
    scale: float,
) -> Tensor:
    """qk_norm_rope, then torch's attention; autograd goes through the pieces.

    On the spatial axis every operand is a view: q and k of what the prologue wrote, v of qkv itself.
    A temporal axis is not next to the channels, so there q, k and v are copied once.
    """
    B, T, S = qkv.shape[:3]
    parts = qkv.unbind(3)
    if temporal:
        parts = (x.transpose(1, 2) for x in parts)
    q, k, v = (x.flatten(0, 1) for x in parts)  # each [sequences, L, H, D]
    if (q_weight is None) != (k_weight is None):  # the prologue has a norm for both or for none
        if q_weight is not None:
            q = reference.rms_norm(q, q_weight, eps=eps)
        if k_weight is not None:
            k = reference.rms_norm(k, k_weight, eps=eps)
        q_weight = k_weight = None
    if q_weight is not None or cos is not None:
        prologue = _dispatch.select("qk_norm_rope", q)
        tables = (None, None) if cos is None else (cos.detach(), sin.detach())
        q, k = prologue(
            q, k, q_weight, k_weight, *tables, None, (), eps=eps, across=False, half=False
        )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = reference.sdpa(q, k, v, causal=causal, scale=scale).transpose(1, 2)
    out = out.unflatten(0, (B, S if temporal else T))
    out = out.transpose(1, 2) if temporal else out
    # Contiguous, without a copy where the attention left it so; unlike contiguous(), reshape can be
    # traced for a CUDA tensor where torch was built without CUDA.
    return out.reshape(-1).view(out.shape)


def _launch(qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale) -> Tensor:
    from colaworld.kernels import st_attention as kernels

    _check_tile("st_attention_triton", qkv, temporal)
    return kernels.temporal_attention(
        qkv, q_weight, k_weight, cos, sin, causal=causal, eps=eps, scale=scale
    )


def _launch_backward(
    grad, qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale
) -> tuple[Tensor, Tensor, Tensor]:
    from colaworld.kernels import st_attention as kernels

    _check_tile("st_attention_triton_backward", qkv, temporal)
    dqkv, *dweights = kernels.temporal_attention_backward(
        grad.to(qkv.dtype), qkv, q_weight, k_weight, cos, sin, causal=causal, eps=eps, scale=scale
    )
    dq_weight, dk_weight = (
        qkv.new_empty((0,)) if weight is None else dweight.to(weight.dtype)
        for weight, dweight in zip((q_weight, k_weight), dweights, strict=True)
    )
    return dqkv, dq_weight, dk_weight


def _check_tile(op: str, qkv: Tensor, temporal: bool) -> None:
    """The op stands below the public function: what no kernel was written for stops here."""
    if not temporal:
        raise ValueError(
            f"{op}: temporal: expected True, got False; the kernel has no spatial axis"
        )
    if qkv.ndim != 6 or qkv.shape[3] != 3 or qkv.shape[1] > _FRAMES or qkv.shape[5] > _CHANNELS:
        raise ValueError(
            f"{op}: qkv: expected [B, T, S, 3, H, D] with T <= {_FRAMES} and D <= {_CHANNELS}, "
            f"got {list(qkv.shape)}"
        )


def _triton_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, q_weight, k_weight, cos, sin = ctx.saved_tensors
    dqkv, dq_weight, dk_weight = torch.ops.colaworld.st_attention_triton_backward(
        grad, qkv, q_weight, k_weight, cos, sin, *ctx.options
    )
    dq_weight = None if q_weight is None else dq_weight
    dk_weight = None if k_weight is None else dk_weight
    return dqkv, dq_weight, dk_weight, None, None, None, None, None, None


class _RecordedTriton(torch.autograd.Function):
    """The Triton kernel in eager mode, with the gradient that is registered on the op."""

    @staticmethod
    def forward(*inputs) -> Tensor:
        with _eager.below_autograd():
            return torch.ops.colaworld.st_attention_triton(*inputs)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_triton_backward)


_ARGUMENTS = (
    "Tensor qkv, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, bool temporal, "
    "bool causal, float eps, float scale"
)
_triton.define(
    "st_attention_triton",
    f"({_ARGUMENTS}) -> Tensor",
    _launch,
    _fake,
    backward=_triton_backward,
    setup_context=_setup_context,
)
_triton.define(
    "st_attention_triton_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> (Tensor dqkv, Tensor dq_weight, Tensor dk_weight)",
    _launch_backward,
    _fake_backward,
    backward=_triton.no_second_derivative("st_attention"),
)

_dispatch.register(
    "st_attention",
    (
        _dispatch.Implementation("cuda", _compiled, _cuda_refuses),
        _dispatch.Implementation("cpu", _compiled, _cpu_refuses),
        _dispatch.Implementation("triton", _triton_kernel, _triton.refuses),
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
        chosen = _dispatch.pick("st_attention", qkv, axis=axis, fused=backend == "fused")
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
