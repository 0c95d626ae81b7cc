"""Drift: how a rollout under the inferred actions goes astray, third by third of its horizon.

    psnr       dB, mean over the frames of the segment
    agreement  do the actions read off the drawn video match those it was told? Share of the steps in
               which all N tokens are the same; cosine of the latents about their mean, if continuous
    colour     | mean of a channel - the truth's |, mean over channels, in levels of 8 bits
    contrast   | standard deviation of a channel - the truth's |, likewise

`*_by_horizon` are by step, `*_per_step` the slope of a straight line through them: how fast it drifts.
A picture that keeps its colours and contrast but not its content shows in PSNR and agreement alone.
Segment by segment as world-model benchmarks report long rollouts (WorldRoamBench, arXiv 2606.31672).
Cost: no rollout; the actions of one video are inferred anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from colaworld.evaluation.measures.agreement import agreement, said
from colaworld.evaluation.measures.measure import Headline, Measure, number
from colaworld.evaluation.rollouts import Batch, head
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.image import psnr

THIRDS = 3


class Segments(Measure):
    """`segments` of evaluation.json."""

    variants = ("inferred",)

    def update(self, batch: Batch) -> None:
        drawn, truth = batch.predicted("inferred"), batch.truth
        told = head(batch.latent, slice(None), batch.future)
        self.keep(
            episodes=batch.episodes,
            psnr=psnr(drawn, truth).double(),
            colour=_levels(drawn.mean(dim=(3, 4)) - truth.mean(dim=(3, 4))),
            contrast=_levels(_spread(drawn) - _spread(truth)),
            told=said(told),
            read=said(batch.reinferred("inferred")),
        )

    def result(self) -> dict[str, Any]:
        episodes = self.kept("episodes")
        found = {name: self.kept(name) for name in ("psnr", "colour", "contrast")}  # [M, n]
        told = self.kept("told")
        found["agreement"] = agreement(self.kept("read"), told, about=told)
        steps = found["psnr"].shape[1]
        rng = np.random.default_rng([self.setting.config.seed, RandomStream.SEGMENTS])
        parts = np.array_split(np.arange(steps), min(THIRDS, steps))
        return {
            "segments": {
                "by": "cosine" if self.setting.codebook_size is None else "agreement",
                "parts": [
                    {
                        "steps": [int(part[0]) + 1, int(part[-1]) + 1],
                        **{
                            name: self.setting.interval(
                                values[:, part].mean(axis=1), episodes, rng=rng
                            )
                            for name, values in found.items()
                        },
                    }
                    for part in parts
                ],
                **{f"{name}_by_horizon": found[name].mean(axis=0).tolist() for name in found},
                **{
                    f"{name}_per_step": self.setting.interval(
                        _slope(found[name]), episodes, rng=rng
                    )
                    for name in ("colour", "contrast")
                },
            }
        }

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        found = result.get("segments")
        if found is None:
            return None
        first, last = found["parts"][0], found["parts"][-1]
        word = "cosine" if found["by"] == "cosine" else "agreement"
        return Headline(
            f"told and drawn actions, {word} in the last third",
            last["agreement"]["mean"],
            last["agreement"]["low"],
            last["agreement"]["high"],
            note=f"{number(first['agreement']['mean'])} in the first; PSNR "
            f"{number(first['psnr']['mean'], digits=1)} to "
            f"{number(last['psnr']['mean'], 'dB', digits=1)}, colours off by "
            f"{number(last['colour']['mean'], 'levels', digits=1)}",
            meaning="Does it still obey late in a rollout? Actions read off its own video.",
            episodes=result.get("counts", {}).get("episodes"),
            control=True,
        )


def _levels(difference: Tensor) -> Tensor:
    """[b, n, 3] -> [b, n]"""
    return 255 * difference.double().abs().mean(dim=2)


def _spread(frames: Tensor) -> Tensor:
    """[b, n, 3, H, W] -> [b, n, 3]"""
    return frames.flatten(3).std(dim=3, unbiased=False)


def _slope(values: np.ndarray) -> np.ndarray:
    """[M, n] -> [M], of the straight line through each row; NaN for one step."""
    if values.shape[1] < 2:
        return np.full(len(values), np.nan)
    steps = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    return values @ steps / np.square(steps).sum()
