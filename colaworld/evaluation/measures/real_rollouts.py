"""Does an adapted world obey real actions? PSNR and SSIM of its rollouts under the recorded ones.

Beside it stand the actions that the world itself reads off the true future, which is the best it can do,
and no action (the paper's table of adaptation, CoLA-World, arXiv 2510.26433). All see the same start and
the same noise. A world that was not adapted, or clips without its actions, have no such number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from colaworld.evaluation.measures.measure import Headline, Measure, number
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.image import psnr, ssim


class RealRollouts(Measure):
    """`real_actions` of evaluation.json, or null."""

    variants = ("inferred", "none", "real")

    def update(self, batch: Batch) -> None:
        if "real" not in batch.rollouts:
            return
        made = [v for v in self.variants if v in batch.rollouts]
        scores = {v: psnr(batch.predicted(v), batch.truth).double() for v in made}
        similar = ssim(batch.predicted("real"), batch.truth).double()
        self.keep(episodes=batch.episodes, ssim=similar, **scores)

    def result(self) -> dict[str, Any]:
        if "real" not in self._rows:
            return {"real_actions": None}
        episodes, real = self.kept("episodes"), self.kept("real")  # [M, n]
        rng = np.random.default_rng([self.setting.config.seed, RandomStream.REAL_ACTIONS])

        def interval(values: np.ndarray) -> dict[str, float]:
            return self.setting.interval(values.mean(axis=1), episodes, rng=rng)

        gains = {v: interval(real - self.kept(v)) for v in ("inferred", "none") if v in self._rows}
        return {
            "real_actions": {
                "psnr": interval(real),
                "ssim": interval(self.kept("ssim")),
                "psnr_by_horizon": real.mean(axis=0).tolist(),
                "over": gains,  # dB above the inferred actions, and above none
            }
        }

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        found = result.get("real_actions")
        if found is None:
            return None
        named = {"inferred": "inferred actions", "none": "no action"}
        over = (
            f"{number(found['over'][v]['mean'])} dB over {words}"
            for v, words in named.items()
            if v in found["over"]
        )
        value, low, high = (found["psnr"][key] for key in ("mean", "low", "high"))
        return Headline(
            "PSNR under real actions",
            value,
            low,
            high,
            unit="dB",
            note=", ".join(over),
            meaning="Does it obey the robot's own actions?",
            episodes=result["counts"]["episodes"],
        )
