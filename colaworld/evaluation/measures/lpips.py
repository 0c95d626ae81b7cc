"""LPIPS of rollouts against what was filmed, where the user has the weights (`metrics/lpips.py`).

"copy" repeats the last given frame: what a world without motion would score.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from colaworld.evaluation.measures.measure import (
    Headline,
    Judgement,
    Measure,
    Setting,
    bounds,
    number,
)
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.lpips import MIN_SIDE, load_lpips

log = logging.getLogger(__name__)


class PerceptualDistance(Measure):
    """`lpips` of evaluation.json, or null, and `lpips_skipped` says why."""

    variants = ("inferred", "copy")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        folder, trunk = setting.config.lpips, setting.config.lpips_trunk
        self.trunk = trunk
        self.skipped = None if folder else "no weights given (--evaluation.lpips)"
        if folder:
            self.network, self.published = load_lpips(folder, trunk)
            if not self.published:
                log.warning("%s: other files than the published weights of LPIPS", folder)

    def update(self, batch: Batch) -> None:
        height, width = batch.truth.shape[-2:]
        least = MIN_SIDE[self.trunk]
        if self.skipped is None and min(height, width) < least:
            self.skipped = f"frames of {height} x {width}, below the {least} pixels of {self.trunk}"
            log.warning("LPIPS is left out: %s", self.skipped)
        if self.skipped is None:
            self.network.to(batch.truth.device)
            scores = {v: self.network(batch.predicted(v), batch.truth) for v in self.variants}
            self.keep(episodes=batch.episodes, **{v: s.double() for v, s in scores.items()})

    def result(self) -> dict[str, Any]:
        if self.skipped is not None:
            return {"lpips": None, "lpips_skipped": self.skipped}
        config, episodes = self.setting.config, self.kept("episodes")
        found, copy = self.kept("inferred"), self.kept("copy")  # [M, n]
        rng = np.random.default_rng([config.seed, RandomStream.LPIPS])
        name = self.trunk if self.published else f"{self.trunk}, other weights"
        return {
            "lpips": {
                "name": f"LPIPS ({name})",
                "published": self.published,
                **self.setting.interval(found.mean(axis=1), episodes, rng=rng),
                "over_copy": self.setting.interval((found - copy).mean(axis=1), episodes, rng=rng),
                "variants": {
                    v: {
                        f"lpips{end}_by_horizon": line.tolist()
                        for end, line in zip(
                            ("", "_low", "_high"),
                            (self.kept(v).mean(axis=0), *bounds(self.kept(v), episodes, config)),
                            strict=True,
                        )
                    }
                    for v in self.variants
                },
            },
            "lpips_skipped": None,
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        return {} if self.skipped is not None else {"lpips": self.kept("inferred").mean(axis=1)}

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        if "lpips" not in result:
            return None
        found = result["lpips"]
        if found is None:
            return Headline("LPIPS", None, note=result.get("lpips_skipped") or "not measured")
        steps, copy = (found["variants"][v]["lpips_by_horizon"] for v in ("inferred", "copy"))
        mean, low, high = found["mean"], found["low"], found["high"]
        still = float(np.mean(copy))
        return Headline(
            found["name"],
            mean,
            low,
            high,
            note=f"{number(steps[0], digits=3)} at step 1, {number(steps[-1], digits=3)} at step "
            f"{len(steps)}; copying the last frame {number(still, digits=3)}",
            better="lower",
            digits=3,
            meaning="How different do the videos look from what was filmed? 0: the same.",
            episodes=result["counts"]["episodes"],
            over=lambda clips: float(clips["lpips"].mean()),
            judgement=_judge(found["over_copy"]),
            span=(0.0, 1.15 * max(still, mean or 0.0, high or 0.0, 1e-3)),
            marks=((0.0, "the same"), (still, "copy")),
        )


def _judge(over_copy: Mapping[str, float | None]) -> Judgement:
    """By the interval of the distance minus that of the last given frame, of the same clips."""
    low, high = over_copy["low"], over_copy["high"]
    if over_copy["mean"] is None:
        return Judgement("open", "open", "Rollouts hold numbers that are not finite.")
    if low is None or high is None:
        return Judgement("open", "open", "One episode gives no interval; hold out more.")
    if high < 0:
        return Judgement("good", "beats copying", "Closer in looks than the last given frame.")
    if low > 0:
        return Judgement("poor", "loses", "The last given frame looks more like what was filmed.")
    return Judgement(
        "fair", "not clear", "It does not clearly beat repeating the last given frame."
    )
