"""Do the sizes of a run fit each other and the frames? Asked before anything is built or trained.

Not here: what the sizes mean (they stand beside the models) or weights that do not fit (weights/).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from colaworld.config import ConfigError
from colaworld.models.config import ModelConfig
from colaworld.models.tokenizers.tokenizer import latent_frames

log = logging.getLogger(__name__)


def check_heads(model: ModelConfig, parts: Sequence[str]) -> None:
    """ConfigError where attention heads of the video model or of `parts` do not divide a width.

    Each head needs an even share.
    """
    width = model.backbone.width
    for name, channels, heads in (
        ("backbone", width, model.backbone.heads),
        ("conditioner", width, model.conditioner.heads),
        ("idm", model.idm.width, model.idm.heads),
        ("fdm", model.fdm.width, model.fdm.heads),
        ("parts.aligner", model.of("aligner").width, model.of("aligner").heads),
    ):
        if name != "backbone" and name.removeprefix("parts.") not in parts:
            continue
        if heads < 1 or channels % heads or channels // heads % 2:
            of = " (the backbone's)" if name == "conditioner" else ""
            raise ConfigError(
                f"model.{name}.heads: expected a number of heads that leaves each an even share of "
                f"the width {channels}{of}, got {heads}"
            )


def check_frames(
    model: ModelConfig, parts: Sequence[str], *, height: int, width: int, frames: int
) -> None:
    """ConfigError where frames of this size (pixels) or clips of this length do not fit."""
    if frames < 2:
        raise ConfigError(
            f"data.frames_per_clip: expected at least 2, since an action lies between two frames, "
            f"got {frames}"
        )
    _check_stride("data.frames_per_clip", frames, model.tokenizer.temporal_stride)
    needs_h, needs_w = patch_multiples(model, parts)
    if height % needs_h == 0 and width % needs_w == 0:
        return
    _, rows, columns = model.backbone.patch
    patch, idm = model.tokenizer.spatial_stride, model.idm.patch
    good_h, good_w = (max(n, n * round(v / n)) for v, n in ((height, needs_h), (width, needs_w)))
    whose = f"the generator's are {patch * rows}x{patch * columns} px (the tokenizer's {patch} x "
    whose += f"model.backbone.patch {rows}x{columns})"
    if "idm" in parts:
        whose += f", the IDM's {idm}x{idm} px (model.idm.patch)"
    raise ConfigError(
        f"frames of {height}x{width} px (height x width) are not whole patches: {whose}; height "
        f"must be a multiple of {needs_h} and width of {needs_w}: set data.height and data.width, "
        f"for example --data.height {good_h} --data.width {good_w}"
    )


def patch_multiples(model: ModelConfig, parts: Sequence[str]) -> tuple[int, int]:
    """What height and width of a frame, in pixels, must be multiples of."""
    _, rows, columns = model.backbone.patch
    patch = model.tokenizer.spatial_stride
    idm = model.idm.patch if "idm" in parts else 1
    return math.lcm(patch * rows, idm), math.lcm(patch * columns, idm)


def tokens_of_clip(model: ModelConfig, *, height: int, width: int, frames: int) -> int:
    """Tokens of a clip in the video model."""
    length, rows, columns = model.backbone.patch
    stride = model.tokenizer.spatial_stride
    latents = latent_frames(frames, model.tokenizer.temporal_stride)
    return latents // length * (height // stride // rows) * (width // stride // columns)


def _check_stride(name: str, frames: int, stride: int) -> None:
    try:
        latent_frames(frames, stride)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def check_history(model: ModelConfig, *, frames: int, **histories: tuple[int, int] | None) -> None:
    """ConfigError where a history leaves nothing to predict of clips of `frames` pixel frames.

    `histories`: fewest and most latent frames, by their name in `objective`.
    """
    length = latent_frames(frames, model.tokenizer.temporal_stride)
    for name, asked in histories.items():
        if asked is not None and not 1 <= asked[0] <= min(asked[1], length - 1):
            raise ConfigError(
                f"objective.{name}: {asked} leaves nothing to predict of a clip of {length} latent "
                f"frames; expected 1 <= fewest <= most < {length}"
            )


def check_window(model: ModelConfig, *, frames: int, most_history: int) -> None:
    """ConfigError on a window that cannot roll out; a warning where it is not what was trained.

    Args:
        frames: length of a training clip, in pixel frames.
        most_history: most clean latent frames that training shows before those to predict.
    """
    window = model.window
    if window < 2:
        raise ConfigError(
            f"model.window: expected at least 2, one given frame and one to predict, got {window}"
        )
    _check_stride("model.window", window, model.tokenizer.temporal_stride)
    latent = latent_frames(window, model.tokenizer.temporal_stride)
    if window != frames:
        log.warning(
            "model.window is %d, clips of training have %d frames: rollouts and inferred actions "
            "see %d frames at once, which is not what was trained; set --model.window %d",
            window,
            frames,
            window,
            frames,
        )
    elif most_history < latent - 1:
        log.warning(
            "rollouts go on from up to %d clean latent frames (model.window), training shows at most "
            "%d (objective.history); set the second number of --objective.history to %d",
            latent - 1,
            most_history,
            latent - 1,
        )
