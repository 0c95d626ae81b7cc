"""`st_attention`: attention along the spatial or the temporal axis of a clip.

The public function: checks and the choice of an implementation. The meaning is in `reference.py`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from colaworld.ops import _dispatch, reference
from colaworld.ops._checks import check_beside

_dispatch.register(
    "st_attention",
    (_dispatch.Implementation("reference", reference.st_attention, _dispatch.always),),
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

    Returns:
        [B, T, S, H, D] in the dtype of qkv, contiguous.

    Raises:
        ValueError: an argument of a wrong shape, device or value; a forced implementation refuses.

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
    run = _dispatch.select("st_attention", qkv)
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
