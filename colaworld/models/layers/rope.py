"""Rotary position embedding (RoFormer, arXiv 2104.09864), interleaved pairs: its tables.

Of one axis, and of tokens on a grid of frames, rows and columns for `ops.qk_norm_rope`: there the pairs
of a head are shared out, the first follow the frame, the next the row, the last the column (Wan 2.1,
arXiv 2503.20314). Not here: the rotation itself (ops).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(
    length: int,
    head_dim: int,
    *,
    first: int = 0,
    theta: float = 10_000.0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [length, head_dim / 2] float32, for `length` positions from `first` on."""
    pair = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    frequency = theta ** (-pair / head_dim)
    angle = torch.arange(first, first + length, device=device, dtype=torch.float32)[:, None]
    angle = angle * frequency
    return angle.cos(), angle.sin()


def grid_sections(head_dim: int) -> tuple[int, int, int]:
    """How many pairs of a head follow frame, row and column: (22, 21, 21) for 128 channels.

    Raises ValueError on a head that is odd or too narrow for a pair on each axis.
    """
    if head_dim % 2 or head_dim < 6:
        raise ValueError(
            f"head_dim: expected an even number of 6 at least (a pair per axis), got {head_dim}"
        )
    side = head_dim // 6
    return head_dim // 2 - 2 * side, side, side


def grid_rope_tables(
    positions: Tensor | int,
    head_dim: int,
    *,
    theta: float = 10_000.0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [P, head_dim / 2] float32, for P positions on any axis.

    positions: [P], or their number P for 0 .. P - 1.

    Every axis counts its frequencies from 1 again. Angles are float64: at position 1000 a float32
    angle is off by 3e-5.
    """
    frequencies = []
    for pairs in grid_sections(head_dim):
        exponent = torch.arange(pairs, device=device, dtype=torch.float64) / pairs
        frequencies.append(theta**-exponent)
    if isinstance(positions, int):
        positions = torch.arange(positions, device=device)
    angle = positions.double()[:, None] * torch.cat(frequencies)
    return angle.cos().float(), angle.sin().float()


def grid_positions(
    frames: int, rows: int, columns: int, *, first: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """[frames * rows * columns, 3] int64: frame (from `first` on), row and column of each token."""
    axes = (
        torch.arange(first, first + frames, device=device),
        torch.arange(rows, device=device),
        torch.arange(columns, device=device),
    )
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
