"""Samplers of rectified flow. They take a velocity function and know no model.

velocity(x [B, C, T, h, w], times [B, T]) -> [B, C, T, h, w], pointing from noise to data.
Nothing here waits for the device: the loop's length is a Python number, the times stay tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colaworld.flow.config import SamplerConfig
from colaworld.flow.path import shift_times

Velocity = Callable[[Tensor, Tensor], Tensor]


def time_grid(steps: int, shift: float, device: torch.device | str) -> Tensor:
    """steps + 1 times from 1 (noise) to 0 (data)."""
    if steps < 1:
        raise ValueError(f"sampler.steps: expected >= 1, got {steps}")
    return shift_times(torch.linspace(1, 0, steps + 1, device=device), shift)


def sample(
    velocity: Velocity, x: Tensor, generated: Tensor | None, config: SamplerConfig
) -> Tensor:
    """Integrate from noise to data on the frames where `generated` [T] is True; None: on all.

    `x` [B, C, T, h, w] holds noise in the generated frames and clean latents in the others,
    which stay as they are, at time 0. Raises ValueError on a mask of a wrong length.
    """
    if generated is None:
        generated = torch.ones(x.shape[2], dtype=torch.bool, device=x.device)
    if generated.shape != (x.shape[2],):
        raise ValueError(f"sample: expected generated [{x.shape[2]}], got {tuple(generated.shape)}")
    mask = generated.to(x.device)
    moved = mask[None, None, :, None, None]

    def at(time: Tensor) -> Tensor:
        return (mask * time).expand(x.shape[0], -1)

    grid = time_grid(config.steps, config.shift, x.device)
    for index in range(config.steps):
        now, then = grid[index], grid[index + 1]
        step = now - then
        v = velocity(x, at(now))
        moved_on = torch.where(moved, x + step * v, x)
        if config.method == "heun" and index + 1 < config.steps:  # the last one lands on time 0
            v = (v + velocity(moved_on, at(then))) / 2
            moved_on = torch.where(moved, x + step * v, x)
        x = moved_on
    return x
