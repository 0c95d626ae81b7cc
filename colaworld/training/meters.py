"""What is measured while training: codebook health, gradient norms, speed.

Not here: the health numbers themselves (metrics.codebook), nor where they are written (loggers.py).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from colaworld.metrics.codebook import CodebookMeter
from colaworld.training.distributed import whole_tensor
from colaworld.training.optimizer import PhaseOptimizer


class HealthMeter:
    """Codebook health over a window of the latest actions of a phase.

    `latest` is the last health measured, or None before the first; its state is plain JSON.
    """

    def __init__(self, codebook_size: int, tokens: int, window: int) -> None:
        self._meter = CodebookMeter(codebook_size, tokens, window)
        self.window = window
        self.latest: dict[str, Any] | None = None

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
        return {"meter": self._meter.state_dict(), "latest": self.latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._meter.load_state_dict(state["meter"])
        self.latest = state["latest"]


def gradient_norms(optimizer: PhaseOptimizer) -> dict[str, float]:
    """Gradient norm of each part that trains (before clipping); 0 where no gradient arrived."""
    norms = {}
    for part in optimizer.phase.train:
        gradients = optimizer.gradients(part)
        norms[part] = float(whole_tensor(torch.nn.utils.get_total_norm(gradients)))
    return norms


class Throughput:
    """Steps and clips per second over the latest `window` steps."""

    def __init__(self, window: int = 50) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=window)

    def update(self, seconds: float, clips: int) -> None:
        self._steps.append((seconds, clips))

    @property
    def steps_per_second(self) -> float:
        seconds = sum(s for s, _ in self._steps)
        return len(self._steps) / seconds if seconds > 0 else 0.0

    @property
    def clips_per_second(self) -> float:
        seconds = sum(s for s, _ in self._steps)
        return sum(c for _, c in self._steps) / seconds if seconds > 0 else 0.0
