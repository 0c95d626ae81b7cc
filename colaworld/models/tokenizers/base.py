"""The contract of a tokenizer: pixels to latents and back. Nothing here knows a generator."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Tokenizer(Protocol):
    """Frames are float [B, T, 3, H, W] in [0, 1]; latents are [B, C, T', h, w]."""

    channels: int  # C
    temporal_stride: int  # r: how many actions lead into one latent frame
    spatial_stride: int  # H / h = W / w

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1] -> latents [B, C, T', h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T', h, w] -> frames [B, T, 3, H, W] in [0, 1]."""
        ...
