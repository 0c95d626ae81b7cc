"""Controllability: how much worse a rollout gets under actions that did not happen.

delta-PSNR of a variant is PSNR(inferred) - PSNR(variant), per clip, averaged over the horizon
(after Genie, arXiv 2402.15391). A world that ignores its actions can still draw good pictures, so
fidelity alone proves nothing. Over "none" (the world's null action, `rollouts.py`) it is what knowing
the action adds to not knowing it; a world without a null action has no such number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from colaworld.evaluation.measures.measure import Headline, Judgement, Measure, astray, number
from colaworld.evaluation.measures.nmse import rival
from colaworld.evaluation.rollouts import VARIANTS, Batch
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.image import psnr

AIM_DB = 1.5  # published worlds of this kind report about 2 dB; below 1.5 control is weak


class Controllability(Measure):
    """delta-PSNR over random, shuffled and constant actions and over none, dB."""

    variants = tuple(v for v in VARIANTS if v != "real")

    def update(self, batch: Batch) -> None:
        made = [v for v in self.variants if v in batch.rollouts]
        scores = {v: psnr(batch.predicted(v), batch.truth).double() for v in made}
        self.keep(episodes=batch.episodes, **scores)

    def result(self) -> dict[str, Any]:
        true, episodes = self.kept("inferred"), self.kept("episodes")
        made = [v for v in self.variants if v in self._rows and v != "inferred"]
        gains = {v: true - self.kept(v) for v in made}
        own = np.random.default_rng([self.setting.config.seed, RandomStream.NO_ACTION])
        return {
            "delta_psnr": {
                name: {
                    **self.setting.interval(
                        gain.mean(axis=1), episodes, rng=own if name == "none" else None
                    ),
                    "by_horizon": gain.mean(axis=0).tolist(),
                }
                for name, gain in gains.items()
            }
        }

    def per_clip(self) -> dict[str, np.ndarray]:
        return {"delta_psnr": (self.kept("inferred") - self.kept("random")).mean(axis=1)}

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline:
        delta = result["delta_psnr"]["random"]
        mean, low, high = delta["mean"], delta["low"], delta["high"]
        named = {"shuffled": "shuffled", "constant": "constant", "none": "no action"}
        others = (
            f"{words} {number(result['delta_psnr'][v]['mean'])}"
            for v, words in named.items()
            if v in result["delta_psnr"]
        )
        note = ", ".join(others)
        if mean is None:
            note = astray(result) or note
        bottom = min(0.0, mean or 0.0, low or 0.0)
        top = max(2.0, mean or 0.0, high or 0.0) * 1.08
        return Headline(
            "delta-PSNR over random codes",
            mean,
            low,
            high,
            "dB",
            note,
            meaning="Do the actions steer? Gain of the inferred ones over random ones.",
            episodes=result["counts"]["episodes"],
            over=lambda clips: float(clips["delta_psnr"].mean()),
            judgement=judge(mean, low, high, rival(result)),
            span=(bottom - 0.06 * (top - bottom), top),
            marks=((0.0, "no effect"), (AIM_DB, "aim")),
        )


def judge(mean: float | None, low: float | None, high: float | None, rival: Judgement) -> Judgement:
    """Of delta-PSNR. The verdict speaks of steering only where `rival`, the judgement against the
    repeated last frame, is good as well: codes that spoil a video move delta-PSNR, too."""
    if mean is None:
        clause = (
            "It cannot be said whether the latent actions steer this world: rollouts of it hold "
        )
        clause += "numbers that are not finite."
        text = "Rollouts hold numbers that are not finite: the training or the sampler went astray."
        return Judgement("poor", "not finite", text, clause)
    gain = f"{number(mean)}\u00a0dB".replace("-", "−")
    steers = "The latent actions steer this world"
    if low is None or high is None:
        clause = f"The latent actions gain {gain} over random ones; one episode says no more."
        text = "One episode gives no interval; hold out more."
        return Judgement("open", "open", text, clause)
    if high < 0:
        clause = f"Something is wrong: the inferred latent actions make its videos worse, {gain}."
        return Judgement("poor", "reversed", "The inferred actions make the videos worse.", clause)
    if low <= 0:
        clause = "It is not shown that the latent actions steer this world: with random ones its "
        clause += f"videos are as good ({gain}). With the inferred ones they are {rival.clause}."
        return Judgement("poor", "not shown", "The interval holds 0: no steering is shown.", clause)
    clear = mean >= AIM_DB
    if rival.tone != "good":
        clause = "It is not shown that the latent actions steer this world: they change what it "
        clause += f"draws ({gain} over random ones), but its videos are {rival.clause}."
    elif clear:
        clause = (
            f"{steers}: with the inferred ones its videos are {gain} closer to what happened than "
        )
        clause += f"with random ones, and {rival.clause}."
    else:
        clause = (
            f"{steers}, but only a little: {gain} over random ones; its videos are {rival.clause}."
        )
    if rival.tone != "good":
        text = f"Better videos than under random actions, but {rival.clause}."
        return Judgement("fair", "over random alone", text, clause)
    if clear:
        text = "The inferred actions give clearly better videos than random ones."
        return Judgement("good", "clear", text, clause)
    text = "The inferred actions help against random ones, by less than we ask for."
    return Judgement("fair", "small", text, clause)
