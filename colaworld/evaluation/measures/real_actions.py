"""What measures that read real actions share: rows of them, the split by episode, why there are none.

One row per transition: the action's codes, N x d values, and the real action. Training never sees a
real action; measures derived from this are the one place that reads them. Not here: any number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ActionSpec
from colaworld.evaluation.measures.measure import Measure, Setting
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.probe import (
    Kind,
    ProbePrediction,
    chance_probe,
    flat_actions,
    pixel_differences,
    principal_components,
    rows_of,
    split_by_episode,
)

log = logging.getLogger(__name__)
KINDS = {"discrete": "accuracy", "continuous": "r2"}  # kind of action -> how its probe is scored


class Skipped(ValueError):
    """There is nothing to measure; the message says why, in words for the reader of a report."""


class RealActions(Measure):
    """A base to derive from: keeps codes and real actions of every clip, where there are any."""

    pixels = False  # keep what changed in the picture, too: the baseline of probes

    def update(self, batch: Batch) -> None:
        spec = self.setting.action_spec
        if spec is None or batch.actions is None:
            return
        actions, steps = batch.actions, batch.latent.codes.shape[1]
        grid = self.setting.config.probe.pixel_grid
        self.share(
            batch.first,
            actions=lambda: flat_actions(actions, spec),
            codes=lambda: rows_of(batch.latent.codes),
            episodes_of_rows=lambda: torch.from_numpy(np.repeat(batch.episodes, steps)),
        )
        if self.pixels:
            self.share(
                batch.first,
                pixels=lambda: pixel_differences(batch.frames.float() / 255.0, grid=grid).flatten(
                    0, 1
                ),
            )

    def spec(self) -> ActionSpec:
        """What the kept actions hold. Raises Skipped where there are none, or they never change."""
        spec = self.setting.action_spec
        if spec is None or "actions" not in self.setting.shared:
            raise Skipped("the data set has no real actions")
        real = self.kept("actions")
        if (real == real[:1]).all():
            raise Skipped("the real action never changes in the held-out clips")
        return spec

    def split(self, rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows (train, test) of the probes: the first draw of RandomStream.PROBE, the same for all.

        Raises Skipped where all rows are of one episode.
        """
        config = self.setting.config
        rng = np.random.default_rng([config.seed, RandomStream.PROBE]) if rng is None else rng
        share = config.probe.test_share
        try:
            return split_by_episode(self.kept("episodes_of_rows"), test_share=share, generator=rng)
        except ValueError as error:
            raise Skipped(str(error)) from None


class Probe(RealActions):
    """A probe with its baselines: what a subclass's `fit` reads off the codes, off pixels, and chance."""

    pixels = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.answers: ProbePrediction | None = None  # of the test rows, once there is a result

    def fit(
        self, features: Tensor, actions: Tensor, train: np.ndarray, test: np.ndarray, kind: Kind
    ) -> ProbePrediction:
        raise NotImplementedError

    def measure(self, split: np.random.Generator, interval: np.random.Generator) -> dict[str, Any]:
        """Scores of the probe and of its baselines, with the generators of the split and of intervals.

        Raises Skipped where there is nothing to probe.
        """
        kind, config = self.spec().kind, self.setting.config.probe
        features, real = (torch.from_numpy(self.kept(name)) for name in ("codes", "actions"))
        episodes = self.kept("episodes_of_rows")
        train, test = self.split(split)
        found = self.fit(features, real, train, test, kind)
        pixels = torch.from_numpy(self.kept("pixels"))
        pixels = principal_components(pixels, train, components=config.pixel_components)
        pixel = self.fit(pixels, real, train, test, kind)
        chance = chance_probe(real, train, test, kind=kind)
        self.answers = found

        def over(statistic: Callable[[np.ndarray], float]) -> dict[str, float]:
            return self.setting.interval(statistic, episodes[test], rng=interval)

        discrete = kind == "discrete"
        return {
            "kind": KINDS[kind],
            "score": over(found.score),
            "baseline": max(chance.score(), pixel.score()),
            "chance": chance.score(),
            "pixel_difference": pixel.score(),
            # paired: the same resampled episodes answer for the probe and for its best baseline
            "margin": over(
                lambda rows: found.score(rows) - max(chance.score(rows), pixel.score(rows))
            ),
            "macro_f1": over(found.macro_f1) if discrete else None,
            "macro_f1_chance": chance.macro_f1() if discrete else None,
            "macro_f1_pixel_difference": pixel.macro_f1() if discrete else None,
            "l1": None if discrete else over(found.l1),
            "l1_chance": None if discrete else chance.l1(),
            "l1_pixel_difference": None if discrete else pixel.l1(),
            "train_rows": int(train.size),
            "test_rows": int(test.size),
            "test_episodes": int(np.unique(episodes[test]).size),
            "parts": self._parts(found, episodes[test]),
        }

    def _parts(self, found: ProbePrediction, episodes: np.ndarray) -> list[dict[str, Any]]:
        """The recall of each class that occurs, or R2 and L1 of each dimension of the real action."""
        spec, config = self.spec(), self.setting.config
        rng = np.random.default_rng([config.seed, RandomStream.PROBE_PARTS])

        def over(statistic: Callable[[np.ndarray], float]) -> dict[str, float]:
            return self.setting.interval(statistic, episodes, rng=rng)

        if spec.kind == "discrete":
            counts = np.bincount(found.target, minlength=spec.size)
            return [
                {
                    "name": name,
                    "rows": int(counts[c]),
                    "recall": over(partial(found.recall, c)),
                }
                for c, name in enumerate(names_of(spec))
                if counts[c]
            ]
        parts = []
        for i, name in enumerate(names_of(spec)):
            one = found.of_dimension(i)
            assert one.spread is not None
            l1, spread = over(one.l1), float(one.spread[0])
            in_units = {key: value * spread for key, value in l1.items()}
            unit = spec.units[i] if spec.units else ""
            about = {"name": name, "unit": unit, "r2": over(one.score)}
            parts.append({**about, "l1": l1, "l1_units": in_units})
        return parts


def skipping(name: str, measure: Callable[[], dict[str, Any]], *, what: str) -> dict[str, Any]:
    """{name: what `measure` gives or None, name_skipped: None or why}."""
    try:
        return {name: measure(), f"{name}_skipped": None}
    except Skipped as reason:
        log.warning("%s skipped: %s", what, reason)
        return {name: None, f"{name}_skipped": str(reason)}


def names_of(spec: ActionSpec) -> tuple[str, ...]:
    """A name for each class or dimension."""
    return spec.names or tuple(f"action {i}" for i in range(spec.size))
