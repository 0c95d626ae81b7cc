"""How much of the real action does the latent action hold? A linear probe on held-out episodes.

One row per transition: feature = the action's codes, N x d values; target = the real action. The
split, the penalty and the classes are the same for the probe and for the pixel-difference
baseline. Training never sees a real action; this is the one place that reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ActionSpec
from colaworld.evaluation.measures.measure import Headline, Judgement, Measure, Setting, number
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.probe import (
    ProbePrediction,
    chance_probe,
    linear_probe,
    pixel_differences,
    principal_components,
    split_by_episode,
)

log = logging.getLogger(__name__)


class LinearProbe(Measure):
    """`probe` and `probe_skipped` of evaluation.json; its answers are shown on the page."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.answers: ProbePrediction | None = None  # of the test rows, once there is a result

    def update(self, batch: Batch) -> None:
        spec = self.setting.action_spec
        if spec is None or batch.actions is None:
            return
        grid = self.setting.config.probe.pixel_grid
        steps = batch.latent.codes.shape[1]
        self.keep(
            actions=flat_actions(batch.actions, spec),
            codes=batch.latent.codes.flatten(0, 1).flatten(1).float(),
            pixels=pixel_differences(batch.frames.float() / 255.0, grid=grid).flatten(0, 1),
            episodes=np.repeat(batch.episodes, steps),
        )

    def result(self) -> dict[str, Any]:
        summary, skipped = None, None
        try:
            summary = self._probe()
        except _Skipped as reason:
            skipped = str(reason)
            log.warning("linear probe skipped: %s", skipped)
        return {"probe": summary, "probe_skipped": skipped}

    def shown(self) -> dict[str, Any]:
        spec, answers = self.setting.action_spec, self.answers
        return {
            "probe_kind": "" if answers is None else _KINDS[answers.kind],
            "probe_predicted": np.zeros(0) if answers is None else answers.predicted,
            "probe_target": np.zeros(0) if answers is None else answers.target,
            "action_names": () if spec is None else tuple(spec.names),
        }

    def _probe(self) -> dict[str, Any]:
        spec = self.setting.action_spec
        if not self._rows or spec is None:
            raise _Skipped("the data set has no real actions")
        kind, config = spec.kind, self.setting.config
        features, real = (torch.from_numpy(self.kept(name)) for name in ("codes", "actions"))
        episodes = self.kept("episodes")
        if bool((real == real[:1]).all()):
            raise _Skipped("the real action never changes in the held-out clips")
        rng = np.random.default_rng([config.seed, RandomStream.PROBE])
        share = config.probe.test_share
        try:
            train, test = split_by_episode(episodes, test_share=share, generator=rng)
        except ValueError as error:
            raise _Skipped(str(error)) from None
        found = linear_probe(features, real, train, test, kind=kind, config=config.probe)
        pixels = torch.from_numpy(self.kept("pixels"))
        pixels = principal_components(pixels, train, components=config.probe.pixel_components)
        pixel = linear_probe(pixels, real, train, test, kind=kind, config=config.probe)
        chance = chance_probe(real, train, test, kind=kind)
        self.answers = found

        def interval(statistic: Callable[[np.ndarray], float]) -> dict[str, float]:
            return self.setting.interval(statistic, episodes[test], rng=rng)

        discrete = kind == "discrete"
        return {
            "kind": _KINDS[kind],
            "score": interval(found.score),
            "baseline": max(chance.score(), pixel.score()),
            "chance": chance.score(),
            "pixel_difference": pixel.score(),
            # paired: the same resampled episodes answer for the probe and for its best baseline
            "margin": interval(
                lambda rows: found.score(rows) - max(chance.score(rows), pixel.score(rows))
            ),
            "macro_f1": interval(found.macro_f1) if discrete else None,
            "macro_f1_chance": chance.macro_f1() if discrete else None,
            "macro_f1_pixel_difference": pixel.macro_f1() if discrete else None,
            "l1": None if discrete else interval(found.l1),
            "l1_chance": None if discrete else chance.l1(),
            "l1_pixel_difference": None if discrete else pixel.l1(),
            "train_rows": int(train.size),
            "test_rows": int(test.size),
            "test_episodes": int(np.unique(episodes[test]).size),
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


_KINDS = {"discrete": "accuracy", "continuous": "r2"}
_UNTESTED = "the link to real actions was not tested."


class _Skipped(ValueError):
    """There is nothing to probe; the message says why, in words for the reader of a report."""


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
    clause = "the real action cannot be read from it clearly better than from raw pixel differences"
    text = "Not clearly above the better baseline."
    return Judgement("fair", "not clear", text, f"{clause} or by chance.")


def flat_actions(actions: Tensor, spec: ActionSpec) -> Tensor:
    """[b, T-1] classes -> [b (T-1)] int64, or [b, T-1, A] -> [b (T-1), A] floats.

    Raises ValueError where they are not what `spec` says.
    """
    flat = actions.flatten(0, 1)
    if spec.kind == "discrete":
        if flat.ndim != 1 or flat.is_floating_point():
            raise ValueError(
                f"actions: column {spec.column!r} is discrete, expected int64 [M, T-1], "
                f"got {actions.dtype} {tuple(actions.shape)}"
            )
        if int(flat.min()) < 0 or int(flat.max()) >= spec.size:
            raise ValueError(
                f"actions: column {spec.column!r} has {spec.size} classes, got "
                f"{int(flat.min())}..{int(flat.max())}"
            )
        return flat
    if flat.ndim != 2 or flat.shape[1] != spec.size:
        raise ValueError(
            f"actions: column {spec.column!r} has {spec.size} dimensions, expected "
            f"[M, T-1, {spec.size}], got {tuple(actions.shape)}"
        )
    return flat.float()
