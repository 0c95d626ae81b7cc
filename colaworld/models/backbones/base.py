"""The contract of a video generator used as a world model's backbone.

A backbone predicts the velocity of rectified flow for every latent frame, with its own diffusion
time per frame (clean history is at time 0), and takes one additive modulation per frame and block.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Backbone(Protocol):
    """Latents are [B, C, T, h, w]; times are in [0, 1], 0 = clean and 1 = noise."""

    width: int
    channels: int
    modulated_blocks: int  # how many blocks take a modulation of [6 * width]

    def velocity(
        self,
        latents: Tensor,  # [B, C, T, h, w]
        times: Tensor,  # [B, T]
        *,
        modulation: Tensor | None = None,  # [B, T, 1 | modulated_blocks, 6 * width]
        fps: float = 0.0,
    ) -> Tensor:
        """Velocity x0 - noise, [B, C, T, h, w] in float32."""
        ...
