"""Statistics of columns and pictures, as LeRobot keeps them per set and per episode.

Not here: who writes them (lerobot_writer.py, lerobot_columns.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from colaworld.data.errors import DataError


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


def told_together(parts: Sequence[tuple[str, Any]]) -> tuple[str, dict[str, list[float]]]:
    """(where, statistics of one column) as files state them, of one set or of each of its episodes ->
    (where, those of the whole set). Raises DataError where they are no numbers."""
    read = [(where, _flat(where, of)) for where, of in parts]
    if len(read) == 1:
        return read[0]
    where = f"{parts[0][0]} to {parts[-1][0].rpartition(': ')[2]}"
    try:
        made = reduce(Statistics.merged, (_from_dict(of) for _, of in read)).to_dict()
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{where}: expected min, max, mean, std and count of equal sizes: {error}"
        ) from None
    return where, made


def _from_dict(of: dict[str, list[float]]) -> Statistics:
    low, high, mean, std = (np.asarray(of[name]) for name in ("min", "max", "mean", "std"))
    (count,) = of["count"]
    return Statistics(low, high, mean, std**2 * count, int(count))


def _flat(where: str, of: Any) -> dict[str, list[float]]:
    if not isinstance(of, dict):
        raise DataError(f"{where}: expected statistics by name, got {of!r:.60}")
    made = {}
    for name in ("min", "max", "mean", "std", "count", "q01", "q99"):
        try:
            if name in of:
                made[name] = np.asarray(of[name], np.float64).reshape(-1).tolist()
        except (TypeError, ValueError):
            raise DataError(f"{where}: {name}: expected numbers, got {of[name]!r:.60}") from None
    return made
