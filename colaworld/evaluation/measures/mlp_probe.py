"""The same question as the linear probe's, asked by a small network (`metrics/mlp_probe.py`).

Split, baselines and scores are those of the linear probe; the baseline on pixel differences is the
same network. A network that reads much more than a linear map: the action is there, but codes of
like actions do not lie together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from colaworld.evaluation.measures.measure import Headline, number
from colaworld.evaluation.measures.real_actions import Probe, Skipped, skipping
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.mlp_probe import mlp_probe
from colaworld.metrics.probe import Kind, ProbePrediction


class MLPProbe(Probe):
    """`mlp_probe` and `mlp_probe_skipped` of evaluation.json."""

    def fit(
        self, features: Tensor, actions: Tensor, train: np.ndarray, test: np.ndarray, kind: Kind
    ) -> ProbePrediction:
        config, episodes = self.setting.config, self.kept("episodes_of_rows")
        rng = np.random.default_rng([config.seed, RandomStream.MLP_PROBE])  # the same for pixels
        if len(np.unique(episodes[train])) < 2:
            raise Skipped(
                "an MLP probe sets some training episodes aside and needs 2 of them, got 1; evaluate "
                "on more held-out episodes"
            )
        return mlp_probe(
            features,
            actions,
            train,
            test,
            episodes=episodes,
            kind=kind,
            config=config.probe,
            generator=rng,
        )

    def result(self) -> dict[str, Any]:
        seed = self.setting.config.seed
        split = np.random.default_rng([seed, RandomStream.PROBE])
        rng = np.random.default_rng([seed, RandomStream.MLP_PROBE, 1])
        return skipping("mlp_probe", lambda: self.measure(split, rng), what="MLP probe")

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        probe = result.get("mlp_probe")
        if probe is None:
            return None
        return Headline(
            "MLP probe, " + ("R²" if probe["kind"] == "r2" else "accuracy"),
            probe["score"]["mean"],
            probe["score"]["low"],
            probe["score"]["high"],
            note=f"chance {number(probe['chance'])}, pixel difference "
            f"{number(probe['pixel_difference'])}",
            meaning="Does a small network read the real action where a linear map does not?",
            episodes=probe["test_episodes"],
        )
