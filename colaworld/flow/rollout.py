"""Autoregressive rollout by a sliding window. Takes velocity functions and knows no model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colaworld.flow.samplers import SamplerConfig, Velocity, sample

# velocity_of(codes [B, t - 1, N, d]) -> velocity of a window of t frames under these actions
VelocityOf = Callable[[Tensor], Velocity]


def rollout(
    velocity_of: VelocityOf,
    history: Tensor,  # [B, C, h, rows, columns] clean latents
    codes: Tensor,  # [B, T - 1, N, d]; entry t leads from frame t to t + 1; T >= h
    *,
    window: int,
    config: SamplerConfig,
    generator: torch.Generator,
    chunk: int = 1,
) -> Tensor:
    """Latents [B, C, T, rows, columns]: the history, then T - h generated frames.

    Each round generates up to `chunk` frames behind the last `window - chunk` clean ones. One
    action per latent frame is assumed (the tokenizer's temporal stride is 1).
    """
    frames, total = history.shape[2], codes.shape[1] + 1
    if not 1 <= chunk < window:
        raise ValueError(f"rollout: expected 1 <= chunk < window = {window}, got {chunk}")
    if total < frames:
        raise ValueError(f"rollout: {codes.shape[1]} actions do not cover {frames} history frames")
    x = history
    while frames < total:
        new = min(chunk, total - frames)
        first = max(0, frames + new - window)
        shape = (x.shape[0], x.shape[1], new, *x.shape[3:])
        noise = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        clip = torch.cat([x[:, :, first:], noise], dim=2)
        generated = torch.arange(clip.shape[2], device=x.device) >= frames - first
        velocity = velocity_of(codes[:, first : frames + new - 1])
        clip = sample(velocity, clip, generated, config)
        x = torch.cat([x, clip[:, :, frames - first :]], dim=2)
        frames += new
    return x
