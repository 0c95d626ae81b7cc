"""What is measured while training: gradient norms and speed.

Not here: codebook health (codebook_monitor.py), nor where numbers are written (loggers.py).
"""

from __future__ import annotations

from collections import deque

import torch

from colaworld.training.distributed import whole_tensor
from colaworld.training.optimizer import PhaseOptimizer


def gradient_norms(optimizer: PhaseOptimizer) -> dict[str, float]:
    """Gradient norm of each part that trains (before clipping); 0 where no gradient arrived."""
    norms = {}
    for part in optimizer.phase.train:
        gradients = optimizer.gradients(part)
        norms[part] = float(whole_tensor(torch.nn.utils.get_total_norm(gradients)))
    return norms


class Throughput:
    """Clips per second over the latest `window` steps."""

    def __init__(self, window: int = 50) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=window)

    def update(self, seconds: float, clips: int) -> None:
        self._steps.append((seconds, clips))

    @property
    def clips_per_second(self) -> float:
        seconds = sum(s for s, _ in self._steps)
        return sum(c for _, c in self._steps) / seconds if seconds > 0 else 0.0
