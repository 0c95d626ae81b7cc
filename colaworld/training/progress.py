"""Where a run stands, and how a call of it ended: values, and nothing that acts on them.

Not here: what moves them (trainer.py, step.py) or where they are kept (run_folder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass
class Progress:
    """Where a run stands. Plain JSON values only."""

    phase: int = 0  # index of the current phase
    step: int = 0  # optimizer steps done in it
    global_step: int = 0  # optimizer steps done in all, those undone by a rollback included
    round: int = 0  # rollbacks so far
    over: str | None = None  # why the current phase is over: "steps" or "gate"
    started: list[str] = field(default_factory=list)  # phases whose before_phase was called
    ended: list[dict[str, Any]] = field(default_factory=list)  # {"phase", "steps", "reason"}
    seconds: float = 0.0  # training time so far, over all sessions


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
