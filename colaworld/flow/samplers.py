"""Samplers of rectified flow. They take a velocity function and know no model.

velocity(x [B, C, T, h, w], times [B, T]) -> [B, C, T, h, w], pointing from noise to data.
Nothing here waits for the device: the loop's length is a Python number, the times stay tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from colaworld.config import Checked, Positive, Range, Share
from colaworld.flow.path import shift_times

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplerConfig(Checked, at="sampler."):
    """How frames are generated from noise, and how a rollout remembers the frames before them."""

    steps: Annotated[int, Range(ge=1, le=10000)] = 10
    """Denoising steps (paper: 10, for planning 3)."""
    method: Literal["euler", "heun"] = "euler"
    """heun calls the video model twice a step and is second-order accurate."""
    shift: Positive = 1.0
    """Above 1 spends more steps near noise (same formula as in training)."""
    guidance: Annotated[float, Range(ge=-1000, le=1000)] = 1.0
    """Classifier-free guidance on the action; 1 = off (paper: 4.0, planning 1)."""
    guidance_passes: Literal["one", "two"] = "one"
    """one: both velocities of guidance as one batch of twice the clips; two: half the memory."""
    context_noise: Share = 0.0
    """Time in [0, 1) to which frames already seen are noised, and which the generator is told."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep keys and values of frames already seen: where the video model allows it, always, never."""
    on_slide: Literal["exact", "keep"] = "exact"
    """When the window slides, encode what stays anew (as without a cache), or keep what is held."""

    @staticmethod
    def paper() -> SamplerConfig:
        """As the paper samples video: 10 steps, guidance 4."""
        return SamplerConfig(steps=10, guidance=4.0)

    @staticmethod
    def planning() -> SamplerConfig:
        """As the paper samples while planning: 3 steps, no guidance."""
        return SamplerConfig(steps=3, guidance=1.0)


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
