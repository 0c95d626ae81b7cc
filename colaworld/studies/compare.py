"""Arms of a study held against each other, from rows alone.

A number of an arm is its mean over seeds. Its interval resamples seeds and held-out episodes; that of a
difference resamples pairs of runs of one seed, measured on the same clips under the same noise. A number
that is not told clip by clip (a probe, entropy) has an interval over seeds alone. Not here: words and
tables (tables.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.bootstrap import Interval, bootstrap_seeds
from colaworld.runs.planning_success import gained
from colaworld.studies.rows import Row

SAMPLES = 1000
Clips = Mapping[str, np.ndarray]
# Keys of evaluation.json whose number is made of numbers of each clip.
PER_CLIP: dict[str, Callable[[Clips], float]] = {
    "delta_psnr.random": lambda clips: float(clips["delta_psnr"].mean()),
    "rollout.psnr": lambda clips: float(clips["psnr"].mean()),
    "nmse": lambda clips: _ratio(clips["error"].sum(), clips["motion"].sum()),
    "lpips": lambda clips: float(clips["lpips"].mean()),
}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


@dataclass(frozen=True)
class Told:
    """A number of an arm, or a difference of two."""

    interval: Interval
    seeds: int  # behind it
    over: str  # what its interval is over: "seeds and episodes", "seeds", "episodes" or ""
    agree: int | None = None  # of a difference: seeds in which it has the sign of the mean


def arm_mean(rows: Sequence[Row], key: str) -> Told | None:
    """The mean over seeds of the number under `key`, of runs of one arm; None where no run has it.

    Of one seed the interval is its own. Where all plans succeeded, or none, it is that of one seed.
    """
    rows = _with_number(rows, key)
    if not rows:
        return None
    means = {row["numbers"][key]["mean"] for row in rows}
    if len(rows) == 1 or (key.endswith(".success") and means in ({0.0}, {1.0})):
        only = rows[0]["numbers"][key]
        bounds = [float("nan") if only[end] is None else only[end] for end in ("low", "high")]
        told = not np.isnan(bounds).any()
        return Told(Interval(only["mean"], *bounds), len(rows), "episodes" if told else "")
    return _told([(row,) for row in rows], key)


def difference(rows: Sequence[Row], reference: Sequence[Row], key: str) -> Told | None:
    """The number under `key` of an arm minus that of the reference arm, paired by seed.

    None where no seed has both. Of plans the interval is that of `colaworld plan-table`: no point where all agree.
    """
    theirs = {row["seed"]: row for row in _with_number(reference, key)}
    pairs = [(row, theirs[row["seed"]]) for row in _with_number(rows, key) if row["seed"] in theirs]
    if not pairs:
        return None
    told = _told(pairs, key)
    if key.endswith(".success") and told.over.endswith("episodes"):
        won = np.array(
            [[clips_of(row, key)["values"]["success"] for row in pair] for pair in pairs]
        )
        told = replace(told, interval=gained(won[:, 0], won[:, 1]))
    return told


def alike(rows: Sequence[Row], key: str = "rollout.psnr") -> bool:
    """Whether the number under `key` was measured on the same clips, as their fingerprints say."""
    clips = [clips_of(row, key) for row in rows]
    same = {(c.get("rolled"), tuple(c.get("episode", ()))) for c in clips}
    return all(clips) and len(same) == 1


def clips_of(row: Row, key: str) -> Mapping[str, Any]:
    """What is told clip by clip of the number under `key`; empty where it is not."""
    if key in PER_CLIP:
        return row["clips"]
    head, _, name = key.rpartition(".")  # "adapted.100", "psnr"
    found = row.get("after", {}).get(head, {})
    return found if name in found.get("values", ()) else {}


def _over_clips(key: str) -> Callable[[Clips], float]:
    """The number under a key, of what is told of some clips."""
    name = key.rpartition(".")[2]
    return PER_CLIP.get(key) or (lambda clips: float(clips[name].mean()))


def _with_number(rows: Sequence[Row], key: str) -> list[Row]:
    found = [r for r in rows if ((r["numbers"] or {}).get(key) or {}).get("mean") is not None]
    return sorted(found, key=lambda row: row["seed"])


def _told(groups: Sequence[tuple[Row, ...]], key: str) -> Told:
    """Of groups of one seed each: a row, or an arm's and the reference's."""

    def of(group: tuple[float, ...]) -> float:
        return group[0] - group[1] if len(group) == 2 else group[0]

    means = np.array([of(tuple(row["numbers"][key]["mean"] for row in group)) for group in groups])
    every = [row for group in groups for row in group]
    generator = np.random.default_rng([0, RandomStream.COMPARISON])
    if alike(every, key):
        over = _over_clips(key)
        episodes = np.asarray(clips_of(every[0], key)["episode"])
        values = [
            tuple(
                {name: np.asarray(v, float) for name, v in clips_of(row, key)["values"].items()}
                for row in group
            )
            for group in groups
        ]

        def statistic(seed: int, taken: np.ndarray) -> float:
            return of(tuple(over({n: v[taken] for n, v in c.items()}) for c in values[seed]))

        what = "episodes" if len(groups) == 1 else "seeds and episodes"
    else:
        episodes = np.zeros(1, int)

        def statistic(seed: int, taken: np.ndarray) -> float:
            return float(means[seed])

        what = "" if len(groups) == 1 else "seeds"
    interval = bootstrap_seeds(
        statistic, episodes, seeds=len(groups), samples=SAMPLES, generator=generator
    )
    agree = None
    if len(every) == 2 * len(groups):
        agree = int((np.sign(means) == np.sign(means.mean())).sum())
    return Told(interval, len(groups), what, agree)
