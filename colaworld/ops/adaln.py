"""`adaln`: gated residual, norm and per-frame modulation (adaptive layer norm).

The public function: checks and the choice of an implementation. The meaning is in `reference.py`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from colaworld.ops import _dispatch, reference
from colaworld.ops._checks import check_beside

_dispatch.register(
    "adaln", (_dispatch.Implementation("reference", reference.adaln, _dispatch.always),)
)


def adaln(
    x: Tensor,
    y: Tensor | None,
    *,
    gate: Tensor | None = None,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    norm: Literal["layer", "rms"] = "layer",
) -> tuple[Tensor, Tensor]:
    """x_out = x + gate * y;  out = norm(x_out) * (1 + scale) + shift.

    Args:
        x: [B, T, S, C] the residual stream.
        y: [B, T, S, C] the branch to add, or None: then x_out is x.
        gate: [B, T, C] factor on the branch, per frame; None for 1. Needs a `y`.
        shift, scale: [B, T, C] modulation, per frame.
        eps: added to the variance (mean square) inside the norm.
        norm: "layer" subtracts the mean over C, "rms" does not. Neither has parameters.

    Returns:
        (x_out, out), both [B, T, S, C] in the dtype of x; sums run in float32 (float64 for float64).

    Raises:
        ValueError: an argument of a wrong shape, device or value; a forced implementation refuses.

    Source: DiT's adaLN-Zero block (Peebles and Xie 2023, section 3.2), here with one modulation
    per frame instead of one per sample.
    """
    if x.ndim != 4:
        raise ValueError(f"x: expected [B, T, S, C], got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected a floating-point tensor, got {x.dtype}")
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm: expected 'layer' or 'rms', got {norm!r}")
    if y is None and gate is not None:
        raise ValueError("gate: given without a branch y to multiply; pass y, or gate=None")
    B, T, _, C = x.shape
    if y is not None:
        check_beside("y", y, tuple(x.shape), "x", x)
    if gate is not None:
        check_beside("gate", gate, (B, T, C), "x", x)
    check_beside("shift", shift, (B, T, C), "x", x)
    check_beside("scale", scale, (B, T, C), "x", x)
    run = _dispatch.select("adaln", x)
    return run(x, y, gate, shift, scale, eps=eps, rms=norm == "rms")
