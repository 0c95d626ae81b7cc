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
    _cpu,
    _cuda,
    _dispatch,
    _registry,
    _triton,
    attention_backends,
    reference,
)
from colaworld.ops._checks import check_beside, constants
from colaworld.ops.attention_backends import Attend, Backend

# Of the CUDA kernels: they hold a whole sequence, and 16-bit heads in tiles without padding.
_CUDA_LONGEST = 32
_CUDA_HEAD_DIMS = (64, 72, 96, 128)


def _cuda_refuses(facts: _dispatch.CallInfo) -> str | None:
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


def _fake(qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale) -> Tensor:
    B, T, S, _, H, D = qkv.shape
    return qkv.new_empty((B, T, S, H, D))


def _fake_backward(
    grad, qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale
) -> tuple[Tensor, Tensor, Tensor]:
    def of(weight: Tensor | None) -> Tensor:
        return qkv.new_empty((0,)) if weight is None else weight.new_empty(weight.shape)

    return qkv.new_empty(qkv.shape), of(q_weight), of(k_weight)


def _save(ctx, inputs, output) -> None:
    qkv, q_weight, k_weight, cos, sin, *ctx.options = inputs
    ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin)


def _gradients(run, ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, q_weight, k_weight, cos, sin = ctx.saved_tensors
    dqkv, *dweights = run(grad, qkv, q_weight, k_weight, cos, sin, *ctx.options)
    weights = (q_weight, k_weight)
    dweights = (None if w is None else dw for w, dw in zip(weights, dweights, strict=True))
    return dqkv, *dweights, *(None,) * 6


# Triton: one kernel for a short temporal axis; norm and rotation ahead of the attention that torch
# chooses for everything else.

_FEW_WARPS = _dispatch.Preference(
    "triton", "at 128 channels and more than 16 frames it is expected to be faster backward"
)


def _prefers(facts: _dispatch.CallInfo) -> _dispatch.Preference | None:
    """CUDA, but where its backward pass fills the shared memory with 3 warps of a multiprocessor.

    Predicted for an H200, no measurement: their bytes take both 0.33 ms at B8 S256 T32 12x128, for which an
    instruction of a warp may last 1.3 cycles in CUDA and 2.5 in Triton, and some 3 are usual.
    """
    T, D = facts.shape[1], facts.shape[5]
    if facts.device != "cuda" or facts.axis == "spatial" or facts.dtype.itemsize != 2 or D != 128:
        return None
    return _FEW_WARPS if _dispatch.known(T > 16) and _dispatch.known(T <= _FRAMES) else None


# The largest tile of kernels/st_attention.py; longer sequences are what flash attention is for.
_FRAMES, _CHANNELS = 32, 128
_CHANNELS_OF_FLOAT32 = 64  # beyond, the backward pass in float32 does not fit into the registers


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
    *,
    temporal: bool,
    causal: bool,
    eps: float,
    scale: float,
    attend: Attend,
) -> Tensor:
    """qkv_norm_rope, then an attention that a library has.

    On the spatial axis nothing is copied: the attention reads q and k as the prologue wrote them and
    v within qkv, and its gradients go into that of qkv in one pass. A temporal axis is not next to
    the channels, so there qkv is copied once.
    """
    B, T, S = qkv.shape[:3]
    qkv = (qkv.transpose(1, 2) if temporal else qkv).flatten(0, 1)  # [sequences, L, 3, H, D]
    if q_weight is None and k_weight is None and cos is None:
        q, k, v = qkv.unbind(2)
    else:
        # The fused ones have a norm for both or for none.
        fused = (q_weight is None) == (k_weight is None)
        run = _dispatch.select("qkv_norm_rope", qkv) if fused else reference.qkv_norm_rope
        q, k, v = run(qkv, q_weight, k_weight, cos, sin, eps=eps)
    out = attend(q, k, v, causal=causal, scale=scale).unflatten(0, (B, S if temporal else T))
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

    _check_tile("st_attention_backward_triton", qkv, temporal)
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


_ARGUMENTS = (
    "Tensor qkv, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, bool temporal, "
    "bool causal, float eps, float scale"
)
_BACKWARD = _registry.Op(
    "st_attention_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> (Tensor dqkv, Tensor dq_weight, Tensor dk_weight)",
    fake=_fake_backward,
    launch=_launch_backward,
)
_OP = _registry.Op(
    "st_attention",
    f"({_ARGUMENTS}) -> Tensor",
    fake=_fake,
    launch=_launch,
    save=_save,
    gradients=_gradients,
    backward=_BACKWARD,
    constants=("cos", "sin"),
)


# The dispatcher goes by the device, so this is "cpu" and "cuda" alike.
def _run_compiled(
    qkv, q_weight, k_weight, cos, sin, *, temporal, causal, eps, scale
) -> Tensor:  # [B, T, S, H, D]
    return _OP.compiled(qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale)


def _run_triton(
    qkv, q_weight, k_weight, cos, sin, *, temporal, causal, eps, scale
) -> Tensor:  # [B, T, S, H, D]
    if temporal and _tile_fits(qkv):
        return _OP.triton(qkv, q_weight, k_weight, cos, sin, temporal, causal, eps, scale)
    options = {"temporal": temporal, "causal": causal, "eps": eps, "scale": scale}
    attend = attention_backends.sdpa
    return _prologue_and_attention(qkv, q_weight, k_weight, cos, sin, **options, attend=attend)


_dispatch.register(
    "st_attention",
    (
        _dispatch.Implementation("cuda", _run_compiled, _cuda_refuses),
        _dispatch.Implementation("cpu", _run_compiled, _cpu.refuses),
        _dispatch.Implementation("triton", _run_triton, _triton.refuses),
        _dispatch.Implementation("reference", reference.st_attention, _dispatch.always),
    ),
    prefers=_prefers,
    example=(1, 16, 4, 3, 16, 72),
    axes=("temporal", "spatial"),
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
            norm to interleaved pairs; None for no rotation. The tables receive no gradient.
        scale: factor on the scores; 1 / sqrt(D) when None.
        backend: "auto", "fused", or one of `ops.ATTENTION_BACKENDS` (`attention_backends.py`) that is
            then what is named, whatever COLAWORLD_OPS or `force` say.

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
        cos, sin = constants(*rope)
        check_beside("rope cos", cos, (length, D // 2), "qkv", qkv)
        check_beside("rope sin", sin, (length, D // 2), "qkv", qkv)
    if backend in ("auto", "fused"):
        chosen = _dispatch.pick("st_attention", qkv, axis=axis, fused=backend == "fused")
        run = chosen.run
        if backend == "auto" and not torch.compiler.is_compiling():
            attention_backends.tell_once(chosen.name, axis, qkv.device.type, qkv.dtype)
    else:
        attend = attention_backends.attend(backend, qkv, q_weight, k_weight)
        run = functools.partial(_prologue_and_attention, attend=attend)
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
