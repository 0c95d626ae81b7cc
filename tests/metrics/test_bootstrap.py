"""Bootstrap intervals: coverage on a known distribution, and the role of episodes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from colaworld.metrics.bootstrap import (
    Interval,
    bootstrap_mean,
    bootstrap_seeds,
    bootstrap_statistic,
)


def test_the_interval_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        means = rng.normal(2.0, 1.0, size=30)  # 30 episodes, 4 rows each that hardly differ
        values = np.repeat(means, 4) + rng.normal(0, 0.05, size=120)
        interval = bootstrap_mean(values, np.repeat(np.arange(30), 4), samples=200, generator=rng)
        covered += interval.low <= 2.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_rows_of_one_episode_do_not_count_as_independent():
    episodes = np.repeat(np.arange(10), 50)
    values = np.repeat(np.random.default_rng(1).normal(size=10), 50)
    by_episode = bootstrap_mean(values, episodes, samples=400, generator=np.random.default_rng(0))
    by_row = bootstrap_mean(values, np.arange(500), samples=400, generator=np.random.default_rng(0))
    ratio = (by_episode.high - by_episode.low) / (by_row.high - by_row.low)
    assert ratio == pytest.approx(math.sqrt(50), rel=0.35)


def test_the_mean_is_of_rows_and_constants_have_no_width():
    interval = bootstrap_mean(
        [1.0, 1.0, 4.0], [0, 0, 1], samples=50, generator=np.random.default_rng(0)
    )
    assert interval.mean == 2.0
    assert (interval.low, interval.high) == (1.0, 4.0)
    flat = bootstrap_mean([3.0] * 4, [0, 1, 2, 3], samples=50, generator=np.random.default_rng(0))
    assert (flat.mean, flat.low, flat.high) == (3.0, 3.0, 3.0)


def test_the_generator_decides_everything():
    values, episodes = np.arange(12.0), np.arange(12) // 2
    runs = [
        bootstrap_mean(values, episodes, samples=100, generator=np.random.default_rng(seed))
        for seed in (5, 5, 6)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_one_episode_has_no_interval():
    interval = bootstrap_mean([1.0, 2.0], [7, 7], samples=10, generator=np.random.default_rng(0))
    assert interval.mean == 1.5
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_wrong_arguments_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="same length"):
        bootstrap_mean([1.0], [1, 2], samples=5, generator=rng)
    with pytest.raises(ValueError, match="samples"):
        bootstrap_mean([1.0], [1], samples=0, generator=rng)
    with pytest.raises(ValueError, match="level"):
        bootstrap_statistic(lambda r: 0.0, [1, 2], samples=5, generator=rng, level=1.5)


def seeds_of(values, **more) -> Interval:
    """`bootstrap_seeds` of means of values [S, M], each row an episode of its own."""
    array = np.asarray(values, float)
    settings = {"samples": 20_000, "generator": np.random.default_rng(0), **more}
    return bootstrap_seeds(
        lambda seed, rows: array[seed, rows].mean(),
        np.arange(array.shape[1]),
        seeds=len(array),
        **settings,
    )


def test_seeds_that_differ_and_episodes_that_do_not() -> None:
    # Two seeds of means 0 and 1: both drawn alike a quarter of the time each, one of each in half.
    found = seeds_of([[0, 0, 0], [1, 1, 1]])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    found = seeds_of([[0, 0, 0], [1, 1, 1]], level=0.4)  # bounds at .3 and .7: in the middle half
    assert (found.low, found.high) == (0.5, 0.5)


def test_episodes_are_drawn_once_for_all_seeds() -> None:
    # Both seeds find episode 0 worth 0 and episode 1 worth 1. Drawn together, the mean is 0 a quarter of
    # the time; drawn for each seed anew it would be 0 a sixteenth of the time, and the bound at .2 were .25.
    found = seeds_of([[0, 1], [0, 1]], level=0.6)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_one_seed_resamples_episodes_as_bootstrap_mean_does() -> None:
    values, episodes = np.array([0.0, 1, 5, 6]), np.array([3, 3, 8, 8])
    one = bootstrap_seeds(
        lambda seed, rows: values[rows].mean(),
        episodes,
        seeds=1,
        samples=500,
        generator=np.random.default_rng(1),
    )
    # Either episode twice (means .5 and 5.5) a quarter of the time each: both bounds are met.
    assert (one.mean, one.low, one.high) == (3.0, 0.5, 5.5)


def test_one_seed_and_one_episode_have_no_bounds() -> None:
    found = seeds_of([[2.0]])
    assert found.mean == 2 and np.isnan(found.low) and np.isnan(found.high)
    with pytest.raises(ValueError, match="seeds and episodes: expected one or more"):
        bootstrap_seeds(
            lambda s, r: 0.0, [], seeds=1, samples=1, generator=np.random.default_rng(0)
        )


def test_what_is_not_finite_has_no_bounds() -> None:
    """Samples that happen to miss it would give some."""
    values, episodes = [1.0, math.nan, *[1.0] * 8], range(10)
    one = bootstrap_mean(values, episodes, samples=50, generator=np.random.default_rng(0))
    two = bootstrap_seeds(
        lambda seed, rows: float(np.array(values)[rows].mean()),
        episodes,
        seeds=2,
        samples=50,
        generator=np.random.default_rng(0),
    )
    for interval in (one, two):
        assert all(math.isnan(value) for value in interval.as_dict().values())
