"""Sizes of Wan 2.1, from nano (0.55 M parameters) to 14B."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from colaworld.config import Layers, Range, Size
from colaworld.models.backbones.backbone import BackboneConfig

TIME_SHIFT = 3.0  # Wan 2.1's shift of noise levels at 480p; the same for clips of every size


@dataclass(frozen=True)
class WanConfig(BackboneConfig):
    """Sizes of the generator. `wan_1_3b()` and `wan_14b()` give the published layouts."""

    kind: Literal["wan"] = field(default="wan", kw_only=True)
    """Which generator this is; the recipe decides it."""
    layers: Layers = 4
    """Blocks."""
    heads: Size = 3
    """Attention heads."""
    head_dim: Size = 32
    """Channels of a head; the width of a token is heads * head_dim."""
    ffn: Size = 384
    """Hidden width of the MLP."""
    in_channels: Size = 12
    """Channels of a latent (Wan's own VAE: 16)."""
    patch: tuple[Size, Size, Size] = (1, 2, 2)
    """Latent frames, rows and columns of one token."""
    freq_dim: Size = 256
    """Channels of the sinusoid that embeds the time."""
    text_width: Size = 4096
    """Channels of a caption's tokens (umT5-XXL); only where there is text."""
    eps: Annotated[float, Range(gt=0, le=1)] = 1e-6
    """Of every norm."""
    cross_attn_norm: bool = True
    """An affine norm in front of cross-attention, as in all published models."""
    text: Literal["full", "null", "removed"] = "removed"
    """Cross-attention to a caption. full: to the one given; null: to a row of zeros, which is what
    512 rows of the published padding come to; removed: there is none (CoLA-World)."""
    causal: bool = True
    """A token sees its own frame and earlier ones only (Wan was trained with false)."""

    identity_keys: ClassVar[tuple[str, ...]] = ("heads", "head_dim", "eps", "cross_attn_norm")

    @property
    def width(self) -> int:  # type: ignore[override]
        """Channels of a token."""
        return self.heads * self.head_dim

    @staticmethod
    def nano() -> WanConfig:
        """0.55 M parameters; runs on a CPU."""
        return WanConfig()

    @staticmethod
    def tiny() -> WanConfig:
        """About 10 M parameters: an evening on one GPU."""
        return WanConfig(layers=12, heads=4, head_dim=64, ffn=1024)

    @staticmethod
    def wan_1_3b() -> WanConfig:
        """Wan2.1-T2V-1.3B without its text path."""
        return WanConfig(layers=30, heads=12, head_dim=128, ffn=8960, in_channels=16)

    @staticmethod
    def wan_14b() -> WanConfig:
        """Wan2.1-T2V-14B without its text path."""
        return WanConfig(layers=40, heads=40, head_dim=128, ffn=13_824, in_channels=16)
