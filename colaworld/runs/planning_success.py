"""How often goals are reached, over episodes and training seeds, with intervals.

Not here: who played (planning.py), tables (planning_table.py).
"""

from __future__ import annotations

import numpy as np

from colaworld.metrics.bootstrap import Interval, bootstrap_seeds
from colaworld.metrics.proportion import paired, wilson

SAMPLES = 2000
Won = np.ndarray  # [seeds, episodes] 0 or 1


def success(won: Won) -> Interval:
    """The share of 1, with Wilson's interval of one seed and where all or none succeeded; else over seeds and episodes."""
    if len(won) == 1 or won.min() == won.max():
        return wilson(int(won[0].sum()), won.shape[1])
    return _bootstrap(won)


def gained(won: Won, reference: Won) -> Interval:
    """The mean of `won` minus that of a reference of the same episodes, in pairs of seeds; one result, as a bound
    is, stands beside every seed of the other. The interval is that of pairs (`paired`) of one seed, and where all pairs
    say the same; else over seeds and episodes.

    Raises ValueError on several seeds of both that are not equally many.
    """
    if won.shape[1] != reference.shape[1] or (
        len(won) != len(reference) and 1 not in (len(won), len(reference))
    ):
        raise ValueError(
            f"expected pairs of seeds of the same episodes, got {won.shape} and {reference.shape}"
        )
    apart = won - reference
    if len(apart) == 1 or apart.min() == apart.max():
        up, down = (int((apart[0] == sign).sum()) for sign in (1, -1))
        return paired(up, down, apart.shape[1])
    return _bootstrap(apart)


def _bootstrap(values: np.ndarray) -> Interval:
    return bootstrap_seeds(
        lambda seed, rows: float(values[seed, rows].mean()),
        np.arange(values.shape[1]),
        seeds=len(values),
        samples=SAMPLES,
        generator=np.random.default_rng(0),
    )
