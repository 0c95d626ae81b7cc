"""Video latents to tokens and back: each token is one patch, ordered by frame, row, column.

Not here: the projections into and out of the model's width.
Shape legend: B clips, C channels, T frames, H rows, W columns, S patches per frame.
"""

from __future__ import annotations

from torch import Tensor


def to_patches(x_BCTHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, T / pt, S, C * pt * ph * pw], the values in the order of a Conv3d's flattened kernel.

    A product with that kernel is the convolution, several times faster on a CPU.
    """
    B, C, T, H, W = x_BCTHW.shape
    pt, ph, pw = patch
    x = x_BCTHW.reshape(B, C, T // pt, pt, H // ph, ph, W // pw, pw)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(B, T // pt, (H // ph) * (W // pw), C * pt * ph * pw)


def from_patches(
    tokens: Tensor,  # [B, tokens, pt * ph * pw * C], channels fastest
    patch: tuple[int, int, int],
    size: tuple[int, int, int],  # T, H, W of the result
) -> Tensor:
    """[B, C, T, H, W]."""
    (pt, ph, pw), (T, H, W) = patch, size
    x = tokens.reshape(tokens.shape[0], T // pt, H // ph, W // pw, pt, ph, pw, -1)
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(tokens.shape[0], -1, T, H, W)
