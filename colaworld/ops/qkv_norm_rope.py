"""`qkv_norm_rope`: `qk_norm_rope` on a packed qkv, whose gradient is written once.

    qkv [B, L, 3, H, D]  --norm, rotation-->  q, k contiguous; v a view of qkv
    dq, dk, dv           ----- back ------->  dqkv

Attention takes all three as they are. Forward this is the kernel of `qk_norm_rope` on two views; backward
has a kernel of its own, since autograd would first make the three gradients and then copy them together.
The meaning is in `reference.py`. Not here: attention, and the norm across heads, which has no packed caller.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from colaworld.ops import _cpu, _dispatch, _registry, reference
from colaworld.ops._checks import check_beside, constants
from colaworld.ops.qk_norm_rope import OP, cpu_refuses, triton_refuses


def _fake_backward(grad_q, grad_k, grad_v, qkv, q_weight, k_weight, *_):
    B, L, H, D = grad_q.shape
    wide = reference.compute_dtype(grad_q.dtype)
    weights = (
        grad_q.new_empty(0 if w is None else w.shape, dtype=wide) for w in (q_weight, k_weight)
    )
    return grad_q.new_empty((B, L, 3, H, D)), *weights


def _launch_backward(
    grad_q, grad_k, grad_v, qkv, q_weight, k_weight, cos, sin, eps
) -> tuple[Tensor, Tensor, Tensor]:
    from colaworld.kernels import qk_norm_rope as kernels

    dqkv, *dweights = kernels.qkv_norm_rope_backward(
        grad_q, grad_k, grad_v, qkv, q_weight, k_weight, cos, sin, eps=eps
    )
    if q_weight is None:
        dweights = (
            grad_q.new_empty(0, dtype=reference.compute_dtype(grad_q.dtype)) for _ in range(2)
        )
    return dqkv, *dweights


_BACKWARD = _registry.Op(
    "qkv_norm_rope_backward",
    "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor? qkv, Tensor? q_weight, Tensor? k_weight, "
    "Tensor? cos, Tensor? sin, float eps) -> (Tensor dqkv, Tensor dq_weight, Tensor dk_weight)",
    fake=_fake_backward,
    launch=_launch_backward,
)


class _Packed(torch.autograd.Function):
    """Forward and backward in one node. No op of the dispatcher can be it: none may return a view."""

    @staticmethod
    def forward(ctx, qkv, q_weight, k_weight, cos, sin, eps, twin):
        # A rotation alone is linear: its gradient does not read what was rotated.
        ctx.save_for_backward(None if q_weight is None else qkv, q_weight, k_weight, cos, sin)
        ctx.eps, ctx.twin = eps, twin
        return _forward(qkv, q_weight, k_weight, cos, sin, eps, twin)

    @staticmethod
    def backward(ctx, *grads):
        run = _BACKWARD.triton if ctx.twin else _BACKWARD.compiled
        saved = ctx.saved_tensors  # once: activation checkpointing gives them out a single time
        dqkv, *dweights = run(*grads, *saved, ctx.eps)
        dweights = (
            None if w is None else dw.to(w.dtype)
            for w, dw in zip(saved[1:3], dweights, strict=True)
        )
        return dqkv, *dweights, None, None, None, None


def _forward(qkv, q_weight, k_weight, cos, sin, eps, twin) -> tuple[Tensor, Tensor, Tensor]:
    run = OP.triton if twin else OP.compiled
    q, k, v = qkv.unbind(2)
    q, k = run(q, k, q_weight, k_weight, cos, sin, None, [], eps, False)
    return q, k, v


def _run(qkv, q_weight, k_weight, cos, sin, eps, twin) -> tuple[Tensor, Tensor, Tensor]:
    # torch.compile traces no Function that is given a tensor twice.
    k_weight = _another(k_weight) if k_weight is q_weight else k_weight
    sin = _another(sin) if sin is cos else sin
    inputs = (qkv, q_weight, k_weight, cos, sin)
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    ):
        _registry.refuse_transforms("qkv_norm_rope", inputs[:3], inputs)
        with torch._C._DisableFuncTorch():  # a view made within a transform counts as that one's
            return _forward(*inputs, eps, twin)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs[:3]):
        return _Packed.apply(*inputs, eps, twin)
    return _forward(*inputs, eps, twin)


def _another(x: Tensor | None) -> Tensor | None:
    """The same tensor as another object."""
    return None if x is None else x.view_as(x)


def _run_cpu(qkv, q_weight, k_weight, cos, sin, *, eps) -> tuple[Tensor, Tensor, Tensor]:
    wide = reference.compute_dtype(qkv.dtype)
    q_weight, k_weight, cos, sin = _cpu.converted(wide, q_weight, k_weight, cos, sin)
    return _run(qkv, q_weight, k_weight, cos, sin, eps, False)


def _run_triton(qkv, q_weight, k_weight, cos, sin, *, eps) -> tuple[Tensor, Tensor, Tensor]:
    return _run(qkv, q_weight, k_weight, cos, sin, eps, True)


_dispatch.register(
    "qkv_norm_rope",
    (
        _dispatch.Implementation("cpu", _run_cpu, cpu_refuses),
        _dispatch.Implementation("triton", _run_triton, triton_refuses),
        _dispatch.Implementation("reference", reference.qkv_norm_rope, _dispatch.always),
    ),
    example=(1, 4, 3, 16, 72),
)


def qkv_norm_rope(
    qkv: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    rope: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a packed projection, ready for an attention kernel.

    Args:
        qkv: [B, L, 3, H, D], any strides.
        q_weight, k_weight: [D] weights of an RMSNorm over the channels of a head; None, both, for
            no norm.
        eps: added to the mean square inside the norm.
        rope: (cos, sin), each [L, D/2], applied after the norm to the pairs (0, 1), (2, 3), ...;
            None for no rotation. The tables receive no gradient.

    Returns:
        (q, k, v) [B, L, H, D] in the dtype of qkv: q and k contiguous, as `qk_norm_rope` makes them;
        v the view qkv[:, :, 2]. Do not write into it.

    Raises:
        ValueError: an argument of a wrong shape, dtype, device or value; a forced implementation
            refuses.

    Source: as `qk_norm_rope`.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv: expected [B, L, 3, H, D], got {list(qkv.shape)}")
    if not qkv.is_floating_point():
        raise ValueError(f"qkv: expected a floating-point tensor, got {qkv.dtype}")
    L, D = qkv.shape[1], qkv.shape[4]
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight and k_weight: expected both or neither, got one")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            check_beside(name, weight, (D,), "qkv", qkv)
    cos = sin = None
    if rope is not None:
        if D % 2:
            raise ValueError(f"rope: rotates pairs, so qkv needs an even D, got D = {D}")
        cos, sin = constants(*rope)
        check_beside("rope cos", cos, (L, D // 2), "qkv", qkv)
        check_beside("rope sin", sin, (L, D // 2), "qkv", qkv)
    run = _dispatch.select("qkv_norm_rope", qkv)
    return run(qkv, q_weight, k_weight, cos, sin, eps=eps)
