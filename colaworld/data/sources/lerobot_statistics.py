"""Statistics of columns and pictures, as LeRobot keeps them per set and per episode.

Not here: who writes them (lerobot_writer.py, lerobot_columns.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Statistics:
    """Minimum, maximum, mean, deviation and count per dimension, mergeable (Chan's formula)."""

    def __init__(
        self, low: np.ndarray, high: np.ndarray, mean: np.ndarray, m2: np.ndarray, count: int
    ) -> None:
        self.low, self.high, self.mean, self.m2, self.count = low, high, mean, m2, count
        self.shape: tuple[int, ...] = (-1,)
        self.frames: int | None = None

    @classmethod
    def of(cls, values: np.ndarray) -> Statistics:
        x = np.asarray(values, np.float64).reshape(len(values), -1)
        mean = x.mean(0)
        return cls(x.min(0), x.max(0), mean, ((x - mean) ** 2).sum(0), len(x))

    @classmethod
    def of_images(cls, frames: np.ndarray, length: int) -> Statistics:
        made = cls.of(frames.reshape(-1, 3) / 255.0)
        made.shape, made.frames = (3, 1, 1), length  # [3, 1, 1], as LeRobot broadcasts it
        return made

    def merged(self, other: Statistics) -> Statistics:
        count = self.count + other.count
        delta = other.mean - self.mean
        made = Statistics(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta**2 * self.count * other.count / count,
            count,
        )
        made.shape = self.shape
        made.frames = None if self.frames is None else self.frames + (other.frames or 0)
        return made

    def to_dict(self) -> dict[str, Any]:
        values = {"min": self.low, "max": self.high, "mean": self.mean}
        values["std"] = np.sqrt(self.m2 / self.count)
        made: dict[str, Any] = {k: v.reshape(self.shape).tolist() for k, v in values.items()}
        return made | {"count": [self.frames if self.frames is not None else self.count]}
