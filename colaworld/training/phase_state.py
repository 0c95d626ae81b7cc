"""Where a run stands (`Progress`) and what lives as long as one of its phases (`PhaseState`).

A PhaseState has the optimizer, guard, gate, alarm, health meter and average; made fresh when a phase
begins, or as a checkpoint had it. It says what of it is saved, measures health, and answers what
gate and alarm make of it. Not here: a step (step.py), the order of things
and what a rollback does (trainer.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from colaworld.training.checkpoint import Checkpoint
from colaworld.training.codebook_monitor import CollapseAlarm, HealthMeter, WarmupGate, under
from colaworld.training.config import TrainingConfig
from colaworld.training.ema import WeightAverage
from colaworld.training.guard import LossGuard
from colaworld.training.optimizer import Moments, PhaseOptimizer
from colaworld.training.phases import Phase
from colaworld.training.protocols import Objective
from colaworld.training.weights import check_fit

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands. Plain JSON values only."""

    phase: int = 0  # index of the current phase
    step: int = 0  # optimizer steps done in it
    global_step: int = 0  # optimizer steps done in all, those undone by a rollback included
    round: int = 0  # rollbacks so far
    over: str | None = None  # why the current phase is over: "steps" or "gate"
    collapsed: str | None = None  # why it hands nothing on, where it is over by its steps
    started: list[str] = field(default_factory=list)  # phases whose before_phase was called
    ended: list[dict[str, Any]] = field(default_factory=list)  # {"phase", "steps", "reason"}
    seconds: float = 0.0  # training time so far, over all sessions
    save_stall: float = 0.0  # seconds that steps waited for checkpoints besides, up to this one


@dataclass(frozen=True)
class TrainResult:
    """How a call of `Trainer.run` ended."""

    status: Literal["finished", "interrupted", "stopped"]
    message: str
    phase: str
    step: int
    global_step: int
    seconds: float
    checkpoint: Path | None
    phases: tuple[Mapping[str, Any], ...] = ()  # ended phases: "phase", "steps", "reason"


class PhaseState:
    """The parts of one phase. Those it does without are None.

    Args:
        model: already thawed and frozen for `phase`.
        phase: which one.
        objective: whose codebook, if it has one, is watched.
        training: settings of the loop.
        moments: what the optimizer begins with, by parameter name; copied.
        restored: the checkpoint that the phase continues from, or None to begin anew.
        skips: updates in a row that the phase before skipped at its end.
    """

    def __init__(
        self,
        model: nn.Module,
        phase: Phase,
        objective: Objective,
        training: TrainingConfig,
        *,
        moments: Moments,
        restored: Checkpoint | None = None,
        skips: int = 0,
    ) -> None:
        self.model, self.phase = model, phase
        self.objective, self.training = objective, training
        self.optimizer = PhaseOptimizer(model, phase, training, moments=moments)
        self.guard = LossGuard(training, skips)
        self.gate = WarmupGate(phase.gate) if phase.gate else None
        self.alarm = CollapseAlarm(phase.alarm) if phase.alarm else None
        self.health: HealthMeter | None = None
        if objective.codebook_size is not None and objective.tokens is not None:
            self.health = HealthMeter(
                objective.codebook_size, objective.tokens, training.health_window
            )
        self.average: WeightAverage | None = None
        if training.ema_decay:
            self.average = WeightAverage(model, training.ema_decay)
        if restored is not None:
            with restored.restoring():
                self._restore(restored)

    # -- saved and restored ----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but tensors, as JSON values, by the keys of a checkpoint's state."""
        return {
            "guard": self.guard.state_dict(),
            "gate": self.gate.state_dict() if self.gate else None,
            "alarm": self.alarm.state_dict() if self.alarm else None,
            "health": self.health.state_dict() if self.health else None,
            "ema_updates": self.average.updates if self.average else 0,
        }

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state as a checkpoint names it, "<parameter>/<kind>"."""
        return {
            f"{parameter}/{kind}": value
            for parameter, state in self.optimizer.moments().items()
            for kind, value in state.items()
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.guard.load_state_dict(state["guard"])
        for part, name in ((self.gate, "gate"), (self.alarm, "alarm"), (self.health, "health")):
            if part is not None and state[name] is not None:
                part.load_state_dict(state[name])
        if self.average is not None:
            weights = checkpoint.tensors("ema", self.model.state_dict().get)
            check_fit(self.model, weights, source=f"{checkpoint.path}/ema.safetensors")
            self.average.load(weights, state["ema_updates"])

    # -- health, gate, alarm ---------------------------------------------------------------

    def check_health(self, progress: Progress, row: dict[str, Any], *, last: bool) -> str | None:
        """Measure health when due, open the gate, raise the alarm. Returns the alarm's action.

        `row` receives the health; an open gate ends the phase in `progress`.
        """
        if self.health is None:
            return None
        step, control = progress.step, row.get("control")
        if control is not None:
            self.health.control = control["control"]
        if not (step == 1 or last or step % self.training.health_every == 0):
            row["codebook"] = self.health.latest
            return None
        row["codebook"] = self.health.measure()
        if not self.health.full or row["codebook"] is None:
            return None
        entropy = row["codebook"]["entropy_normalised"]
        steers = self.health.control
        if self.gate is not None and self.gate.update(step, entropy, steers):
            progress.over = "gate"
        elif self.gate is not None and last:
            progress.collapsed = self.gate.collapsed(entropy, steers)
        elif self.alarm is not None and last:
            progress.collapsed = self.alarm.collapsed(entropy, steers)
        action = self.alarm.update(entropy, steers) if self.alarm is not None else None
        if action is not None and self.phase.alarm is not None:
            log.warning(
                "%s step %d: the codebook is collapsing (normalised entropy %.3f%s, under %.3f%s for "
                "%d checks): %s",
                self.phase.name,
                step,
                entropy,
                "" if steers is None else f", control {steers:.4f}",
                self.phase.alarm.floor,
                "" if steers is None else f" or {self.phase.alarm.control_floor:g}",
                self.phase.alarm.checks,
                action,
            )
        return None if action == "warn" else action

    def healthy(self, phases: Sequence[Phase]) -> bool:
        """Whether a rollback may go back to now: the latest update was applied, and there is no
        codebook, or its entropy and its control are above the alarm's floors.

        A phase without an alarm answers to the highest floors of all `phases`.
        """
        if self.guard.in_a_row:
            return False
        if self.health is None:
            return True
        alarms = [self.phase.alarm] if self.phase.alarm else [p.alarm for p in phases if p.alarm]
        if under(self.health.control, max((a.control_floor for a in alarms), default=0.0)):
            return False
        if self.health.latest is None:
            return True
        floor = max((a.floor for a in alarms), default=0.0)
        return bool(self.health.latest["entropy_normalised"] >= floor)
