"""`qk_norm_rope`: norm and rotary embedding of queries and keys, ahead of an attention kernel.

The public function and its checks, and what autograd and the compiler must know of the op. The meaning is in `reference.py`.
Not here: attention. The temporal axis has both in one op (`st_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from colaworld.ops import _cpu, _dispatch, _registry, _triton, reference
from colaworld.ops._checks import check_beside, constants

_PADDED_TOKEN = 16384  # the largest tile of kernels/qk_norm_rope.py: all heads of one token


def cpu_refuses(facts: _dispatch.CallInfo) -> str | None:
    """Of tensors [..., H, D]; likewise `triton_refuses`."""
    reason = _cpu.refuses(facts)
    if reason is None and (0 in facts.shape[-2:]):
        reason = "H or D is 0, it needs at least one channel"
    return reason


def triton_refuses(facts: _dispatch.CallInfo) -> str | None:
    reason = _triton.refuses(facts)
    if reason is not None:
        return reason
    H, D = facts.shape[-2:]
    size = _power_of_two(H) * _power_of_two(D)
    if size > _PADDED_TOKEN:
        return f"H x D = {H} x {D} is {size} in powers of two, it takes {_PADDED_TOKEN} at most"
    return None


def _power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    power = 1
    while power < n:
        power *= 2
    return power


def _fake(q, k, *_):
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _fake_backward(grad_q, grad_k, q, k, q_weight, k_weight, *_):
    wide = reference.compute_dtype(grad_q.dtype)
    weights = (
        grad_q.new_empty(0 if w is None else w.shape, dtype=wide) for w in (q_weight, k_weight)
    )
    return grad_q.new_empty(grad_q.shape), grad_k.new_empty(grad_k.shape), *weights


def _save(ctx, inputs, output) -> None:
    q, k, q_weight, k_weight, cos, sin, position, *ctx.settings = inputs
    if q_weight is None:
        q = k = None  # a rotation alone is linear: its gradient does not read them
    ctx.save_for_backward(q, k, q_weight, k_weight, cos, sin, position)


def _gradients(run, ctx, grad_q: Tensor, grad_k: Tensor):
    saved = ctx.saved_tensors  # once: activation checkpointing gives them out a single time
    dq, dk, *dweights = run(grad_q, grad_k, *saved, *ctx.settings)
    dweights = (
        None if w is None else dw.to(w.dtype) for w, dw in zip(saved[2:4], dweights, strict=True)
    )
    return dq, dk, *dweights, *(None,) * 7


def _launch(
    q, k, q_weight, k_weight, cos, sin, position, sections, eps, across
) -> tuple[Tensor, Tensor]:
    from colaworld.kernels import qk_norm_rope as kernels

    options = {"eps": eps, "across": across}
    return kernels.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, position, sections, **options)


def _launch_backward(
    grad_q, grad_k, q, k, q_weight, k_weight, cos, sin, position, sections, eps, across
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from colaworld.kernels import qk_norm_rope as kernels

    options = {"eps": eps, "across": across}
    dq, dk, *dweights = kernels.qk_norm_rope_backward(
        grad_q, grad_k, q, k, q_weight, k_weight, cos, sin, position, sections, **options
    )
    if q_weight is None:
        dweights = (
            grad_q.new_empty(0, dtype=reference.compute_dtype(grad_q.dtype)) for _ in range(2)
        )
    return dq, dk, *dweights


_NORM_AND_ROTATION = (
    "Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, Tensor? position, "
    "int[] sections, float eps, bool across"
)
_BACKWARD = _registry.Op(
    "qk_norm_rope_backward",
    f"(Tensor grad_q, Tensor grad_k, Tensor? q, Tensor? k, {_NORM_AND_ROTATION}) -> "
    "(Tensor dq, Tensor dk, Tensor dq_weight, Tensor dk_weight)",
    fake=_fake_backward,
    launch=_launch_backward,
)
OP = _registry.Op(
    "qk_norm_rope",
    f"(Tensor q, Tensor k, {_NORM_AND_ROTATION}) -> (Tensor q_out, Tensor k_out)",
    fake=_fake,
    launch=_launch,
    save=_save,
    gradients=_gradients,
    backward=_BACKWARD,
    constants=("cos", "sin", "position"),
)


def _run_cpu(
    q, k, q_weight, k_weight, cos, sin, position, sections, *, eps, across
) -> tuple[Tensor, Tensor]:
    wide = reference.compute_dtype(q.dtype)
    tables = _cpu.converted(wide, q_weight, k_weight, cos, sin)
    return OP.compiled(q, k, *tables, position, sections, eps, across)


def _run_triton(
    q, k, q_weight, k_weight, cos, sin, position, sections, *, eps, across
) -> tuple[Tensor, Tensor]:
    if position is not None and cos is not None:
        reference._check_rows("position", position, "P", cos)
    tables = (q_weight, k_weight, cos, sin, position)
    return OP.triton(q, k, *tables, list(sections), eps, across)


_dispatch.register(
    "qk_norm_rope",
    (
        _dispatch.Implementation("cpu", _run_cpu, cpu_refuses),
        _dispatch.Implementation("triton", _run_triton, triton_refuses),
        _dispatch.Implementation("reference", reference.qk_norm_rope, _dispatch.always),
    ),
    example=(1, 4, 12, 128),
)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    norm: Literal["head", "across", "none"] = "head",
    rope: tuple[Tensor, Tensor] | None = None,
    position: Tensor | None = None,
    sections: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries and keys, normalised and rotated, ready for an attention kernel.

    Channel pair i of a head is turned by the angle whose cosine and sine stand in column i of the
    tables, in the row of the token. With a `position` of several axes the columns are shared out,
    here sections = (2, 1, 1):

        column       0        1        2        3
        row       pos[l,0] pos[l,0] pos[l,1] pos[l,2]

    Args:
        q, k: [B, L, H, D], same shape and dtype; any strides (views of a packed qkv are read where
            they stand).
        q_weight, k_weight: weights of the RMSNorm, [D] for "head" and [H * D] for "across"; None
            for "none".
        eps: added to the mean square inside the norm.
        norm: the mean square runs over the channels of a "head" (STDiT3), "across" all heads (Wan),
            or there is no norm ("none").
        rope: (cos, sin), each [P, D/2], applied after the norm to the pairs (0, 1), (2, 3), ...;
            None for no rotation. The tables receive no gradient.
        position: [L, A] int64 rows of the tables, one for each axis; None: row l for token l, P = L.
        sections: with a position, how many of the D/2 pairs follow each axis, in their order; they
            sum to D/2 (Wan 2.1 has D = 128 and (22, 21, 21): frame, height, width).

    Returns:
        (q, k) [B, L, H, D], contiguous, in the dtype of q; computed in float32 (float64 for float64).

        In bfloat16 the fused implementations round once, at the end: each number is within one
        rounding of the exact one, u = 2^-8 of the length of its pair of channels. The reference
        rounds after the norm, the weight and the rotation, as the published models do, so it is
        within 3 u, and the two agree within 4 u (without a norm: 2 u).

    Raises:
        ValueError: an argument of a wrong shape, dtype, device or value (a position outside of
            0 .. P - 1 included); a forced implementation refuses.

    Source: rotary embedding (Su et al. 2021, equation 34); normalised queries and keys (Henry et al.
    2020) with RMSNorm (Zhang and Sennrich 2019).
    """
    if q.ndim != 4:
        raise ValueError(f"q: expected [B, L, H, D], got {list(q.shape)}")
    if not q.is_floating_point():
        raise ValueError(f"q: expected a floating-point tensor, got {q.dtype}")
    check_beside("k", k, tuple(q.shape), "q", q)
    if k.dtype != q.dtype:
        raise ValueError(f"k: expected {q.dtype} as q is, got {k.dtype}")
    if norm not in ("head", "across", "none"):
        raise ValueError(f"norm: expected 'head', 'across' or 'none', got {norm!r}")
    _, L, H, D = q.shape
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if (weight is None) != (norm == "none"):
            wanted = "None" if norm == "none" else "a weight"
            raise ValueError(f"{name}: expected {wanted} for norm={norm!r}")
        if weight is not None:
            check_beside(name, weight, (H * D,) if norm == "across" else (D,), "q", q)
    cos = sin = None
    if rope is None:
        if position is not None:
            raise ValueError("position: given without the tables whose rows it names; pass rope")
    else:
        if D % 2:
            raise ValueError(f"rope: rotates pairs, so q needs an even D, got D = {D}")
        cos, sin = constants(*rope)
        rows = L if position is None or cos.ndim == 0 else cos.shape[0]
        check_beside("rope cos", cos, (rows, D // 2), "q", q)
        check_beside("rope sin", sin, (rows, D // 2), "q", q)
        sections = _checked_sections(position, sections, q)
    run = _dispatch.select("qk_norm_rope", q)
    return run(
        q,
        k,
        q_weight,
        k_weight,
        cos,
        sin,
        position,
        sections or (),
        eps=eps,
        across=norm == "across",
    )


def _checked_sections(
    position: Tensor | None, sections: Sequence[int] | None, q: Tensor
) -> tuple[int, ...]:
    """Pairs of each axis of `position`."""
    if position is None:
        if sections is not None:
            raise ValueError("sections: given without a position whose axes they follow")
        return ()
    L, pairs = q.shape[1], q.shape[3] // 2
    if position.ndim != 2 or position.dtype != torch.int64:
        raise ValueError(
            f"position: expected [L, A] int64, got {list(position.shape)} {position.dtype}"
        )
    axes = position.shape[1]
    if sections is None:
        raise ValueError(f"sections: expected {axes} counts for the {axes} axes of position")
    check_beside("position", position, (L, len(sections)), "q", q)
    if sum(sections) != pairs or any(n < 0 for n in sections):
        raise ValueError(
            f"sections: expected counts that sum to D/2 = {pairs}, got {tuple(sections)}"
        )
    return tuple(sections)
