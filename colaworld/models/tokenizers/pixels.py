"""The `pixels` tokenizer: space-to-depth, nothing learned, exact in both directions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.config import Checked, Range


@dataclass(frozen=True)
class PixelTokenizerConfig(Checked, at="model.tokenizer."):
    """Space-to-depth: each patch of pixels becomes the channels of one latent location."""

    kind: Literal["pixels"] = field(default="pixels", kw_only=True)
    """Which tokenizer this is; the recipe decides it."""
    patch: Annotated[int, Range(ge=1, le=128)] = 2
    """Pixels per side of a patch; latents have 3 * patch^2 channels."""
    mean: Annotated[float, Range(ge=-1000, le=1000)] = 0.0
    """Subtracted after pixels are mapped to [-1, 1]."""
    std: Annotated[float, Range(gt=0, le=1000)] = 0.5
    """Divided by; pixels of natural video in [-1, 1] have a deviation near this value."""

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return 3 * self.patch**2

    @property
    def spatial_stride(self) -> int:
        """Pixels per side of one latent location."""
        return self.patch

    @property
    def temporal_stride(self) -> int:
        """Actions that lead into one latent frame."""
        return 1


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
