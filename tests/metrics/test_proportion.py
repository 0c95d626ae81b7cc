"""Wilson's interval against values worked out by hand."""

from __future__ import annotations

import pytest

from colaworld.metrics.proportion import wilson


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
