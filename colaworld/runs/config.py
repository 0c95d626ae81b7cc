"""A run's whole configuration; it imports no torch. Not here: how it becomes a trainer (build.py), recipes (recipes/)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colaworld.action_contract import ActionContract
from colaworld.config import Checked, ConfigError, load_yaml
from colaworld.data.config import DataConfig
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.flow.config import SamplerConfig
from colaworld.models.config import ModelConfig
from colaworld.models.parts import build_order
from colaworld.training.config import OBJECTIVES, ObjectiveConfig, TrainingConfig
from colaworld.training.phases import Phase

_LAM = ("idm", "quantizer", "conditioner")

PHASES: dict[str, Phase] = {
    phase.name: phase
    for phase in (
        # The paper's lengths; it starts from a published video model, so that of pretrain is ours.
        # The video model alone, without actions.
        Phase("pretrain", "flow", ("backbone",), steps=40_000),
        # The video model is frozen; the latent action model learns through it.
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
class RunConfig(Checked):
    """Everything a run depends on; saved as config.yaml in the run folder."""

    recipe: str = "nano.cola"
    """The recipe this configuration began as."""
    schedule: tuple[str, ...] = ("warmup", "joint")
    """Names of phases, in order."""
    backbone_weights: str | None = "nano"
    """The pre-trained video generator: "nano" (shipped), a safetensors file, a run folder, a folder
    or hub name of published weights; None (in YAML: null) for random weights."""
    latents: str | None = None
    """Folder written by `colaworld data encode`. Latents are read from it instead of being encoded on
    the fly; incompatible with `objective.augment`. None: encode on the fly."""
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
    action_contract: ActionContract | None = None
    """What the recorded actions are that the run learns from. A run fills it in from its data; data that
    differ from it are refused. None: it learns from none."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
                OBJECTIVES[phase.objective]
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
        """What the model needs besides tokenizer and video model, in the order it is built."""
        needed = {part for phase in self.scheduled() for part in phase.train}
        for phase in self.scheduled():
            needed.update(OBJECTIVES[phase.objective].needs)
        return build_order(needed - {"tokenizer", "backbone"})

    def uses_actions(self) -> bool:
        """Whether a phase learns from the recorded actions."""
        return any(OBJECTIVES[phase.objective].uses_actions for phase in self.scheduled())


def read_config(folder: Path) -> RunConfig:
    """config.yaml of a run folder. Raises ConfigError, naming what is missing."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    return load_yaml(path, RunConfig)
