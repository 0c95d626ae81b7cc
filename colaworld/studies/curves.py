"""Curves of rows: how entropy, control and the probe went while arms trained, and rollouts frame by frame.

Of an arm: the mean over seeds, and their range, the lowest and the highest. Between two measurements a curve is a
straight line. Not here: drawing (page.py), how numbers of arms are compared (compare.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from colaworld.evaluation.report.charts import ticks
from colaworld.studies.rows import Row

Line = Sequence[tuple[float, float]]  # (step, value)
NAMES = {  # field of a row -> heading
    "entropy": "Entropy of the codes in use",
    "control": "Control on held-out clips",
    "probe": "Probe of held-out codes",
    "psnr_ahead": "PSNR of rollouts, frame by frame",
    "ssim_ahead": "SSIM of rollouts, frame by frame",
}


@dataclass(frozen=True)
class Curve:
    """Over seeds, at some steps; NaN where no seed was measured."""

    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def lines_of(rows: Sequence[Row], name: str) -> list[Line]:
    """The curves under a name, of rows that have it."""
    return [row[name] for row in rows if row.get(name)]


def over_seeds(lines: Sequence[Line], steps: Sequence[float] | None = None) -> Curve:
    """Of one line or more, at `steps`; without them at those of the line that goes farthest. Each as far as it goes."""
    if steps is None:
        longest = max(lines, key=lambda line: (line[-1][0], len(line)))
        steps = [step for step, _ in longest]
    values = np.array([np.interp(steps, *_axes(line), left=np.nan, right=np.nan) for line in lines])
    there = np.isfinite(values)
    count = there.sum(axis=0)
    mean = np.where(there, values, 0.0).sum(axis=0) / np.where(count, count, 1)
    low = np.where(there, values, np.inf).min(axis=0)
    high = np.where(there, values, -np.inf).max(axis=0)
    mean, low, high = (np.where(count > 0, one, np.nan).tolist() for one in (mean, low, high))
    return Curve(list(steps), mean, low, high, seeds=len(lines))


def shown_steps(lines: Sequence[Line]) -> list[float]:
    """Some round steps of all that lines cover, their first and their last among them."""
    first, last = min(line[0][0] for line in lines), max(line[-1][0] for line in lines)
    between = [step for step in ticks(0, last, about=8) if first < step < last]
    return [first, *between, *([last] if last > first else [])]


def curves_of(
    arms: Mapping[str, Sequence[Row]], name: str, *, shared: bool = False
) -> dict[str, Curve]:
    """By arm; none of an arm whose rows lack it. `shared`: all at the same round steps."""
    told = {arm: lines for arm, rows in arms.items() if (lines := lines_of(rows, name))}
    steps = shown_steps([line for lines in told.values() for line in lines]) if told else []
    return {arm: over_seeds(lines, steps if shared else None) for arm, lines in told.items()}


def _axes(line: Line) -> tuple[list[float], list[float]]:
    return [step for step, _ in line], [value for _, value in line]
