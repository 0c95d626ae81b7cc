"""The `pixels` tokenizer: space-to-depth, nothing learned, exact in both directions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.tokenizers.config import PixelTokenizerConfig


class PixelTokenizer(nn.Module):
    """Lossless; latents are clamped to the pixel range only when decoded."""

    def __init__(self, config: PixelTokenizerConfig | None = None) -> None:
        super().__init__()
        self.config = config or PixelTokenizerConfig()
        self.channels = self.config.channels
        self.spatial_stride = self.config.spatial_stride
        self.temporal_stride = self.config.temporal_stride

    def fingerprint(self) -> str:
        """See `tokenizers.base.Tokenizer.fingerprint`; there are no weights, so this is readable."""
        return f"pixels patch={self.config.patch} mean={self.config.mean} std={self.config.std}"

    def encode(self, frames: Tensor) -> Tensor:
        """[B, T, 3, H, W] in [0, 1] -> [B, C, T, H / patch, W / patch]."""
        B, T, _, H, W = frames.shape
        patch = self.config.patch
        if H % patch or W % patch:
            raise ValueError(
                f"pixels tokenizer: height and width must be multiples of {patch}, got {H}x{W}; "
                "set data.height and data.width, or data.crop"
            )
        x = (frames * 2 - 1 - self.config.mean) / self.config.std
        x = F.pixel_unshuffle(x.flatten(0, 1), patch)
        return x.unflatten(0, (B, T)).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, T, h, w] -> [B, T, 3, h * patch, w * patch] clamped to [0, 1]."""
        B, _, T, _, _ = latents.shape
        x = F.pixel_shuffle(latents.transpose(1, 2).flatten(0, 1), self.config.patch)
        x = x.unflatten(0, (B, T)) * self.config.std + self.config.mean
        return ((x + 1) / 2).clamp(0, 1)
