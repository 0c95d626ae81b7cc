"""A run's whole configuration, and how it is wired into a trainer.

A recipe is a function that returns a `RunConfig`; this file turns one into a model, objectives, a
loader and a Trainer. The only room that knows all the others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from colaworld.config import ConfigError, load_yaml, to_dict, to_yaml
from colaworld.data.clips import DataConfig
from colaworld.data.latent_cache import LatentCache
from colaworld.data.loader import ClipLoader
from colaworld.evaluation.evaluate import EvaluationConfig
from colaworld.flow.samplers import SamplerConfig
from colaworld.models.parts import build_order
from colaworld.models.world import World
from colaworld.models.world_model import ModelConfig, WorldModel
from colaworld.recipes.preview import RolloutPreview, first_clips
from colaworld.recipes.sizes import check_frames, check_heads, check_window
from colaworld.recipes.weights import load_generator
from colaworld.training.checkpoint import latest_checkpoint
from colaworld.training.config import TrainingConfig
from colaworld.training.distributed import Distributed
from colaworld.training.objectives import ObjectiveConfig, find_objective
from colaworld.training.phases import Phase
from colaworld.training.trainer import Trainer

log = logging.getLogger(__name__)

_PREVIEW_CLIPS = 4  # side by side in TensorBoard
_LAM = ("idm", "quantizer", "conditioner")

PHASES: dict[str, Phase] = {
    phase.name: phase
    for phase in (
        # The paper's lengths; it starts from a published generator, so that of pretrain is ours.
        # The generator alone, without actions.
        Phase("pretrain", "flow", ("backbone",), steps=40_000),
        # The generator is frozen; the latent action model learns through it.
        Phase("warmup", "cola", _LAM, steps=8_000),
        # Everything trains.
        Phase("joint", "cola", (*_LAM, "backbone"), steps=30_000),
        # First of two stages: the latent action model with its own forward model.
        Phase("lam", "reconstruction", ("idm", "quantizer", "fdm"), steps=30_000),
        # Second of two stages: the world model under frozen latent actions.
        Phase("world", "world", ("conditioner", "backbone"), steps=30_000),
    )
}


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; saved as config.yaml in the run folder."""

    recipe: str = "nano.cola"
    """The recipe this configuration began as."""
    schedule: tuple[str, ...] = ("warmup", "joint")
    """Names of phases, in order."""
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
    phases: dict[str, Phase] = field(default_factory=PHASES.copy)
    """What each phase trains, how fast and how long, by name; `schedule` says which run."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How videos are generated in previews, evaluation and `colaworld sample`."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured on held-out episodes."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.schedule if name not in self.phases]
        if unknown or not self.schedule:
            raise ConfigError(
                f"schedule: expected some of {', '.join(self.phases)}, got {self.schedule}"
            )
        for name, phase in self.phases.items():
            if phase.name != name:
                raise ConfigError(f"phases.{name}.name: expected {name!r}; it cannot be renamed")
        for phase in self.scheduled():
            try:
                find_objective(phase.objective)
            except ConfigError as error:
                raise ConfigError(f"phases.{phase.name}.objective: {error}") from None

    def with_phase(self, name: str, **changes: Any) -> RunConfig:
        """The same run with fields of one of its phases changed."""
        phase = replace(self.phases[name], **changes)
        return replace(self, phases=self.phases | {name: phase})

    def scheduled(self) -> tuple[Phase, ...]:
        """The phases of this run, in order."""
        return tuple(self.phases[name] for name in self.schedule)

    def parts(self) -> tuple[str, ...]:
        """What the model needs besides tokenizer and generator, in the order it is built."""
        needed = {part for phase in self.scheduled() for part in phase.train}
        for phase in self.scheduled():
            needed.update(find_objective(phase.objective).needs)
        return build_order(needed - {"tokenizer", "backbone"})

    def uses_actions(self) -> bool:
        """Whether a phase learns from the recorded actions."""
        return any(find_objective(phase.objective).uses_actions for phase in self.scheduled())


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
    distributed = Distributed(device)
    loader = ClipLoader(
        config.data,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        rank=distributed.rank,
        world_size=distributed.world_size,
        with_actions=config.uses_actions(),
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
        phase.objective: find_objective(phase.objective)(model, config.objective)
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
        distributed=distributed,
    )


def with_data(config: RunConfig, path: Path) -> RunConfig:
    """The same run on the data set at `path`."""
    return replace(config, data=replace(config.data, path=path))


__all__ = [
    "PHASES",
    "RunConfig",
    "build_model",
    "build_trainer",
    "to_dict",
    "with_data",
]
