"""Rectified flow (Liu et al. 2022) with one diffusion time per frame: 0 is data, 1 is noise.

Latents are [B, C, T, h, w], times [B, T]. The velocity points from noise to data, v = x0 - noise,
as in Open-Sora; a video model with the opposite sign is turned around by its own wrapper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colaworld.flow.config import TimestepConfig
from colaworld.rng import draw


def per_frame(times: Tensor) -> Tensor:
    """[B, T] -> [B, 1, T, 1, 1], to multiply latents with."""
    return times[:, None, :, None, None]


def shift_times(times: Tensor, shift: float) -> Tensor:
    """t' = r t / (1 + (r - 1) t) (Esser et al. 2024, section 5.3.2)."""
    return shift * times / (1 + (shift - 1) * times)


def sample_timesteps(
    clips: int,
    config: TimestepConfig,
    *,
    generator: torch.Generator,
    device: torch.device | str,
    native_shift: float = 1.0,
) -> Tensor:
    """One time per clip, [clips] in (0, 1). `native_shift` stands for a shift of None."""
    shift = native_shift if config.shift is None else config.shift
    normal = draw(torch.randn, (clips,), generator, device=device)
    return shift_times(torch.sigmoid(config.mean + config.std * normal), shift)


def interpolate(x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t noise, frame by frame."""
    t = per_frame(times).to(x0.dtype)
    return (1 - t) * x0 + t * noise


def target_velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """v = x0 - noise."""
    return x0 - noise
