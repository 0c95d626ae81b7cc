"""A run measured on held-out episodes: which clips those are, and what must not count as held out.

Not here: what is measured (evaluation), reading a run (load.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from colaworld.action_differences import ActionMismatch
from colaworld.config import ConfigError
from colaworld.contracts import ClipBatch, to_float
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.once import iterate_once
from colaworld.evaluation.evaluate import Evaluation, collect, run_evaluation
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.evaluation.text_effect import text_effect
from colaworld.models.backbones import build_backbone
from colaworld.models.world_model import WorldModel
from colaworld.runs.actions import check_actions
from colaworld.runs.config import RunConfig
from colaworld.runs.load import load_world
from colaworld.runs.provenance import provenance
from colaworld.runs.sizes import check_frames
from colaworld.runs.weights import load_backbone
from colaworld.training.checkpoint import (
    Checkpoint,
)

log = logging.getLogger(__name__)


def evaluate_run(
    folder: Path,
    *,
    config: RunConfig | None = None,
    horizon: int = 8,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
    checkpoint: Checkpoint | None = None,
    unseen: bool = False,
) -> Evaluation:
    """Measure a run on held-out episodes, as it is or as it was at one of its checkpoints.

    `unseen`: all episodes of the set count as held out, since none was trained on.
    `config` replaces the run's own data, sampler and evaluation settings. Clips are as long as
    history + horizon, whatever the clips of training were. Without a horizon in the configuration
    it is `horizon`, or less where the held-out episodes are shorter.

    Raises ConfigError or DataError where data and run do not fit.
    """
    world, stored = load_world(folder, device=device, checkpoint=checkpoint)
    config = config or stored
    sets = stored.data.sets().values()
    trained = next((one for one in sets if _same(one.path, config.data.path)), None)
    if unseen and trained is not None:
        raise ConfigError(
            f"{config.data.path}: {folder} was trained on this set, so not all of its episodes are unseen; "
            "measure its held-out ones (unseen False)"
        )
    _check_heldout(trained or stored.data, config.data)
    world = replace(world, sampler=config.sampler)
    data, heldout, asked = heldout_clips(config, horizon=horizon, unseen=unseen)
    split: Literal["heldout", "all"] = "all" if unseen else "heldout"
    size = heldout.height, heldout.width
    world = replace(world, frame_size=size)  # each clip comes with its own frame rate
    spec = heldout.matched_actions()
    if world.obeys and spec is not None:
        try:
            check_actions(world, heldout)
        except ActionMismatch as error:
            log.warning("no rollouts under real actions: %s", error)
            world = replace(world, actions=None)

    def batches() -> Iterator[ClipBatch]:
        size = config.evaluation.batch_size
        return iterate_once(data, batch_size=size, with_actions=spec is not None, split=split)

    text = None
    if config.evaluation.text_effect:  # first, since a video model without text is told at once
        text = _text_effect(stored, world.model, batches(), config.evaluation, device)
    found = run_evaluation(
        world,
        batches(),
        spec,
        replace(config.evaluation, horizon=asked),
        progress,
        device=device,
    )
    more: dict[str, Any] = {"run": provenance(folder, stored, checkpoint)}
    if text is not None:
        more["text"] = text
    return replace(found, result=found.result | more)


def heldout_clips(
    config: RunConfig, *, horizon: int = 8, unseen: bool = False
) -> tuple[DataConfig, ClipSet, int]:
    """Held-out clips of history + horizon frames: their data, the set they are of, and the horizon.

    Without one in the configuration that is `horizon`, or less where episodes are shorter. `unseen`: all
    episodes count as held out. Raises ConfigError or DataError where there are none that long.
    """
    history = config.evaluation.history
    asked = config.evaluation.horizon
    stride = config.model.tokenizer.temporal_stride
    if asked is not None and (history - 1) % stride == 0 and asked % stride:
        raise ConfigError(
            f"evaluation.horizon: the tokenizer makes one latent of {stride} frames; expected a "
            f"multiple of {stride}, or None for as many as the episodes allow, got {asked}"
        )
    split: Literal["heldout", "all"] = "all" if unseen else "heldout"
    data = replace(config.data, split=split, labels=None, frames_per_clip=history + (asked or 1))
    try:
        heldout = ClipSet(data)
    except DataError as error:
        if asked is None:
            raise
        raise DataError(
            f"{error} (evaluation.history {history} + evaluation.horizon {asked} frames were "
            "asked; --evaluation.horizon None predicts as many as the episodes allow)"
        ) from None
    if asked is None:
        possible = _longest_horizon(heldout, history)
        if possible < horizon:
            log.info("held-out episodes are short: %d frames are predicted", possible)
        asked = whole_latents(min(horizon, possible), history, stride)
        data = replace(data, frames_per_clip=history + asked)
    check_frames(
        config.model,
        config.parts(),
        height=heldout.height,
        width=heldout.width,
        frames=data.frames_per_clip,
    )
    return data, heldout, asked


def _check_heldout(trained: DataConfig, asked: DataConfig) -> None:
    """ConfigError where episodes that were trained on would count as held out."""
    if asked.split not in (trained.split, "heldout"):
        raise ConfigError(
            f"data.split: evaluation is on held-out episodes, got {asked.split!r}; leave it out"
        )
    if asked.frames_per_clip != trained.frames_per_clip:
        raise ConfigError(
            f"data.frames_per_clip: got {asked.frames_per_clip}, but clips of an evaluation are as "
            "long as evaluation.history + evaluation.horizon; set those"
        )
    if not _same(asked.path, trained.path):
        return
    if asked.holdout != trained.holdout:
        raise ConfigError(
            f"data.holdout: the run held out {trained.holdout:g} of its episodes, got "
            f"{asked.holdout:g}: another share may hold episodes that were trained on; leave it "
            "out, and take fewer clips with evaluation.clips"
        )
    if trained.split != "train":
        log.warning(
            "this run trained on data.split %r: the episodes it is now measured on were trained "
            "on, and the numbers say little about others",
            trained.split,
        )


def _same(one: Path | None, other: Path | None) -> bool:
    """Whether two paths lead to one folder, as written or not."""
    return one is not None and other is not None and one.resolve() == other.resolve()


def whole_latents(horizon: int, history: int, stride: int) -> int:
    """The longest horizon up to this one with which a clip is 1 + stride * k frames."""
    whole = horizon - (history + horizon - 1) % stride
    if whole < 1:
        raise DataError(
            f"{horizon} frames can be predicted behind {history}, and the tokenizer makes one latent "
            f"of {stride} (clips of 1 + {stride} k frames): held-out episodes are too short"
        )
    return whole


def _longest_horizon(clips: ClipSet, history: int) -> int:
    """Frames after the history that half of the episodes or more can give; at least 1.

    `clips` are those of a horizon of 1.
    """
    first = {p.episode: p.first for p in reversed(clips.segments)}  # segments come in order
    # Of each episode, on its clock. Segments would say how much memory there is.
    lengths = {p.episode: p.stop - first[p.episode] for p in clips.segments}
    longest = sorted(lengths.values())[(len(lengths) - 1) // 2]
    stride = (clips.span(clips.segments[0].episode) - 1) // history
    return max(1, (longest - 1) // stride + 1 - history)


def _text_effect(
    config: RunConfig,
    model: WorldModel,
    batches: Iterator[ClipBatch],
    asked: EvaluationConfig,
    device: str,
) -> dict[str, Any]:
    """The generator this run started from, with the null caption and without cross-attention."""
    if config.backbone_weights is None:
        raise ConfigError(
            "evaluation.text_effect: this run started from random weights, there is no pre-trained "
            "generator to measure"
        )
    if "text" not in {f.name for f in fields(config.model.backbone)}:
        raise ConfigError(
            f"evaluation.text_effect: a backbone of kind {config.model.backbone.kind!r} has no "
            "cross-attention to text that could be removed"
        )
    velocities = []
    for text in ("null", "removed"):
        generator = build_backbone(replace(config.model.backbone, text=text))
        load_backbone(generator, config.backbone_weights)
        velocities.append(generator.to(device).eval().velocity)
    frames = collect(batches, clips=asked.clips).frames.split(asked.batch_size)
    latents = torch.cat([model.tokenizer.encode(to_float(part, device)) for part in frames])
    return text_effect(*velocities, latents, batch_size=asked.batch_size, seed=asked.seed)
