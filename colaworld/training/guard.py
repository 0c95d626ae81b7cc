"""Which updates to skip: a loss or gradient that is not finite, or a spike of the loss.

Not here: what a skip means for the run (step.py). The guard counts, and says when to give up.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from colaworld.training.config import TrainingConfig

MINIMUM = 10  # applied updates before a median is trusted to call something a spike


class LossGuard:
    """Judges each update of one phase before it is applied. Its state is plain JSON.

    Args:
        training: the limits.
        in_a_row: updates that the phase before skipped at its end.
    """

    def __init__(self, training: TrainingConfig, in_a_row: int = 0) -> None:
        self.training = training
        self._losses: deque[float] = deque(maxlen=training.spike_window)
        self.skipped = 0
        self.in_a_row = in_a_row
        self.finite = True  # loss and gradient of the latest update

    def judge(self, loss: float, gradient_norm: float) -> str | None:
        """None to apply the update, else why it must be skipped. Counts either way."""
        reason = self._reason(loss, gradient_norm)
        self.finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        if reason is None:
            self.in_a_row = 0
            self._losses.append(loss)
        else:
            self.in_a_row += 1
            self.skipped += 1
        return reason

    def _reason(self, loss: float, gradient_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        factor = self.training.spike_factor
        if factor and len(self._losses) >= min(MINIMUM, self.training.spike_window):
            usual = median(self._losses)
            if usual > 0 and loss > factor * usual:
                return f"the loss {loss:.4g} is over {factor:g} times its median {usual:.4g}"
        return None

    @property
    def exhausted(self) -> bool:
        """Whether so many updates were skipped that training should stop."""
        return (
            self.in_a_row >= self.training.max_consecutive_skips
            or self.skipped >= self.training.max_skips
        )

    def diverged(self, steps: int, *, last: bool) -> str | None:
        """Why a phase that is over after `steps` counts as diverged; None where it does not.

        `last`: no phase follows, in which training could recover from skips at the end. There, one
        spike may be the fault of its clips; two in a row, or no number, are that of the weights.
        """
        if 2 * self.skipped >= steps:
            return f"{self.skipped} of its {steps} updates were skipped"
        if last and not self.finite:
            return f"loss or gradient of its last update were not finite ({self.skipped} of {steps} skipped)"
        if last and self.in_a_row > 1:
            return f"its last {self.in_a_row} updates were skipped ({self.skipped} of {steps} were)"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self._losses),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "finite": self.finite,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.clear()
        self._losses.extend(float(loss) for loss in state["losses"])
        self.skipped = int(state["skipped"])
        self.in_a_row = int(state["in_a_row"])
        self.finite = bool(state.get("finite", True))  # early checkpoints do not say
