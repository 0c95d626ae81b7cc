"""A phase: a value that says what is minimised, which parts of the model move, and for how long.

Warm-up, joint training, LAM, world model and pre-training are such values (see recipes), run one after
another by the same loop. Not here: objectives, the optimizer, or when a gate opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from colaworld.config import Checked, ConfigError, Count, Natural, Range
from colaworld.training.config import AlarmConfig, GateConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Phase(Checked):
    """One stretch of training. Parts of the model are named by its direct children."""

    name: str
    """What the phase is called in logs and checkpoints; unique within a run."""
    objective: str
    """Which objective is minimised, by its name: flow, cola, aligned, reconstruction, world, adapter, adapted, adapted_lam,
    or yours."""
    train: tuple[str, ...]
    """Parts of the model that train; all others are frozen and in evaluation mode."""
    steps: Count
    """Optimizer steps; the maximum where there is a gate."""
    learning_rate: Annotated[float, Range(gt=0, le=10)] = 7.5e-5
    """Learning rate after the ramp (the paper's, in every phase)."""
    lr_warmup_steps: Natural = 2000
    """Steps of the linear ramp up to the learning rate, constant after it; 0 for none."""
    cooldown_steps: Natural = 0
    """Last steps over which the learning rate falls linearly to a tenth; 0 for none (paper)."""
    lr_multipliers: tuple[tuple[str, Annotated[float, Range(gt=0, le=1000)]], ...] = ()
    """(part, factor) pairs: a part's learning rate as a multiple of `learning_rate`."""
    init_from: str | None = None
    """Where parts start from at the phase's first step: the folder of a finished run, or a
    safetensors file of a world model. Parts that it holds take its weights, others stay."""
    gate: GateConfig | None = None
    """Leave the phase early by this rule; None runs all steps."""
    alarm: AlarmConfig | None = None
    """Watch the codebook for collapse by this rule; None does not."""

    @property
    def _at(self) -> str:  # type: ignore[override]
        return f"phases.{self.name}."

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, ok, wanted in (
            ("train", len(self.train) > 0, "at least one part"),
            ("train", len(set(self.train)) == len(self.train), "each part once"),
        ):
            if not ok:
                raise ConfigError(
                    f"phase {self.name!r}: {name}: expected {wanted}, got {getattr(self, name)!r}"
                )
        for part, factor in self.lr_multipliers:
            if part not in self.train:
                raise ConfigError(
                    f"phase {self.name!r}: lr_multipliers: expected a part that trains "
                    f"({', '.join(self.train)}), got ({part!r}, {factor!r})"
                )

    def capped(self, most: int | None) -> Phase:
        """The phase in at most so many steps (`training.max_steps`), its cooldown at their end."""
        if most is None or most >= self.steps:
            return self
        return replace(self, steps=most, cooldown_steps=min(self.cooldown_steps, most))

    def rate(self, part: str) -> float:
        """The learning rate of `part` after the ramp."""
        return self.learning_rate * dict(self.lr_multipliers).get(part, 1.0)

    def lr_factor(self, step: int) -> float:
        """Factor on the learning rate of update `step` (1 is the first)."""
        rise = min(1.0, step / self.lr_warmup_steps) if self.lr_warmup_steps else 1.0
        left = self.steps - step
        if left >= self.cooldown_steps:
            return rise
        return min(rise, 0.1 + 0.9 * left / self.cooldown_steps)


def check_phases(phases: Sequence[Phase], model: nn.Module, objectives: Sequence[str]) -> None:
    """Raise ConfigError where phases do not fit each other, the model or the objectives."""
    if not phases:
        raise ConfigError("phases: expected at least one, got none")
    names = [phase.name for phase in phases]
    if len(set(names)) != len(names):
        raise ConfigError(f"phases: expected unique names, got {', '.join(names)}")
    parts = [name for name, _ in model.named_children()]
    own = [name for name, _ in model.named_parameters(recurse=False)]
    if own:
        raise ConfigError(
            f"{type(model).__name__} holds parameters itself ({', '.join(own)}); expected all of "
            f"them in its direct children ({', '.join(parts)}), which are what phases train"
        )
    for phase in phases:
        if phase.objective not in objectives:
            raise ConfigError(
                f"phase {phase.name!r}: no objective {phase.objective!r}; "
                f"known: {', '.join(objectives)}"
            )
        for part in phase.train:
            if part not in parts:
                raise ConfigError(
                    f"phase {phase.name!r}: train: the model has no part {part!r}; "
                    f"its parts: {', '.join(parts)}"
                )
        # Not asked of a phase by itself: shortened alone, it has its cooldown scaled before this.
        if phase.cooldown_steps > phase.steps:
            raise ConfigError(
                f"phase {phase.name!r}: cooldown_steps: expected 0 .. steps ({phase.steps}), got "
                f"{phase.cooldown_steps}"
            )
        alarm = phase.alarm
        if alarm and alarm.action == "rollback" and alarm.rewarm_phase not in names:
            raise ConfigError(
                f"phase {phase.name!r}: alarm.rewarm_phase: no phase {alarm.rewarm_phase!r}; "
                f"phases: {', '.join(names)}"
            )
    for phase, after in pairwise(phases):
        if phase.gate and phase.gate.missed == "reseed" and "quantizer" not in after.train:
            raise ConfigError(
                f"phase {phase.name!r}: gate.missed: 'reseed' starts the codebook anew in the next phase, "
                f"but {after.name!r} does not train the quantizer; expected 'stop' or 'go_on'"
            )


def enter_phase(model: nn.Module, phase: Phase) -> None:
    """Thaw the parts that train (train mode) and freeze the others (eval mode, no gradient).

    Eval mode as well, so that no running statistic of a frozen part moves.
    """
    from colaworld.training.sharding import require_gradients  # torch is there by now

    model.training = True
    for name, child in model.named_children():
        trains = name in phase.train
        child.train(trains)
        require_gradients(child, trains)
