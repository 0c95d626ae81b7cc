"""Leakage: does the latent action carry the next frame? The scene-cut test.

A clip (A) is cut to a frame of another episode (B) that no action leads to. The action is inferred over
the cut, and rolled out from A's last given frame. An action that says what was done cannot draw B;
one that smuggles the next frame can. So PSNR to B's frame, in dB, is compared with two controls from the
same start and with the same noise:

    other   the action inferred over a cut from A to a third clip: as much of a cut, to another frame
    own     the action inferred within A

Leakage is called where the gain over `other` is above `evaluation.leakage_margin` with the whole of its
95 % interval (over the episodes of A). `other` decides, because any action over a cut may blur a picture,
which brings it nearer to all frames. A few codes carry a few bits of B at most: the test is for wide or
continuous latents. Compare the scene cuts of Garrido et al. 2026 (arXiv 2601.05230). Where the tokenizer makes r frames at once, r frames
of B follow A's.
Clips count whose cut and control lead to two other episodes: with fewer than three there is no number.
Cost: three single steps a clip, of the first `evaluation.leakage_clips`; the rest of the last batch is drawn with them and left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from colaworld.contracts import to_float
from colaworld.evaluation.measures.measure import Headline, Judgement, Measure, number
from colaworld.evaluation.rollouts import Batch, Donors
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.image import psnr

log = logging.getLogger(__name__)
WAYS = ("cut", "other", "own")


class Leakage(Measure):
    """`leakage` of evaluation.json."""

    variants = ("copy",)  # it sees clips that are rolled out, and rolls out by itself

    def steps(self, clips: int) -> int:
        return len(WAYS) * self.setting.in_batches(self.setting.config.leakage_clips, clips)

    def update(self, batch: Batch) -> None:
        if batch.first >= self.setting.config.leakage_clips:
            return
        assert batch.donors is not None and batch.second is not None
        at, new = batch.history, batch.stride
        step = slice(at - 1, at - 1 + new)
        target = self._frames(batch, batch.donors)
        codes = []
        for cut in (target, self._frames(batch, batch.second)):
            found = batch.inferred(torch.cat([batch.given, cut], dim=1))
            codes.append(found.codes[:, step])
        codes.append(batch.latent.codes[:, step])
        drawn = batch.roll(torch.stack(codes, dim=1), stream=RandomStream.LEAKAGE)
        scores = psnr(drawn, target[:, None].expand_as(drawn)).double().mean(dim=2)  # [b, 3]
        theirs = (d.clips.episode.numpy() for d in (batch.donors, batch.second))
        own, (other, third) = batch.episodes, theirs
        # Else there is no cut, or no control.
        cuts = (own != other) & (own != third) & (other != third)
        cuts[self.setting.config.leakage_clips - batch.first :] = False
        scores = scores.cpu().numpy()[cuts]
        self.keep(episodes=own[cuts], **{name: scores[:, i] for i, name in enumerate(WAYS)})

    @staticmethod
    def _frames(batch: Batch, clips: Donors) -> torch.Tensor:
        """[b, r, 3, H, W]: what comes after the cut."""
        cut = clips.clips.frames[:, batch.history : batch.history + batch.stride]
        return to_float(cut, batch.truth.device)

    def result(self) -> dict[str, Any]:
        if not self._rows:
            return {"leakage": None}
        if not len(self.kept("episodes")):
            log.warning(
                "leakage over a scene cut skipped: it needs clips of 3 episodes, got fewer; evaluate on more "
                "held-out episodes"
            )
            return {"leakage": None}
        episodes = self.kept("episodes")
        cut, other, own = (self.kept(name) for name in WAYS)
        rng = np.random.default_rng([self.setting.config.seed, RandomStream.LEAKAGE])
        return {
            "leakage": {
                "gain": self.setting.interval(cut - other, episodes, rng=rng),
                "gain_over_own": self.setting.interval(cut - own, episodes, rng=rng),
                "psnr": {name: float(self.kept(name).mean()) for name in WAYS},
                "margin": self.setting.config.leakage_margin,
                "clips": len(episodes),
                "episodes": int(np.unique(episodes).size),
            }
        }

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        found = result.get("leakage")
        if found is None:
            return None
        gain, drawn = found["gain"], found["psnr"]
        return Headline(
            "leakage over a scene cut",
            gain["mean"],
            gain["low"],
            gain["high"],
            "dB",
            f"over the clip's own action {number(found['gain_over_own']['mean'])}; called above "
            f"{number(found['margin'], digits=1)}; drawn at {number(drawn['cut'], 'dB', digits=1)}",
            better="lower",
            meaning="Does the action smuggle the next frame, of another scene, through?",
            episodes=found["episodes"],
            judgement=judge(gain, found["margin"]),
            control=True,
        )


def judge(gain: Mapping[str, Any], margin: float) -> Judgement:
    """Of the gain over the cut to another frame, dB."""
    if gain["mean"] is None:
        return Judgement("open", "open", "What it draws over a cut is not finite.")
    if gain["low"] is None or gain["high"] is None:
        return Judgement("open", "open", "One episode gives no interval; hold out more.")
    if gain["low"] > margin:
        text = "The action over a cut draws the frame behind it: it carries pictures, not acts."
        clause = (
            f"the latent action carries the next frame (leakage, {number(gain['mean'])}\u00a0dB)"
        )
        clause += ", so that what it gains may not be steering."
        return Judgement("poor", "leaks", text, clause)
    if gain["high"] < margin:
        text = "The action over a cut does not draw the frame behind it."
        return Judgement("good", "no leakage", text)
    return Judgement("fair", "not clear", "The interval holds the margin.")
