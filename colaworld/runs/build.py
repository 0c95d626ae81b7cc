"""A configuration is wired into a run: model, objectives, loader, Trainer. Knows every room below."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from colaworld.config import ConfigError, load_yaml, to_yaml
from colaworld.data.clips import ClipSet
from colaworld.data.inspection import warnings_of
from colaworld.data.latent_cache import LatentCache
from colaworld.data.loader import ClipLoader
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel
from colaworld.runs.actions import with_contract
from colaworld.runs.config import RunConfig
from colaworld.runs.lengths import check_gates
from colaworld.runs.looks import code_probe, control_meter
from colaworld.runs.preview import RolloutPreview, first_clips
from colaworld.runs.sizes import check_frames, check_heads, check_history, check_window
from colaworld.runs.weights import load_backbone
from colaworld.runs.work import work_of
from colaworld.training.checkpoint import find_checkpoints
from colaworld.training.config import OBJECTIVES
from colaworld.training.distributed import Distributed
from colaworld.training.trainer import Trainer
from colaworld.training.weights import init_file

log = logging.getLogger(__name__)

_PREVIEW_CLIPS = 4  # side by side in TensorBoard


def build_model(config: RunConfig, *, weights: bool = True) -> WorldModel:
    """The model of a run, its initial weights drawn from the run's seed.

    `weights=False` leaves the pre-trained video model out, for a checkpoint that follows anyway.
    """
    check_heads(config.model, config.parts())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = WorldModel(config.model, parts=config.parts())
    if weights and config.backbone_weights is not None:
        load_backbone(model.backbone, config.backbone_weights)
    return model


def check_backbone_data(config: RunConfig) -> None:
    """A warning where the video model was trained on another size of frames, or on episodes that
    this run calls held out."""
    if (
        config.backbone_weights is None
        or not (Path(config.backbone_weights) / "config.yaml").is_file()
    ):
        return  # random, shipped or a bare file: nothing is known of its data
    before = load_yaml(Path(config.backbone_weights) / "config.yaml", RunConfig).data
    trained, now = ((data.height, data.width) for data in (before, config.data))
    if trained != now:
        log.warning(
            "the generator %s was trained on frames of another size (data.height and data.width %s; "
            "here %s); use the same",
            config.backbone_weights,
            " and ".join(map(str, trained)),
            " and ".join(map(str, now)),
        )
    if (before.path, before.mixture) != (config.data.path, config.data.mixture):
        return
    if before.holdout != config.data.holdout or before.split != config.data.split:
        log.warning(
            "the generator %s was trained with data.holdout %g (split %r) of the same data set, "
            "this run has %g (split %r): held-out episodes may be known to it; use the same",
            config.backbone_weights,
            before.holdout,
            before.split,
            config.data.holdout,
            config.data.split,
        )


def told_rate(config: RunConfig, clips: ClipSet | ClipLoader) -> RunConfig:
    """The run with the frame rate of its clips in `model.backbone.fps`, where the video model is told
    one: what rollouts of its world go by."""
    backbone = config.model.backbone
    if not backbone.clip_fps:
        return config
    backbone = replace(backbone, fps=clips.usual_fps)
    return replace(config, model=replace(config.model, backbone=backbone))


def _loader(config: RunConfig, distributed: Distributed) -> ClipLoader:
    """The main process looks through the data first: the others find in the index cache what it saw."""

    def opened() -> ClipLoader:
        return ClipLoader(
            config.data,
            batch_size=config.training.batch_size,
            seed=config.training.seed,
            rank=distributed.rank,
            world_size=distributed.world_size,
            with_actions=config.uses_actions(),
        )

    made: list[ClipLoader] = []
    distributed.on_main(lambda: made.append(opened()))
    return made[0] if made else opened()


def build_trainer(
    config: RunConfig,
    *,
    out: Path,
    resume: bool = False,
    device: str = "cpu",
    resume_command: str = "",
    before: Mapping[str, Callable[[nn.Module], None]] | None = None,
) -> Trainer:
    """Wire a run. Raises ConfigError or DataError, naming what does not fit.

    `before`: by the name of a phase, what is called before its first step; see `Trainer`.
    """
    check_gates(config)
    distributed = Distributed(device)
    if config.training.batch_size % distributed.world_size:
        raise ConfigError(
            f"training.batch_size: expected a multiple of the {distributed.world_size} processes, "
            f"which take equal shares of a pass, got {config.training.batch_size}"
        )
    loader = _loader(config, distributed)
    for clips in loader.sets.values() if distributed.is_main else ():
        for line in warnings_of(clips.source, clips.config):
            log.warning("%s", line)
    size = {"height": loader.clips.height, "width": loader.clips.width}
    check_frames(config.model, config.parts(), **size, frames=config.data.frames_per_clip)
    # A checkpoint holds the video model too, so the file it came from may be gone by then.
    resumed = resume and bool(find_checkpoints(out / "checkpoints"))
    config = with_contract(told_rate(config, loader), loader, resumed=resumed)
    check_backbone_data(config)
    check_window(
        config.model,
        frames=config.data.frames_per_clip,
        most_history=config.objective.history[1],
    )
    if {"flow", "cola", "aligned", "world", "adapted", "adapted_lam"} & {
        phase.objective for phase in config.scheduled()
    }:
        asked = {name: getattr(config.objective, name) for name in ("history", "frozen_history")}
        check_history(config.model, frames=config.data.frames_per_clip, **asked)
    if config.latents is not None and config.data.mixture:
        raise ConfigError(
            "latents: cached latents are of one data set, this run has those of data.mixture: "
            f"{', '.join(config.data.mixture)}; leave latents out"
        )
    if config.latents is not None and config.objective.augment:
        raise ConfigError(
            "latents: cached latents are of whole frames, but objective.augment crops clips at "
            "random; set --objective.no-augment, or leave latents out"
        )
    if getattr(config.model.tokenizer, "path", None) == "":
        log.warning(
            "model.tokenizer.path is empty: the tokenizer has random weights, good for tests alone"
        )
    for phase in () if resumed else config.scheduled():
        if phase.init_from is not None:  # not after the phases before it
            init_file(phase.init_from)
    model = build_model(config, weights=not resumed)
    if config.latents is not None:
        fingerprint = model.tokenizer.to(device).fingerprint()
        loader.latents = LatentCache.open(config.latents, loader.clips, tokenizer=fingerprint)
    preview = None
    training = config.training
    looked_at = training.tensorboard or training.trackio or training.wandb
    if training.sample_every and looked_at:
        shown = first_clips(config.data, clips=_PREVIEW_CLIPS)
        # One process without clips would leave the others waiting in a preview.
        if not distributed.agree(shown is None) and shown is not None:
            seed = config.training.seed
            preview = RolloutPreview(World(model, config.sampler), shown.frames, seed=seed)
    objectives = {
        phase.objective: OBJECTIVES[phase.objective](model, config.objective)
        for phase in config.scheduled()
    }
    return Trainer(
        model,
        objectives,
        config.scheduled(),
        loader,
        out,
        config.training,
        to_yaml(config),
        preview=preview,
        control=control_meter(config, model, distributed),
        probe=code_probe(config, model, distributed),
        resume=resume,
        device=device,
        resume_command=resume_command,
        distributed=distributed,
        before=before,
        work=work_of(config, **size, device=torch.device(device)) if distributed.is_main else None,
    )
