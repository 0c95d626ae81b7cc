"""How much one discrete variable tells of another: mutual information, less what chance would show.

The plug-in estimate from counts is too high where the table is large for the sample (Miller 1955).
What is subtracted here is measured: the mean over `permutations` pairings of each clip's x with
another clip's y, which keeps the dependence of neighbouring steps. So chance scores 0, and a sample
that is too small scores low, not high. As a share of y's entropy it is the adjusted mutual information
of Vinh, Epps and Bailey (2010, JMLR 11), normalised by y alone: 1 where x settles y, 0 at chance.

Not here: what x and y are. Shape legend: M clips, T steps of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colaworld.metrics.bootstrap import Interval


@dataclass(frozen=True)
class Information:
    """What x tells of y."""

    bits: float  # plug-in estimate less `chance`; may be below 0
    share: (
        Interval  # bits / (entropy - chance); NaN where y never changes or the table is too large
    )
    chance: float  # bits that unrelated clips show
    entropy: float  # bits, of y


def plug_in(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mutual information of integers >= 0, [R] each, and the entropy of y, in bits, from their counts."""
    size = int(y.max()) + 1
    table = (
        np.bincount(x * size + y, minlength=(int(x.max()) + 1) * size).reshape(-1, size) / y.size
    )
    entropies = [_entropy(shares) for shares in (table.sum(1), table.sum(0), table)]
    return entropies[0] + entropies[1] - entropies[2], entropies[1]


def quantile_bins(values: np.ndarray, *, bins: int) -> np.ndarray:
    """Floats [...] -> int64 bin numbers, bounded by quantiles; no more values than bins: a bin each.

    Equal values share a bin, so that bins are uneven where one value holds many of them.
    """
    distinct, place = np.unique(values, return_inverse=True)
    if len(distinct) <= bins:
        return place.reshape(values.shape)
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins))
    edges = np.where(edges == distinct[0], np.nextafter(distinct[0], np.inf), edges)
    return np.searchsorted(edges, values, side="right")


def information(
    x: np.ndarray,
    y: np.ndarray,
    episodes: np.ndarray,
    *,
    permutations: int,
    generator: np.random.Generator,
) -> Information:
    """What x tells of y, with a 95 % interval over episodes.

    The interval is 1.96 errors to both sides; the error is the larger of the jackknife's, which
    leaves out an episode at a time (resampling with repeats would invent information), and of the
    spread of chance pairings (near independence the jackknife alone may be too small). NaN with one episode.

    Args:
        x, y: [M, T] integers.
        episodes: [M] the episode of each clip.
        permutations: pairings that chance is measured with.

    Raises ValueError on other shapes.
    """
    if x.ndim != 2 or x.shape != y.shape or episodes.shape != x.shape[:1]:
        raise ValueError(
            f"information: expected x, y [M, T] and episodes [M], got {x.shape}, {y.shape}, "
            f"{episodes.shape}"
        )
    x, y = (np.unique(v, return_inverse=True)[1].reshape(v.shape) for v in (x, y))

    def told(rows: np.ndarray, order: np.ndarray | None = None) -> tuple[float, float]:
        return plug_in(x[rows].ravel(), (y if order is None else y[order])[rows].ravel())

    every = np.ones(len(y), bool)
    drawn = [told(every, generator.permutation(len(y)))[0] for _ in range(permutations)]
    chance, spread = float(np.mean(drawn)), float(np.std(drawn))

    def share(rows: np.ndarray) -> float:
        found, whole = told(rows)
        expected = chance * len(y) / rows.sum()  # the excess falls as one over the sample
        return (found - expected) / (whole - expected) if whole > expected else float("nan")

    found, whole = told(every)
    value, ids = share(every), np.unique(episodes)
    low = high = float("nan")
    if len(ids) > 1 and np.isfinite(value):
        left_out = np.array([share(episodes != e) for e in ids])
        error = np.sqrt((len(ids) - 1) * np.var(left_out))
        half = 1.96 * max(float(error), spread / (whole - chance))
        low, high = value - half, value + half
    return Information(found - chance, Interval(value, low, high), chance, whole)


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())
