"""The contract of a video generator used as a world model's backbone.

A backbone predicts the velocity of rectified flow for every latent frame, with its own diffusion
time per frame (clean history is at time 0), and takes one additive modulation per frame and block.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from colaworld.models.backbones.weights import Layout
from colaworld.models.layers.kv_cache import KVCache


class Backbone(Protocol):
    """Latents are [B, C, T, h, w]; times are in [0, 1], 0 = clean and 1 = noise."""

    width: int
    channels: int
    patch: tuple[int, int, int]  # latent frames, rows and columns of one token
    modulated_blocks: int  # how many blocks take a modulation of [6 * width]

    def velocity(
        self,
        latents: Tensor,  # [B, C, T, h, w]
        times: Tensor,  # [B, T]
        *,
        modulation: Tensor | None = None,  # [B, T, 1 | modulated_blocks, 6 * width]
        fps: Tensor | float | None = None,  # [B]; None: the generator's own default
        text: Tensor | None = None,  # [B, L, caption width], only where the config has text
        cache: KVCache | None = None,  # of the frames before these
        store: bool = False,
    ) -> Tensor:
        """Velocity x0 - noise, [B, C, T, h, w] in float32.

        With a `cache` the given frames follow those it holds; `store` adds their keys and values.
        Raises ValueError on shapes that do not fit, text where the config has none, and a cache
        where a frame attends to later ones.
        """
        ...

    def new_cache(self) -> KVCache:
        """An empty cache for this generator. Raises ValueError where it cannot be used exactly."""
        ...

    def layout(self) -> Layout:
        """How the keys of its published weights become those of the module."""
        ...

    def time_shift(self, frames: int, rows: int, columns: int) -> float:
        """r of t' = r t / (1 + (r - 1) t) in its pre-training, for latents of this size."""
        ...
