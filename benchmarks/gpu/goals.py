"""What the GPU kernels should reach (results/gpu_goals.json) beside what the rows of a run say.

Ratios are of medians of one run. Mode "bwd" is both passes less the forward. Needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..rows import Row

_FILE = Path(__file__).resolve().parents[1] / "results" / "gpu_goals.json"
_PAIRS = 28  # of blocks in the model that the goals are about
ByImpl = Mapping[tuple[str, str], Row]  # rows of one op and shape by (impl, mode)


@dataclass(frozen=True)
class Goal:
    """One number and the least, or the most, it should be."""

    what: str
    unit: str
    measure: str  # a name in MEASURES
    op: str
    shapes: Sequence[str]  # the first one that was measured counts
    mode: str
    impls: Sequence[str] = ("cuda", "triton")  # ours: the best of them counts
    over: Sequence[str] = ()  # the baselines of a speedup; "compiled": those of the table
    field: str = ""
    scale: float = 1.0
    at_least: float | None = None
    at_most: float | None = None

    def reached(self, rows: Sequence[Row]) -> float | None:
        """The number in these rows; None: a row is missing."""
        copies = (r["gb_s"] for r in rows if (r["op"], r["dtype"]) == ("copy", "bfloat16"))
        copy = next(copies, math.nan)
        for shape in self.shapes:
            mine = [r for r in reversed(rows) if (r["op"], r["shape"]) == (self.op, shape)]
            with contextlib.suppress(KeyError, ValueError):  # no row; nobody's row
                value = MEASURES[self.measure](
                    self, {(r["impl"], r["mode"]): r for r in mine}, copy
                )
                return None if math.isnan(value) else value
        return None

    def line(self, rows: Sequence[Row]) -> str:
        """`what: 3.2 x (goal at least 3 x): yes`."""
        value, below = self.reached(rows), self.at_least is None
        wanted, side = (self.at_most, "most") if below else (self.at_least, "least")
        goal = f"(goal at {side} {wanted:g} {self.unit})"
        if value is None:
            return f"{self.what}: not measured {goal}"
        met = value <= wanted if below else value >= wanted
        return f"{self.what}: {value:.3g} {self.unit} {goal}: {'yes' if met else 'NO'}"


def table() -> tuple[list[Goal], list[str]]:
    """The committed goals, and the baselines that they call compiled.

    Those are attention by backend with norm and rotation compiled around it; the eager ones are slower.
    """
    found = json.loads(_FILE.read_text())
    compiled = found["compiled"]
    made = [Goal(**goal) for goal in found["goals"]]
    return [replace(g, over=compiled) if g.over == "compiled" else g for g in made], compiled


def lines(rows: Sequence[Row]) -> list[str]:
    """One line for each goal."""
    return [goal.line(rows) for goal in table()[0]]


def _fastest(rows: ByImpl, impls: Sequence[str], mode: str) -> float:
    """The smallest median of those that have their rows. ValueError where nobody has."""
    if mode != "bwd":
        return min(rows[impl, mode]["p50_ms"] for impl in impls if (impl, mode) in rows)
    there = [i for i in impls if {(i, "fwd"), (i, "fwd_bwd")} <= rows.keys()]
    each = (rows[i, "fwd_bwd"]["p50_ms"] - rows[i, "fwd"]["p50_ms"] for i in there)
    return max(min(each), 1e-9)


def speedup(goal: Goal, rows: ByImpl, copy: float) -> float:
    """The fastest baseline's median over the fastest of ours."""
    return _fastest(rows, goal.over, goal.mode) / _fastest(rows, goal.impls, goal.mode)


def copy_share(goal: Goal, rows: ByImpl, copy: float) -> float:
    """Per cent of the measured copy; bytes of a backward are those of both less the forward's."""
    moved = {mode: row["bytes"] for (_, mode), row in rows.items()}
    ours = _fastest(rows, goal.impls, goal.mode)
    size = moved["fwd_bwd"] - moved["fwd"] if goal.mode == "bwd" else moved[goal.mode]
    return 100 * size / ours / 1e6 / copy


def best(goal: Goal, rows: ByImpl, copy: float) -> float:
    """The best of a field of ours: the largest where a least is asked for."""
    found = (rows.get((impl, goal.mode), {}).get(goal.field) for impl in goal.impls)
    choose = min if goal.at_least is None else max
    return choose(goal.scale * value for value in found if value is not None)


def activations_saved(goal: Goal, rows: ByImpl, copy: float) -> float:
    """GB that a step of ours holds less than the eager one at 28 pairs of blocks: what fewer pairs
    hold, times so many more."""
    eager, ours = (rows[impl, goal.mode] for impl in ("eager", "default"))
    less = eager["activation_mb"] - ours["activation_mb"]
    return less / 1024 * _PAIRS / ours["sizes"]["pairs"]


MEASURES = {m.__name__: m for m in (speedup, copy_share, best, activations_saved)}
