"""Fidelity: PSNR and SSIM of rollouts against what was filmed, step by step.

"copy" repeats the last given frame: what a world without motion would score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from colaworld.evaluation.measures.measure import Headline, Measure, astray, bounds, number
from colaworld.evaluation.measures.nmse import rival
from colaworld.evaluation.rollouts import VARIANTS, Batch
from colaworld.metrics.image import PSNR_CAP, psnr, ssim


class Fidelity(Measure):
    """`rollout` of evaluation.json; its headline is the PSNR under inferred actions, dB."""

    variants = (*VARIANTS, "copy")

    def update(self, batch: Batch) -> None:
        made = [v for v in self.variants if v in batch.rollouts]
        scores = {v: psnr(batch.predicted(v), batch.truth).double() for v in made}
        for name in made:
            scores[f"{name} ssim"] = ssim(batch.predicted(name), batch.truth).double()
        self.keep(episodes=batch.episodes, **scores)

    def result(self) -> dict[str, Any]:
        found, similarity = self.kept("inferred"), self.kept("inferred ssim")  # [M, n]
        copy, episodes = self.kept("copy"), self.kept("episodes")

        def interval(values: np.ndarray) -> dict[str, float]:
            return self.setting.interval(values, episodes)

        def at(step: int) -> dict[str, float]:
            ends = ("", "_low", "_high")
            lines = (variants["inferred"][f"psnr{end}_by_horizon"] for end in ends)
            found = zip(("mean", "low", "high"), lines, strict=True)
            return {name: line[step] for name, line in found}

        variants = {
            v: {
                f"{what}{end}_by_horizon": line.tolist()
                for what, kept in (("psnr", self.kept(v)), ("ssim", self.kept(f"{v} ssim")))
                for end, line in zip(
                    ("", "_low", "_high"),
                    (kept.mean(axis=0), *bounds(kept, episodes, self.setting.config)),
                    strict=True,
                )
            }
            for v in self.variants
            if v in self._rows
        }
        return {
            "rollout": {
                "psnr_by_horizon": found.mean(axis=0).tolist(),
                "ssim_by_horizon": similarity.mean(axis=0).tolist(),
                "psnr": interval(found.mean(axis=1)),
                "ssim": interval(similarity.mean(axis=1)),
                "psnr_first": at(0),
                "psnr_last": at(-1),
                "variants": variants,
                "not_finite": {
                    v: int((~np.isfinite(self.kept(v))).any(axis=1).sum()) for v in variants
                },
                "error_against_copy": error_against_copy(found, copy),
                "copy_ssim_by_horizon": self.kept("copy ssim").mean(axis=0).tolist(),
                "by_motion": by_motion(found, copy),
            }
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        return {"psnr": self.kept("inferred").mean(axis=1)}

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline:
        rollout = result["rollout"]
        steps, mean = rollout["psnr_by_horizon"], rollout["psnr"]
        shown = [v for v in (*steps, *mean.values()) if v is not None] or [0.0]
        marks = ((steps[0], "step 1"), (steps[-1], f"step {len(steps)}"))[: len(steps)]
        return Headline(
            "PSNR of rollouts",
            mean["mean"],
            mean["low"],
            mean["high"],
            "dB",
            astray(result)
            or f"{number(steps[0])} at step 1, {number(steps[-1])} at step {len(steps)}",
            meaning="How close do videos under the inferred actions stay to what was filmed?",
            episodes=result["counts"]["episodes"],
            over=lambda clips: float(clips["psnr"].mean()),
            judgement=replace(rival(result), clause=""),
            span=(min(shown) - 1, max(shown) + 1),
            marks=tuple((value, name) for value, name in marks if value is not None),
        )


STILL = 25.0  # dB


def by_motion(found: np.ndarray, copy: np.ndarray) -> dict[str, dict[str, list[float | None]]]:
    """Rollouts and a copy of the last given frame, frame by frame, where the view still stands and where it has moved.

    found, copy: [M, n] PSNR, dB. "still" is where the copy is above 25 dB: there it is nearly exact, and a few such
    clips decide a mean of decibels. None where there is no such frame.
    """
    parts = {}
    for name, inside in (("still", copy > STILL), ("moved", copy <= STILL)):
        columns = [
            (int(rows.sum()), *(values[rows, step] for values in (found, copy)))
            for step, rows in enumerate(inside.T)
        ]
        parts[name] = {
            "frames_by_horizon": [count for count, _, _ in columns],
            "psnr_by_horizon": [float(of.mean()) if count else None for count, of, _ in columns],
            "copy_psnr_by_horizon": [
                float(of.mean()) if count else None for count, _, of in columns
            ],
        }
    return parts


def error_against_copy(found: np.ndarray, copy: np.ndarray) -> float:
    """Squared error of the rollouts as a share of that of repeating the last given frame.

    found, copy: [M, n] PSNR, dB. Pooled over clips and steps, because in a mean of dB the clips in
    which nothing moves decide. NaN where no clip moves at all.
    """
    if copy.min() >= PSNR_CAP - 1e-3:
        return float("nan")
    return float((10 ** (-found / 10)).mean() / (10 ** (-copy / 10)).mean())
