"""How much of the real action does the latent action hold? A linear probe on held-out episodes.

One row per transition: feature = the action's codes, N x d values; target = the real action. The
split, the penalty and the classes are the same for the probe and for the pixel-difference
baseline. `parts` holds the recall of each class, or R2 and L1 (in standard deviations of the training
rows and in units of the data) of each dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from colaworld.evaluation.measures.measure import Headline, Judgement, number
from colaworld.evaluation.measures.real_actions import KINDS, Probe, skipping
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.probe import Kind, ProbePrediction, linear_probe


class LinearProbe(Probe):
    """`probe` and `probe_skipped` of evaluation.json; its answers are shown on the page."""

    def fit(
        self, features: Tensor, actions: Tensor, train: np.ndarray, test: np.ndarray, kind: Kind
    ) -> ProbePrediction:
        config = self.setting.config.probe
        return linear_probe(features, actions, train, test, kind=kind, config=config)

    def result(self) -> dict[str, Any]:
        rng = np.random.default_rng([self.setting.config.seed, RandomStream.PROBE])
        return skipping("probe", lambda: self.measure(rng, rng), what="linear probe")

    def shown(self) -> dict[str, Any]:
        spec, answers = self.setting.action_spec, self.answers
        return {
            "probe_kind": "" if answers is None else KINDS[answers.kind],
            "probe_predicted": np.zeros(0) if answers is None else answers.predicted,
            "probe_target": np.zeros(0) if answers is None else answers.target,
            "action_names": () if spec is None else tuple(spec.names),
        }

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline:
        probe, reason = result.get("probe"), result.get("probe_skipped")
        if probe is None:
            text = f"Not probed: {reason or 'no reason given'}."
            said = Judgement("open", "skipped", text, _UNTESTED)
            return Headline("linear probe", None, note=reason or "", judgement=said)
        score, chance, pixels = probe["score"], probe["chance"], probe["pixel_difference"]
        marks = ((chance or 0.0, "chance"), (pixels or 0.0, "pixels"))
        return Headline(
            "linear probe, " + ("R²" if probe["kind"] == "r2" else "accuracy"),
            score["mean"],
            score["low"],
            score["high"],
            note=f"chance {number(chance)}, pixel difference {number(pixels)}",
            meaning="Do the latent actions mean the real ones? Read off by a linear map.",
            episodes=probe["test_episodes"],
            judgement=judge(probe["margin"]),
            span=(min(0.0, *(at for at, _ in marks), score["mean"] or 0.0), 1.0),
            marks=marks,
        )


_UNTESTED = "the link to real actions was not tested."


def judge(margin: Mapping[str, Any]) -> Judgement:
    """Of the score minus the better baseline's."""
    if margin["low"] is None or margin["mean"] is None:
        return Judgement("open", "open", "One test episode gives no interval.", _UNTESTED)
    if margin["low"] > 0:
        clause = "the real action can be read from the code better than chance or raw pixel"
        text = "Latent actions tell more than chance and pixels."
        return Judgement("good", "above both", text, f"{clause} differences allow.")
    if margin["high"] < 0:
        clause = "the real action is read better from raw pixel differences than from it."
        return Judgement("poor", "below", "A baseline tells more than the latent actions.", clause)
    clause = (
        "the real action cannot be read from it clearly better than by the better of two baselines:"
    )
    text = "Not clearly above the better baseline."
    return Judgement("fair", "not clear", text, f"{clause} chance and raw pixel differences.")
