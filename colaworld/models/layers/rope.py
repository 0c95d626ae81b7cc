"""Rotary position embedding tables (RoFormer, arXiv 2104.09864), interleaved pairs."""

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
