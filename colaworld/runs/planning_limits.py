"""What limits plans: one part after another is replaced by the truth, and what that gains is what the part lost.

    codes           world --generator--> oracle-codes   --action map--> oracle --cost--> oracle-state --planner--> all
    real actions    world --adapter----> world-inferred --generator---> oracle --cost--> oracle-state --planner--> all

Neighbours differ in one part, so that losses and the success of the world add up to all episodes. Where a row was not
played, its parts are told together. What a part loses is what it loses before those on its right are replaced: in
another order it may be another number. A world's picture has no state, so that its cost is never replaced: the cost is
judged in the true simulator. Not here: playing the rows (planning.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

from colaworld.metrics.bootstrap import Interval
from colaworld.runs.planning_success import Won, gained, success

# Of each space rows, best last, and the part that each has and the next one has not.
CHAINS: dict[str, dict[str, str]] = {
    "latent": {
        "world": "generator",
        "oracle-codes": "action map",
        "oracle": "cost",
        "oracle-state": "planner",
    },
    "real": {
        "world": "adapter",
        "world-inferred": "generator",
        "oracle": "cost",
        "oracle-state": "planner",
    },
}

# The rows of them.
SWAPPED = tuple(dict.fromkeys(name for chain in CHAINS.values() for name in chain))


def limits(won: Mapping[str, Won], space: Literal["latent", "real"] | None) -> list[dict[str, Any]]:
    """What the parts lose, in shares of the episodes; empty where nobody plans, or the world alone.

    Args:
        won: of each row who reached the goal, [seeds, episodes].
        space: what is planned in the world; None: there is none.

    Returns:
        {parts, row, instead, lost: {mean, low, high}} of each step; `instead` None: the step to all episodes.
    """
    chain = CHAINS[space or "latent"]
    names = list(chain)
    played = [name for name in names if name in won]
    if played == ["world"]:  # all parts together say what its success says
        return []
    told = []
    for row, better in zip_longest(played, played[1:]):
        end = len(names) if better is None else names.index(better)
        lost = _left(won[row]) if better is None else gained(won[better], won[row])
        told.append(
            {
                "parts": [chain[name] for name in names[names.index(row) : end]],
                "row": row,
                "instead": better,
                "lost": lost.as_dict(),
            }
        )
    return told


def _left(won: Won) -> Interval:
    """The share of episodes that nobody reaches."""
    found = success(won)
    return Interval(1 - found.mean, 1 - found.high, 1 - found.low)


def lines(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each step, in percent of the episodes; nothing where there are none."""
    if not told:
        return []
    return [
        "lost to each part, in points of success, as one after another is replaced by the truth:",
        *(f"  {' and '.join(one['parts'])}: {points(one['lost'])}, {_step(one)}" for one in told),
    ]


def in_a_line(told: Sequence[Mapping[str, Any]]) -> str:
    """The same steps in one line: "generator 20 (5 .. 40), cost and planner 30 (10 .. 50)"."""
    return ", ".join(f"{' and '.join(one['parts'])} {points(one['lost'])}" for one in told)


def points(lost: Mapping[str, float]) -> str:
    """ "30 (10 .. 50)"; the mean alone where there is no interval."""
    ends = [lost["low"], lost["high"]]
    if any(end is None or math.isnan(end) for end in ends):
        return f"{100 * lost['mean']:.0f}"
    return f"{100 * lost['mean']:.0f} ({100 * ends[0]:.0f} .. {100 * ends[1]:.0f})"


def _step(one: Mapping[str, Any]) -> str:
    return f"{one['row']} to {one['instead'] or 'all episodes'}"
