"""Codebook health while training: when to leave warm-up, and when to call a codebook collapsed.

Two small rules look at the normalised entropy of the codes in use (1 even, 0 one code), each time it is
measured, and at control (control.py), where that is: codes can be in use and mean nothing. The method
leaves warm-up "when it is high and stable", judged by eye; here:

    entropy  ^            ......... level >= threshold
             |       ....'|<------>| drift of a fitted line over the window ~ 0  -> leave
             |   ..''
             +--|------------------------> step
              min_steps

Not here: the health numbers themselves (metrics.codebook) or what a rollback does (trainer.py).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from colaworld.metrics.codebook import CodebookMeter
from colaworld.training.config import AlarmConfig, GateConfig


def fitted_slope(points: list[tuple[float, float]]) -> float:
    """Slope of the least-squares line through (x, y) points; 0 where all x are equal."""
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return 0.0
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def under(control: float | None, floor: float) -> bool:
    """Whether control, where it is measured, is under a floor; one of 0 is not looked at, since codes that
    mean nothing have a control of 0 and some noise."""
    return control is not None and floor > 0 and not control >= floor


def _collapsed(
    rule: str, config: GateConfig | AlarmConfig, entropy: float, control: float | None
) -> str | None:
    """Which of a rule's floors is missed, in words."""
    if entropy < config.floor:
        return f"normalised entropy {entropy:.3f} is under {rule}.floor {config.floor:g}"
    if under(control, config.control_floor):
        return f"control {control:.4f} is under {rule}.control_floor {config.control_floor:g}"
    return None


class WarmupGate:
    """Says when entropy is high and level. Its state is plain JSON."""

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        self._points: list[tuple[int, float]] = []  # (step, entropy), oldest first
        self.passed = False

    def update(self, step: int, entropy: float, control: float | None = None) -> bool:
        """Add a measurement at `step` (steps done in the phase). True: leave the phase.

        `control` is the latest one, None where it is not measured.
        """
        config = self.config
        self._points.append((step, entropy))
        # keep one point at or beyond the window's far edge, so that a full window can be told
        while len(self._points) > 1 and self._points[1][0] <= step - config.window:
            self._points.pop(0)
        full = step - self._points[0][0] >= config.window
        if step < config.min_steps or not full or len(self._points) < 3:
            return False
        mean = sum(y for _, y in self._points) / len(self._points)
        drift = fitted_slope([(float(x), y) for x, y in self._points]) * config.window
        high = min(mean, entropy) >= config.entropy
        steers = not under(control, config.control)
        self.passed = steers and high and abs(drift) <= config.max_drift
        return self.passed

    def collapsed(self, entropy: float, control: float | None = None) -> str | None:
        """Why a phase that ended by its steps has nothing to hand on; None where it has."""
        return _collapsed("gate", self.config, entropy, control)

    def state_dict(self) -> dict[str, Any]:
        return {"points": [list(p) for p in self._points], "passed": self.passed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._points = [(int(step), float(entropy)) for step, entropy in state["points"]]
        self.passed = bool(state["passed"])


class CollapseAlarm:
    """Counts checks in a row under the floor. Its state is plain JSON."""

    def __init__(self, config: AlarmConfig) -> None:
        self.config = config
        self._recent: deque[float] = deque(maxlen=config.checks)

    def update(self, entropy: float, control: float | None = None) -> str | None:
        """Add a measurement. Returns the configured action when the alarm is raised, else None.

        After an alarm the count begins anew, so a warning repeats every `checks` checks. Codes that
        steer nothing (`control` under its floor) count as under every floor of entropy.
        """
        self._recent.append(-1.0 if under(control, self.config.control_floor) else entropy)
        if len(self._recent) < self.config.checks or max(self._recent) >= self.config.floor:
            return None
        self._recent.clear()
        return self.config.action

    def collapsed(self, entropy: float, control: float | None = None) -> str | None:
        """Why a phase that ends now ends with a collapsed codebook; None where it does not."""
        return _collapsed("alarm", self.config, entropy, control)

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.clear()
        self._recent.extend(float(value) for value in state["recent"])


class HealthMeter:
    """Codebook health over a window of the latest actions of a phase.

    `latest` is the last health measured, or None before the first, and `control` the last control;
    its state is plain JSON.
    """

    def __init__(self, codebook_size: int, tokens: int, window: int) -> None:
        self._meter = CodebookMeter(codebook_size, tokens, window)
        self.window = window
        self.latest: dict[str, Any] | None = None
        self.control: float | None = None

    def update(self, indices: Tensor) -> None:
        """Take in the codes of one forward pass, int64 [M, N], of all processes."""
        self._meter.update(indices)

    def measure(self) -> dict[str, Any] | None:
        """Health now, kept as `latest`; None while no codes were seen."""
        if len(self._meter):
            self.latest = self._meter.health()
        return self.latest

    @property
    def full(self) -> bool:
        """Whether the window is full: before, entropy is low only because few codes were seen."""
        return len(self._meter) >= self.window

    @property
    def codebook_size(self) -> int:
        return self._meter.codebook_size

    def counts(self) -> Tensor:
        """Uses of each code in the window, int64 [N, K]."""
        return self._meter.counts()

    def state_dict(self) -> dict[str, Any]:
        return {
            "meter": self._meter.state_dict(),
            "latest": self.latest,
            "control": self.control,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._meter.load_state_dict(state["meter"])
        self.latest, self.control = state["latest"], state.get("control")
