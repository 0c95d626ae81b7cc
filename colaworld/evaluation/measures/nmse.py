"""NMSE: the squared error of rollouts as a share of what copying the last given frame would make.

    sum |prediction - truth|^2 / sum |truth - last given frame|^2

over clips, steps, channels and pixels of the rollouts under inferred actions: 0 is perfect, 1 as
good as a world without motion. It is one minus the skill score over persistence (Murphy 1988,
Monthly Weather Review 116). `rollout.error_against_copy` is the same with errors below the rounding
of 8 bits lifted to it, and has no interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from colaworld.evaluation.measures.measure import Headline, Judgement, Measure, number
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

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        found = result.get("nmse")
        if found is None:
            return None
        mean, low, high, steps = (found[k] for k in ("mean", "low", "high", "by_horizon"))
        return Headline(
            "NMSE of rollouts",
            mean,
            low,
            high,
            note=f"{number(steps[0])} at step 1, {number(steps[-1])} at step {len(steps)}; "
            "copying the last frame 1",
            better="lower",
            judgement=judge(mean, low, high),
            span=(0.0, max([1.2, *(1.08 * v for v in (mean, high) if v is not None)])),
            marks=((0.0, "perfect"), (1.0, "copy")),
        )


def judge(mean: float | None, low: float | None, high: float | None) -> Judgement:
    if mean is None:
        return Judgement("open", "open", "The clips do not move: there is nothing to predict.")
    if low is None or high is None:
        return Judgement("open", "open", "One episode gives no interval; hold out more.")
    if high < 1:
        return Judgement("good", "beats copying", "Closer than repeating the last given frame.")
    if low > 1:
        return Judgement("poor", "loses", "Further off than repeating the last given frame.")
    return Judgement("fair", "not clear", "Not clearly closer than repeating the last given frame.")


def _ratio(error: float, motion: float) -> float:
    return float(error / motion) if motion > 0 else float("nan")
