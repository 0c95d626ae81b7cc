"""Sizes of STDiT3, from nano (1.0 M parameters) to XL/2 (1.2 B) and 3B/2."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from colaworld.config import Layers, Range, Size, Weight
from colaworld.models.backbones.backbone import BackboneConfig


@dataclass(frozen=True)
class STDiT3Config(BackboneConfig):
    """Sizes of the generator. `xl2()` gives the published layout."""

    kind: Literal["stdit3"] = field(default="stdit3", kw_only=True)
    """Which generator this is; the recipe decides it."""
    depth: Layers = 4
    """Pairs of one spatial and one temporal block."""
    width: Size = 96
    """Channels of a token."""
    heads: Size = 3
    """Attention heads."""
    mlp_ratio: Annotated[float, Range(ge=1 / 8, le=64)] = 4.0
    """Hidden width of the MLP over width."""
    patch: tuple[Size, Size, Size] = (1, 2, 2)
    """Latent frames, rows and columns of one token."""
    in_channels: Size = 12
    """Channels of a latent."""
    predict_sigma: bool = False
    """Twice the output channels, of which the second half is ignored (as published)."""
    input_sq_size: Size = 32
    """Reference size of the position embedding, in pixels (published: 512)."""
    pixels_per_latent: Size = 2
    """Pixels per side of one latent location, for the position embedding's scale."""
    causal: bool = True
    """Temporal attention sees no later frame (CoLA-World)."""
    text: Literal["removed", "null", "full"] = "removed"
    """Cross-attention to a caption: removed (CoLA-World), fed with the null caption, or with one."""
    caption_width: Size = 4096
    """Channels of a caption's features (T5-XXL)."""
    caption_length: Size = 300
    """Tokens of the null caption."""
    fps: Weight = 0.0
    """Frame rate the video model is told when a call names none. With `clip_fps` a run writes that of
    its own clips here, and rollouts of its world go by it."""
    clip_fps: bool = False
    """Tell the video model the rate at which each clip was cut, as Open-Sora was; false: always `fps`."""
    round_times: bool = False
    """Round times (0 .. 1000) and frame rates to bfloat16 before they are embedded, as Open-Sora did in
    training and sampling: above 512 its video model has seen multiples of 4 alone."""

    identity_keys: ClassVar[tuple[str, ...]] = ("heads", "input_sq_size")

    @staticmethod
    def nano() -> STDiT3Config:
        """The generator shipped with the library; runs on a CPU."""
        return STDiT3Config()

    @staticmethod
    def tiny() -> STDiT3Config:
        """About 10 M parameters: an evening on one GPU."""
        return STDiT3Config(depth=6, width=256, heads=8)

    @staticmethod
    def xl2(*, text: Literal["removed", "null", "full"] = "removed") -> STDiT3Config:
        """STDiT3-XL/2 of Open-Sora v1.2; without its text path, as CoLA-World uses it."""
        return STDiT3Config(
            depth=28,
            width=1152,
            heads=16,
            in_channels=4,
            predict_sigma=True,
            input_sq_size=512,
            pixels_per_latent=8,
            text=text,
            fps=24.0,  # of a film; where nobody knows better
            clip_fps=True,
            round_times=True,
        )

    @staticmethod
    def large(*, text: Literal["removed", "null", "full"] = "removed") -> STDiT3Config:
        """STDiT3-3B/2 of Open-Sora v1.2."""
        return replace(STDiT3Config.xl2(text=text), width=1872, heads=26)
