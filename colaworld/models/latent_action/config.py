"""Sizes of the inverse and the forward dynamics model and of the aligner, and the three as parts. Imports no
torch.

Not here: the models (idm.py, fdm.py, aligner.py), the quantizers between them (quantizers/config.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from colaworld.config import Checked, Layers, Range, Size
from colaworld.models.parts import Part, register_part
from colaworld.registry import Later


@dataclass(frozen=True)
class IDMConfig(Checked, at="model.idm."):
    """Sizes of the inverse dynamics model. `paper()` gives the paper's."""

    depth: Layers = 2
    """Blocks of spatial attention, causal temporal attention and MLP."""
    width: Size = 64
    """Channels of a token."""
    heads: Size = 2
    """Attention heads."""
    mlp_ratio: Annotated[float, Range(ge=1 / 8, le=64)] = 4.0
    """Hidden width of the MLP over width."""
    patch: Size = 4
    """Pixels per side of a patch."""
    tokens: Size = 1
    """Tokens per latent action (N)."""
    dim: Size = 8
    """Width of one token of the latent action (d)."""
    pair: Literal["mean", "later"] = "later"
    """What a transition is read from: the mean of both frames' features (paper), or the later
    frame's alone, which has seen the earlier one. The mean also carries the action before."""
    matching: Annotated[int, Range(ge=0, le=64)] = 1
    """Radius in patches of the matching volume given beside the pixels; 0: pixels alone (paper)."""
    motion: bool = False
    """Add a linear map of the matching volume's mean over the patches to the latents: they then
    differ by the motion of the whole view from the first step on. Needs matching > 0."""
    input: Literal["frame", "difference", "tubelet"] = "frame"
    """What a patch is embedded from: its pixels (paper); these and their difference to the frame before
    (Wang et al. 2016, temporal segment networks, 3.2); or a tubelet, the patch in both frames (Arnab et al.
    2021, ViViT, 3.2). Frame 0 stands before itself. The last two are one linear map of the same pixels, started
    differently."""

    standardise_frames: bool = False
    """Bring each colour channel of each frame to mean 0 and nearly one spread over its pixels before anything is read, so
    that latents hardly tell how bright the view has become. A view that scrolls changes in brightness with what comes in, a
    video model that is told how bright the next frame is follows easily, and codes then tell that in place of moves
    (recipes/EXPERIMENTS.md). Instance normalisation of the input (Ulyanov et al. 2016); the paper has none."""

    ADDED_KEYS: ClassVar[dict[str, Any]] = {"input": "frame", "standardise_frames": False}
    """Fields younger than labels of latent actions, and what holds without them: left out of the hash then."""

    @staticmethod
    def paper() -> IDMConfig:
        """12 layers, width 768, 12 heads, 224 px in patches of 14, 2 tokens of 32."""
        return IDMConfig(
            depth=12, width=768, heads=12, patch=14, tokens=2, dim=32, pair="mean", matching=0
        )


@dataclass(frozen=True)
class FDMConfig(Checked, at="model.fdm."):
    """Sizes of the forward dynamics model (paper: 12 layers, similar width to the IDM)."""

    depth: Annotated[int, Range(ge=0, le=1000)] = 3
    """Spatial blocks."""
    width: Size = 64
    """Channels of a token."""
    heads: Size = 2
    """Attention heads."""
    mlp_ratio: Annotated[float, Range(ge=1 / 8, le=64)] = 4.0
    """Hidden width of the MLP over width."""
    patch: Size = 4
    """Pixels per side of a patch."""


@dataclass(frozen=True)
class AlignerConfig(FDMConfig, at="model.parts.aligner."):
    """Sizes of the aligner: small, so that what it cannot know must come from the latent action."""

    depth: Annotated[int, Range(ge=0, le=1000)] = 1
    """Spatial blocks."""
    patch: Size = 2
    """Latents of the tokenizer per side of a patch."""


_IDM = Later("colaworld.models.latent_action.idm:InverseDynamicsModel")
_FDM = Later("colaworld.models.latent_action.fdm:ForwardDynamicsModel")
_ALIGNER = Later("colaworld.models.latent_action.aligner:Aligner")

register_part(Part("idm", IDMConfig, lambda config, model: _IDM(config), compile=True))
register_part(
    Part(
        "fdm",
        FDMConfig,
        lambda config, model: _FDM(config, dim=model.config.idm.dim),
        needs=("idm", "quantizer"),
        compile=True,
    )
)
register_part(
    Part(
        "aligner",
        AlignerConfig,
        lambda config, model: _ALIGNER(
            config,
            channels=model.tokenizer.channels,
            actions_per_frame=model.tokenizer.temporal_stride,
            tokens=model.config.idm.tokens,
            dim=model.config.idm.dim,
        ),
        needs=("idm", "quantizer"),
        compile=True,
    )
)
