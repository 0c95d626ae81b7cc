"""Intervals for a share of successes, and for the difference of two in pairs. Not here: what counts as one."""

from __future__ import annotations

from statistics import NormalDist

from colaworld.metrics.bootstrap import Interval


def wilson(successes: int, total: int, *, level: float = 0.95) -> Interval:
    """The share of `successes` among `total` independent trials, with Wilson's score interval.

    Unlike a bootstrap it is no point where all or none succeed. Source: Wilson 1927; Brown, Cai and
    DasGupta 2001, equation 4. Raises ValueError unless 0 <= successes <= total and total >= 1.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"wilson: expected 0 <= successes <= total, got {successes} of {total}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + (z / (2 * total)) ** 2) ** 0.5
    low = middle - half if successes else 0.0  # exactly, whatever the rounding
    return Interval(share, low, middle + half if successes < total else 1.0)


def paired(gains: int, losses: int, total: int, *, level: float = 0.95) -> Interval:
    """The difference of two shares of successes in `total` pairs of trials: `gains` pairs in which the first alone
    succeeded, `losses` in which the second did.

    An adjusted Wald interval, one pair added to each of the two: no point where all pairs agree, as a bootstrap is.
    Source: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data". Raises ValueError on counts that are not possible.
    """
    if total < 1 or min(gains, losses) < 0 or gains + losses > total:
        raise ValueError(
            f"paired: expected gains and losses among 1 or more pairs, got {gains} and {losses} of {total}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    up, down = (gains + 1) / (total + 2), (losses + 1) / (total + 2)
    middle, half = up - down, z * ((up + down - (up - down) ** 2) / (total + 2)) ** 0.5
    return Interval((gains - losses) / total, max(middle - half, -1.0), min(middle + half, 1.0))
