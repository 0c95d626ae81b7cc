"""Samplers of rectified flow. They take a velocity function and know no model.

velocity(x [B, C, T, h, w], times [B, T]) -> [B, C, T, h, w], pointing from noise to data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from colaworld.flow.path import shift_times

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplerConfig:
    """How a clip is generated from noise."""

    steps: int = 10
    """Denoising steps (paper: 10, for planning 3)."""
    method: Literal["euler", "heun"] = "euler"
    """heun calls the generator twice a step and is second-order accurate."""
    shift: float = 1.0
    """Above 1 spends more steps near noise (same formula as in training)."""
    guidance: float = 1.0
    """Classifier-free guidance on the action; 1 = off (paper: 4.0, planning 1)."""


def time_grid(steps: int, shift: float, device: torch.device | str) -> Tensor:
    """steps + 1 times from 1 (noise) to 0 (data)."""
    if steps < 1:
        raise ValueError(f"sampler.steps: expected >= 1, got {steps}")
    return shift_times(torch.linspace(1, 0, steps + 1, device=device), shift)


def sample(velocity: Velocity, x: Tensor, generated: Tensor, config: SamplerConfig) -> Tensor:
    """Integrate from noise to data on the frames where `generated` [T] is True.

    `x` [B, C, T, h, w] holds noise in the generated frames and clean latents in the others,
    which stay as they are, at time 0. Raises ValueError on an unknown method, steps < 1 or a mask
    of a wrong length.
    """
    if config.method not in ("euler", "heun"):
        raise ValueError(f"sampler.method: expected 'euler' or 'heun', got {config.method!r}")
    if generated.shape != (x.shape[2],):
        raise ValueError(f"sample: expected generated [{x.shape[2]}], got {tuple(generated.shape)}")
    mask = generated.to(x.device)
    moved = mask[None, None, :, None, None]

    def at(time: Tensor) -> Tensor:
        return (mask * time).expand(x.shape[0], -1)

    grid = time_grid(config.steps, config.shift, x.device)
    for now, then in pairwise(grid):
        step = now - then
        v = velocity(x, at(now))
        moved_on = torch.where(moved, x + step * v, x)
        if config.method == "heun" and then > 0:
            v = (v + velocity(moved_on, at(then))) / 2
            moved_on = torch.where(moved, x + step * v, x)
        x = moved_on
    return x


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """v_u + scale (v_c - v_u) (Ho & Salimans 2022); at scale 1 the conditional velocity alone."""
    if scale == 1.0:
        return conditional

    def velocity(x: Tensor, times: Tensor) -> Tensor:
        base = unconditional(x, times)
        return base + scale * (conditional(x, times) - base)

    return velocity
