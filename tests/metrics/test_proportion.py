"""Intervals of shares against values worked out by hand, and by their coverage."""

from __future__ import annotations

import itertools
import math

import pytest

from colaworld.metrics.proportion import paired, wilson


def test_bounds_solve_wilsons_equation() -> None:
    """(p - share)^2 = z^2 p (1 - p) / n at both ends, z = 1.959964."""
    found = wilson(7, 20)
    for p in (found.low, found.high):
        assert (p - 0.35) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 20, rel=1e-5)
    assert found.mean == 0.35 and found.low < 0.35 < found.high


def test_none_and_all_of_ten_are_no_points() -> None:
    """At a share of 0 the upper end is z^2 / (n + z^2) = 3.8415 / 13.8415."""
    none, every = wilson(0, 10), wilson(10, 10)
    assert none.low == 0 and none.high == pytest.approx(0.27753, abs=1e-5)
    assert every.high == 1 and every.low == pytest.approx(0.72247, abs=1e-5)


def test_wrong_counts_are_refused() -> None:
    for successes, total in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="0 <= successes <= total"):
            wilson(successes, total)


def test_pairs_that_all_agree_are_no_point() -> None:
    """Of 8 pairs: 1.959964 sqrt(0.2 / 10) either way; all gained: up to 1 and well above 0."""
    same = paired(0, 0, 8)
    assert same.mean == 0 and same.high == -same.low == pytest.approx(0.277181, abs=1e-6)
    every = paired(8, 0, 8)
    assert every.mean == 1 == every.high and 0.4 < every.low < 0.8
    assert paired(0, 8, 8).low == -1


@pytest.mark.parametrize(("up", "down"), [(0.02, 0.02), (0.3, 0.0), (0.5, 0.2), (0.1, 0.4)])
def test_the_difference_lies_within_as_often_as_it_says(up, down) -> None:
    """Over all outcomes of 20 pairs, each by its multinomial probability."""
    inside = 0.0
    for gains, losses in itertools.product(range(21), repeat=2):
        rest = 20 - gains - losses
        if rest < 0:
            continue
        ways = math.comb(20, gains) * math.comb(20 - gains, losses)
        chance = ways * up**gains * down**losses * (1 - up - down) ** rest
        found = paired(gains, losses, 20)
        inside += chance * (found.low <= up - down <= found.high)
    assert inside > 0.93


def test_pairs_that_cannot_be_are_refused() -> None:
    for counts in ((3, 2, 4), (-1, 0, 3), (0, 0, 0)):
        with pytest.raises(ValueError, match="expected gains and losses among"):
            paired(*counts)
