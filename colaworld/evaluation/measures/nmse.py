"""NMSE: the squared error of rollouts as a share of what copying the last given frame would make.

    sum |prediction - truth|^2 / sum |truth - last given frame|^2

over clips, steps, channels and pixels of the rollouts under inferred actions: 0 is perfect, 1 as
good as a world without motion. It is one minus the skill score over persistence (Murphy 1988,
Monthly Weather Review 116). `rollout.error_against_copy` is the same with errors below the rounding
of 8 bits lifted to it, and has no interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from colaworld.evaluation.measures.measure import Headline, Judgement, Measure, astray, number
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import RandomStream


class NMSE(Measure):
    """`nmse` of evaluation.json."""

    variants = ("inferred", "copy")

    def update(self, batch: Batch) -> None:
        errors = {
            name: (batch.predicted(name) - batch.truth).double().square().mean(dim=(2, 3, 4))
            for name in self.variants
        }
        self.keep(episodes=batch.episodes, **errors)

    def result(self) -> dict[str, Any]:
        error, motion = self.kept("inferred"), self.kept("copy")  # [M, n]
        rng = np.random.default_rng([self.setting.config.seed, RandomStream.NMSE])

        def share(rows: np.ndarray) -> float:
            return _ratio(error[rows].sum(), motion[rows].sum())

        return {
            "nmse": {
                **self.setting.interval(share, self.kept("episodes"), rng=rng),
                "by_horizon": [
                    _ratio(*step) for step in zip(error.sum(0), motion.sum(0), strict=True)
                ],
            }
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        return {"error": self.kept("inferred").sum(axis=1), "motion": self.kept("copy").sum(axis=1)}

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        found = result.get("nmse")
        if found is None:
            return None
        said = rival(result)
        text = (
            said.text
            if said.tone == "open"
            else f"{said.word[0].upper()}{said.word[1:]} {said.text}"
        )
        mean, low, high, steps = (found[k] for k in ("mean", "low", "high", "by_horizon"))
        return Headline(
            "NMSE of rollouts",
            mean,
            low,
            high,
            note=f"{number(steps[0])} at step 1, {number(steps[-1])} at step {len(steps)}; "
            "copying the last frame 1",
            better="lower",
            meaning="How much of the motion is missed? 0: none of it; 1: as a still picture does.",
            episodes=result.get("counts", {}).get("episodes"),
            over=lambda clips: _ratio(clips["error"].sum(), clips["motion"].sum()),
            judgement=replace(said, word=_WORDS[said.tone], text=text, clause=""),
            span=(0.0, max([1.2, *(1.08 * v for v in (mean, high) if v is not None)])),
            marks=((0.0, "perfect"), (1.0, "copy")),
        )


_WORDS = {"good": "beats copying", "fair": "not clear", "poor": "loses", "open": "open"}


def rival(result: Mapping[str, Any]) -> Judgement:
    """Do the rollouts beat repeating the last given frame? One answer for all cards and the verdict.

    By the interval of `nmse`; in an evaluation older than that number by the ratio alone.
    """
    nmse = result.get("nmse")
    if nmse is not None:
        ratio, low, high = nmse["mean"], nmse["low"], nmse["high"]
    else:
        ratio = result["rollout"]["error_against_copy"]
        low, high = (None, None) if ratio is None else (ratio / 1.05, ratio / 0.95)
    if ratio is None and astray(result):
        clause = "not to be compared with the last frame, since numbers in them are not finite"
        return Judgement("open", "open", "Rollouts hold numbers that are not finite.", clause)
    if ratio is None:
        text = "The clips do not move: there is nothing to predict."
        return Judgement(
            "open", "open", text, "not to be compared with the last frame, since no clip moves"
        )
    if low is None or high is None:
        text = "One episode gives no interval; hold out more."
        return Judgement(
            "open", "open", text, "of one episode, too few to compare with the last frame"
        )
    if high < 1:
        word = f"{_times(1 / max(ratio, 1e-3))} closer"
    elif low > 1:
        word = f"{_times(ratio)} further off"
    else:
        word = "not clearly closer"
    tone: Any = "good" if high < 1 else "poor" if low > 1 else "fair"
    clause = f"{word} than repeating the last frame (in squared error)"
    return Judgement(tone, word, "than repeating the last given frame.", clause)


def _times(factor: float) -> str:
    return f"{factor:.{1 if factor >= 1.1 else 2}f}×"


def _ratio(error: float, motion: float) -> float:
    return float(error / motion) if motion > 0 else float("nan")
