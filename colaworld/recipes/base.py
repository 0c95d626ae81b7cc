"""A run's whole configuration, and how it is wired into a trainer.

A recipe is a function that returns a `RunConfig`; this file turns one into a model, objectives, a
loader and a Trainer. The only room that knows all the others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from colaworld.config import ConfigError, load_yaml, to_dict, to_yaml
from colaworld.data.latent_cache import LatentCache
from colaworld.data.loader import ClipLoader, DataConfig
from colaworld.evaluation.evaluate import EvaluationConfig
from colaworld.flow.samplers import SamplerConfig
from colaworld.models.world import World
from colaworld.models.world_model import ModelConfig, WorldModel
from colaworld.recipes.preview import RolloutPreview, first_clips
from colaworld.recipes.sizes import check_frames, check_heads, check_window
from colaworld.recipes.weights import load_generator
from colaworld.training.checkpoint import latest_checkpoint
from colaworld.training.config import TrainingConfig
from colaworld.training.objectives import OBJECTIVES, ObjectiveConfig
from colaworld.training.phases import Phase
from colaworld.training.trainer import Trainer

log = logging.getLogger(__name__)

PHASES = ("pretrain", "warmup", "joint", "lam", "world")
_PREVIEW_CLIPS = 4  # side by side in TensorBoard
_NEEDS: dict[str, tuple[str, ...]] = {  # what an objective runs through, trained or frozen
    "flow": (),
    "cola": ("idm", "quantizer", "conditioner"),
    "world": ("idm", "quantizer", "conditioner"),
    "reconstruction": ("idm", "quantizer", "fdm"),
}


_LAM = ("idm", "quantizer", "conditioner")

# The paper's lengths; it starts from a published generator, so the length of pretrain is ours.
_PRETRAIN = Phase("pretrain", "flow", ("backbone",), steps=40_000)
_WARMUP = Phase("warmup", "cola", _LAM, steps=8_000)
_JOINT = Phase("joint", "cola", (*_LAM, "backbone"), steps=30_000)
_FIRST_STAGE = Phase("lam", "reconstruction", ("idm", "quantizer", "fdm"), steps=30_000)
_SECOND_STAGE = Phase("world", "world", ("conditioner", "backbone"), steps=30_000)


@dataclass(frozen=True)
class PhasesConfig:
    """The phases a run may have; `schedule` in the run says which, in which order."""

    pretrain: Phase = _PRETRAIN
    """The generator alone, without actions."""
    warmup: Phase = _WARMUP
    """The generator is frozen; the latent action model learns through it."""
    joint: Phase = _JOINT
    """Everything trains."""
    lam: Phase = _FIRST_STAGE
    """First of two stages: the latent action model with its own forward model."""
    world: Phase = _SECOND_STAGE
    """Second of two stages: the world model under frozen latent actions."""


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; saved as config.yaml in the run folder."""

    recipe: str = "nano.cola"
    """The recipe this configuration began as."""
    schedule: tuple[str, ...] = ("warmup", "joint")
    """Phases, in order: pretrain, warmup, joint, lam, world."""
    generator: str | None = "nano"
    """The pre-trained video generator: "nano" (shipped), a safetensors file, a run folder, a folder
    or hub name of published weights; None (in YAML: null) for random weights."""
    latents: str | None = None
    """A cache made by `colaworld data encode`, read in place of encoding; needs objective.augment
    false, since a crop has other latents. None: the tokenizer encodes on the fly."""
    data: DataConfig = field(default_factory=DataConfig)
    """Videos and clips."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss."""
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    """What each phase trains, how fast and how long."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How videos are generated in previews, evaluation and `colaworld sample`."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured on held-out episodes."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.schedule if name not in PHASES]
        if unknown or not self.schedule:
            raise ConfigError(
                f"schedule: expected some of {', '.join(PHASES)}, got {self.schedule}"
            )
        for name in PHASES:
            if getattr(self.phases, name).name != name:
                raise ConfigError(f"phases.{name}.name: expected {name!r}; it cannot be renamed")
            objective = getattr(self.phases, name).objective
            if objective not in _NEEDS:
                raise ConfigError(
                    f"phases.{name}.objective: expected one of {', '.join(_NEEDS)}, got {objective!r}"
                )

    def scheduled(self) -> tuple[Phase, ...]:
        """The phases of this run, in order."""
        return tuple(getattr(self.phases, name) for name in self.schedule)

    def parts(self) -> tuple[str, ...]:
        """What the model needs besides tokenizer and generator."""
        needed = {part for phase in self.scheduled() for part in phase.train}
        needed.update(part for phase in self.scheduled() for part in _NEEDS[phase.objective])
        return tuple(p for p in ("idm", "quantizer", "conditioner", "fdm") if p in needed)


def build_model(config: RunConfig, *, weights: bool = True) -> WorldModel:
    """The model of a run, its initial weights drawn from the run's seed.

    `weights=False` leaves the pre-trained generator out, for a checkpoint that follows anyway.
    """
    check_heads(config.model, config.parts())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = WorldModel(config.model, parts=config.parts())
    if weights and config.generator is not None:
        load_generator(model.backbone, config.generator)
    return model


def check_generator_data(config: RunConfig) -> None:
    """A warning where the generator was trained on episodes that this run calls held out."""
    if config.generator is None or not (Path(config.generator) / "config.yaml").is_file():
        return  # random, shipped or a bare file: nothing is known of its data
    before = load_yaml(Path(config.generator) / "config.yaml", RunConfig).data
    if before.path != config.data.path:
        return
    if before.holdout != config.data.holdout or before.split != config.data.split:
        log.warning(
            "the generator %s was trained with data.holdout %g (split %r) of the same data set, "
            "this run has %g (split %r): held-out episodes may be known to it; use the same",
            config.generator,
            before.holdout,
            before.split,
            config.data.holdout,
            config.data.split,
        )


def build_trainer(
    config: RunConfig,
    *,
    out: Path,
    resume: bool = False,
    device: str = "cpu",
    resume_command: str = "",
) -> Trainer:
    """Wire a run. Raises ConfigError or DataError, naming what does not fit."""
    loader = ClipLoader(
        config.data, batch_size=config.training.batch_size, seed=config.training.seed
    )
    check_frames(
        config.model,
        config.parts(),
        height=loader.clips.height,
        width=loader.clips.width,
        frames=config.data.frames_per_clip,
    )
    check_generator_data(config)
    check_window(
        config.model,
        frames=config.data.frames_per_clip,
        most_history=config.objective.history[1],
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
    # A checkpoint holds the generator too, so the file it came from may be gone by then.
    resumed = resume and latest_checkpoint(out / "checkpoints") is not None
    model = build_model(config, weights=not resumed)
    if config.latents is not None:
        fingerprint = model.tokenizer.to(device).fingerprint()
        loader.latents = LatentCache.open(config.latents, loader.clips, tokenizer=fingerprint)
    preview = None
    if config.training.sample_every and config.training.tensorboard:
        clips = first_clips(config.data, clips=_PREVIEW_CLIPS)
        if clips is not None:
            seed = config.training.seed
            preview = RolloutPreview(World(model, config.sampler), clips, seed=seed)
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
        resume=resume,
        device=device,
        resume_command=resume_command,
    )


def with_data(config: RunConfig, path: Path) -> RunConfig:
    """The same run on the data set at `path`."""
    return replace(config, data=replace(config.data, path=path))


__all__ = [
    "PHASES",
    "PhasesConfig",
    "RunConfig",
    "build_model",
    "build_trainer",
    "to_dict",
    "with_data",
]
