"""Embeddings of scalars (diffusion time, frame rate) and of positions. Formulas: STDiT3."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid(value: Tensor, width: int) -> Tensor:
    """[...] -> [..., width] as [cos, sin] of `value` at frequencies 10000^(-2 i / width)."""
    half = width // 2
    index = torch.arange(half, device=value.device, dtype=torch.float32)
    angle = value.float()[..., None] * torch.exp(-math.log(10_000.0) * index / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def bfloat16_values(value: Tensor) -> Tensor:
    """Each value rounded to the nearest that bfloat16 holds (ties to even), as float32.

    By its bits: a cast there and back is left out by `torch.compile`, and rounds nothing.
    """
    bits = value.float().view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)


class ScalarEmbedder(nn.Module):
    """Sinusoid, Linear, SiLU, Linear; used for the time-step (0 .. 1000) and for the frame rate."""

    frequency_width = 256

    def __init__(self, width: int, *, zero_init: bool = False) -> None:
        super().__init__()
        first, last = nn.Linear(self.frequency_width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)
        if zero_init:
            nn.init.zeros_(last.weight)

    def forward(self, value: Tensor) -> Tensor:
        features = sinusoid(value, self.frequency_width)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


def grid_embedding(
    rows: int,
    columns: int,
    width: int,
    *,
    scale: float = 1.0,
    base_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """2-D sin-cos position embedding [rows * columns, width].

    The first half of the channels encodes the column, the second half the row. A coordinate is
    index / scale * base_size / size with base_size = round(sqrt(rows * columns)) by default.
    """
    if width % 4:
        raise ValueError(f"grid_embedding: width must be a multiple of 4, got {width}")
    half = width // 2
    base = round((rows * columns) ** 0.5) if base_size is None else base_size
    pair = torch.arange(0, half, 2, device=device, dtype=torch.float32)
    frequency = 10_000.0 ** (-pair / half)

    def encode(size: int) -> Tensor:
        index = torch.arange(size, device=device, dtype=torch.float32)
        angle = (index / scale * base / size)[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    column = encode(columns)[None].expand(rows, columns, half)
    row = encode(rows)[:, None].expand(rows, columns, half)
    return torch.cat([column, row], dim=-1).reshape(rows * columns, width)
