"""The Frechet distance of rollouts to what was filmed, over the first n predicted frames.

FVD with the published I3D, which the user's file holds; with other weights it goes by the file's name.
Only features are kept, 400 numbers for each clip, horizon and side, and no video. There is no
interval: the distance of resampled clips is larger than that of the clips themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from colaworld.evaluation.measures.measure import Headline, Measure, Setting, number
from colaworld.evaluation.rollouts import Batch
from colaworld.metrics.frechet import Gaussian, frechet_distance
from colaworld.metrics.i3d import MIN_FRAMES
from colaworld.metrics.video_encoder import load_video_encoder

log = logging.getLogger(__name__)
USUAL_FRAMES = (
    16  # of clips in published FVD; measured besides the whole horizon where it is longer
)


class FrechetVideoDistance(Measure):
    """`frechet` of evaluation.json, or null, and `frechet_skipped` says why."""

    variants = ("inferred",)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        path = setting.config.fvd
        self.skipped = None if path else "no weights given (--evaluation.fvd)"
        self.horizons: list[int] = []
        if path:
            self.encoder = load_video_encoder(path)

    def update(self, batch: Batch) -> None:
        steps = batch.truth.shape[1]
        if self.skipped is None and steps < MIN_FRAMES:
            self.skipped = (
                f"needs {MIN_FRAMES} predicted frames, got {steps} (--evaluation.horizon)"
            )
            log.warning("FVD is left out: %s", self.skipped)
        if self.skipped is None and not bool(batch.predicted("inferred").isfinite().all()):
            self.skipped = "some rollouts hold values that are not finite"
            log.warning("FVD is left out: %s", self.skipped)
        if self.skipped is not None:
            return
        self.horizons = sorted({n for n in (USUAL_FRAMES, steps) if n <= steps})
        sides = {"truth": batch.truth, "inferred": batch.predicted("inferred")}
        for n in self.horizons:
            for name, videos in sides.items():
                self.keep(**{f"{name} {n}": self.encoder.features(videos[:, :n])})

    def result(self) -> dict[str, Any]:
        if self.skipped is not None:
            return {"frechet": None, "frechet_skipped": self.skipped}
        distances = {}
        for n in self.horizons:
            sides = [Gaussian.of(self.kept(f"{name} {n}")) for name in ("inferred", "truth")]
            distances[str(n)] = frechet_distance(*sides)
        return {
            "frechet": {
                "name": self.encoder.distance,
                "value": distances[str(self.horizons[-1])],
                "by_horizon": distances,
                "clips": sides[0].samples,
                "features": sides[0].mean.size,
            },
            "frechet_skipped": None,
        }

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        if "frechet" not in result:
            return None
        found = result["frechet"]
        if found is None:
            return Headline("FVD", None, note=result.get("frechet_skipped") or "not measured")
        clips, features = found["clips"], found["features"]
        few = "too large: " if clips <= features else ""
        others = [f"{number(v)} over {n} frames" for n, v in list(found["by_horizon"].items())[:-1]]
        return Headline(
            found["name"],
            found["value"],
            note="; ".join([*others, f"{few}{clips} clips for {features} features"]),
            better="lower",
        )
