"""Mutual information: values by hand, exact shares, and nothing where there is nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from colaworld.metrics.information import information, plug_in, quantile_bins

EPISODES = np.repeat(np.arange(10), 6)


def told(x, y, episodes=EPISODES, seed=0):
    rng = np.random.default_rng(seed)
    return information(x, y, episodes, permutations=60, generator=rng)


def test_counts_by_hand():
    # joint (0,0) 1/2, (1,0) 1/4, (1,1) 1/4: H(x) 1, H(y) and H(x, y) from the definition
    x, y = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    of_y = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert plug_in(x, y) == pytest.approx((1 + of_y - 1.5, of_y))
    assert plug_in(x, x) == pytest.approx((1, 1))
    assert plug_in(x, np.array([0, 1, 0, 1]))[0] == pytest.approx(0)


def test_a_variable_tells_all_of_itself_and_of_what_follows_from_it():
    y, episodes = np.random.default_rng(1).integers(0, 4, size=(400, 8)), np.arange(400) // 20
    same = told(y, y, episodes)
    assert same.share.mean == pytest.approx(1) and same.share.low == pytest.approx(1, abs=0.02)
    assert same.entropy == pytest.approx(2, abs=0.02)
    assert same.bits == pytest.approx(same.entropy - same.chance)
    # the expected excess of unrelated counts: (4 - 1)^2 / (2 M ln 2) bits (Miller 1955)
    assert same.chance == pytest.approx(9 / (2 * 3200 * math.log(2)), rel=0.25)
    half = told(y, y // 2 + 10, episodes)  # coarser: x settles y, y is one bit
    assert half.share.mean == pytest.approx(1) and half.entropy == pytest.approx(1, abs=0.02)


def test_noise_takes_away_the_known_part():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, size=(60, 50))
    wrong = rng.random(y.shape) < 0.11  # a binary symmetric channel: 1 - H(.11) = .5 bits
    found = told(np.where(wrong, 1 - y, y), y)
    assert found.bits == pytest.approx(0.5, abs=0.05)
    assert found.share.low < 0.5 < found.share.high


@pytest.mark.parametrize("seed", range(4))
def test_unrelated_variables_tell_nothing_within_the_interval(seed):
    rng = np.random.default_rng(seed)
    # large tables, and steps of a clip that depend on each other: the plug-in estimate is far off
    x = np.repeat(rng.integers(0, 40, size=(60, 2)), 4, axis=1)
    y = np.repeat(rng.integers(0, 5, size=(60, 2)), 4, axis=1)
    found = told(x, y, seed=seed)
    assert plug_in(x.ravel(), y.ravel())[0] > 0.5
    assert found.share.low <= 0 <= found.share.high and abs(found.bits) < 0.25


def test_quantile_bins_are_even_and_equal_values_share_one():
    bins = quantile_bins(np.random.default_rng(0).normal(size=(40, 20)), bins=8)
    assert np.bincount(bins.ravel()).tolist() == [100] * 8
    for rare in (0.0, 1.0):  # a gripper that hardly ever moves
        gripper = np.array([rare] + [1 - rare] * 9)
        assert np.unique(quantile_bins(gripper, bins=4)).size == 2
    held = np.r_[np.zeros(50), np.linspace(0.1, 1, 50)]  # half of the values are the least
    counts = np.unique(quantile_bins(held, bins=4), return_counts=True)[1]
    assert counts.tolist() == [50, 25, 25]


def test_what_cannot_be_said_is_nan():
    y = np.zeros((60, 3), int)
    assert np.isnan(told(y, y).share.mean)
    one = told(np.eye(60, 3, dtype=int), np.eye(60, 3, dtype=int), np.zeros(60))
    assert one.share.mean == pytest.approx(1) and np.isnan(one.share.low)
    with pytest.raises(ValueError, match=r"expected x, y \[M, T\]"):
        told(y, y[:, :2])
