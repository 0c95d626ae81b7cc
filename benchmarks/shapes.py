"""Shapes by name, and what the sizes of a recipe are. Which shapes there are stands beside what is timed.

A benchmark never holds a bare size without a reason. Not here: how anything is timed.
Shape legend: B clips, T frames, S tokens per frame, H heads, D channels per head, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a GPU machine may have torch and Triton alone: recipes load when asked for
    from colaworld.runs.config import RunConfig

# Height and width where a recipe leaves them to the data set: Crafter's map of 7 x 9 cells at 4 px,
# which the shipped video model was trained on and `colaworld demo` records.
RECORDED = (28, 36)
# STDiT3-XL/2 at the size its kernels are planned for: 16 latent frames of 256 x 256 px, whose latents
# of 32 x 32 make 16 x 16 tokens; and a training batch of eight such clips, for a GPU.
XL = {"B": 1, "T": 16, "S": 256}
XL_BATCH = XL | {"B": 8}
XL_WIDTH, XL_HEADS = 1152, {"H": 16, "D": 72}
LAM_DIM = 32  # of a latent action in the paper


@dataclass(frozen=True)
class Shape:
    """Sizes with a name and the reason for being timed."""

    name: str
    sizes: Mapping[str, int]
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)  # keywords of the op, not sizes
    heavy: bool = False  # too long for every run; timed when named

    def of(self, names: str) -> tuple[int, ...]:
        """The sizes of these names, a letter each."""
        return tuple(self.sizes[name] for name in names)


def run_config(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The recipe called `name`, `overrides` put over it. ConfigError on an unknown name."""
    from colaworld.config import from_dict
    from colaworld.recipes import recipe
    from colaworld.runs.config import RunConfig

    return from_dict(RunConfig, overrides or {}, base=recipe(name))


def frame_size(config: RunConfig) -> tuple[int, int]:
    """(height, width) of a frame in pixels."""
    return config.data.height or RECORDED[0], config.data.width or RECORDED[1]


def family(config: RunConfig) -> str:
    """What a recipe's shapes are called: "nano" for nano.cola."""
    return config.recipe.split(".")[0]


def clips(config: RunConfig) -> dict[str, int]:
    """B, T and S of a training step's tokens in the generator."""
    height, width = frame_size(config)
    side = config.model.tokenizer.spatial_stride
    _, rows, columns = config.model.backbone.patch
    tokens = (height // (side * rows)) * (width // (side * columns))
    return {"B": config.training.batch_size, "T": config.data.frames_per_clip, "S": tokens}


def idm_clips(config: RunConfig) -> dict[str, int]:
    """B, T and S of a training step's tokens in the inverse dynamics model."""
    height, width = frame_size(config)
    patch = config.model.idm.patch
    return clips(config) | {"S": (height // patch) * (width // patch)}


def heads(part: Any) -> dict[str, int]:
    """H and D of a part of the model by its configuration."""
    return {"H": part.heads, "D": part.width // part.heads}
