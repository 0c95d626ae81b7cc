"""Bootstrap intervals that resample whole episodes, and training seeds with them.

Clips of one episode share scene and behaviour, so they are not independent; resampling episodes
(the cluster bootstrap) keeps an interval honest. Runs of several seeds that are measured on the same
episodes share those: seeds and episodes are resampled both. Not here: what the values are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean (or another statistic of the whole sample) with the bounds of its interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float],
    episodes: Sequence[int] | np.ndarray,
    *,
    samples: int,
    generator: np.random.Generator,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of any statistic of rows, resampling episodes with replacement.

    Args:
        statistic: takes row numbers [R] (int64, with repeats) and returns a float.
        episodes: [M] the episode of each row.
        samples: bootstrap samples; 1000 is enough for two digits of a 95 % interval.
        generator: the only source of randomness.
        level: coverage, 0.95 by default.

    Returns:
        The statistic of all rows with its bounds. With a single episode the bounds are NaN,
        because one episode says nothing about how episodes differ; and where the statistic is not finite.
    """
    episodes = np.asarray(episodes)
    if episodes.ndim != 1 or episodes.size == 0:
        raise ValueError(f"episodes: expected one id per row [M], M >= 1, got {episodes.shape}")
    if samples < 1:
        raise ValueError(f"samples: expected >= 1, got {samples}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}")
    value = float(statistic(np.arange(episodes.size)))
    rows_of = [np.flatnonzero(episodes == e) for e in np.unique(episodes)]
    # Samples that miss what is not finite tell nothing.
    if len(rows_of) < 2 or not np.isfinite(value):
        return Interval(value, float("nan"), float("nan"))
    draws = np.empty(samples)
    for s in range(samples):
        chosen = generator.integers(0, len(rows_of), size=len(rows_of))
        draws[s] = statistic(np.concatenate([rows_of[c] for c in chosen]))
    draws = draws[np.isfinite(draws)]
    if draws.size == 0:
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    episodes: Sequence[int] | np.ndarray,
    *,
    samples: int,
    generator: np.random.Generator,
    level: float = 0.95,
) -> Interval:
    """`bootstrap_statistic` of the mean over rows. values: [M] floats, one per row of episodes."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != np.shape(episodes):
        raise ValueError(
            f"values and episodes: expected the same length, got {values.shape} "
            f"and {np.shape(episodes)}"
        )
    return bootstrap_statistic(
        lambda rows: float(values[rows].mean()),
        episodes,
        samples=samples,
        generator=generator,
        level=level,
    )


def bootstrap_seeds(
    statistic: Callable[[int, np.ndarray], float],
    episodes: Sequence[int] | np.ndarray,
    *,
    seeds: int,
    samples: int,
    generator: np.random.Generator,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the mean over seeds of a statistic of rows, all measured on the same rows.

    Each sample draws seeds and episodes with replacement, and the episodes once for all of its seeds:
    they are the same videos for each, so an odd one is odd for all (the crossed bootstrap of Owen 2007,
    "The pigeonhole bootstrap"). Drawn anew for each seed, that share would be averaged away.

    Args:
        statistic: takes a seed's number (0 ..) and row numbers [R] (int64, with repeats).
        episodes: [M] the episode of each row.
        seeds: how many; with one only episodes are resampled, with one episode only seeds.
        samples: bootstrap samples.
        generator: the only source of randomness.
        level: coverage.

    Returns:
        The mean with its bounds; NaN where there is one seed and one episode, and where the mean is not finite.
    """
    episodes = np.asarray(episodes)
    if seeds < 1 or episodes.ndim != 1 or episodes.size == 0:
        raise ValueError(
            f"seeds and episodes: expected one or more of each, got {seeds} and {episodes.shape}"
        )
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"expected samples >= 1 and 0 < level < 1, got {samples} and {level}")
    rows_of = [np.flatnonzero(episodes == e) for e in np.unique(episodes)]

    def mean(drawn: np.ndarray, rows: np.ndarray) -> float:
        counts = np.bincount(drawn, minlength=seeds)
        values = [n * statistic(seed, rows) for seed, n in enumerate(counts) if n]
        return float(sum(values)) / len(drawn)

    whole = mean(np.arange(seeds), np.arange(episodes.size))
    if (seeds < 2 and len(rows_of) < 2) or not np.isfinite(whole):
        return Interval(whole, float("nan"), float("nan"))
    draws = np.empty(samples)
    for s in range(samples):
        chosen = generator.integers(0, len(rows_of), size=len(rows_of))
        rows = np.concatenate([rows_of[c] for c in chosen])
        draws[s] = mean(generator.integers(0, seeds, size=seeds), rows)
    draws = draws[np.isfinite(draws)]
    if draws.size == 0:
        return Interval(whole, float("nan"), float("nan"))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(whole, float(low), float(high))
