"""A measure from outside: how much darker or brighter rollouts get. See test_measures.py.

It stands for what a user writes in one file of their own; no list of the package knows it.
"""

from __future__ import annotations

import numpy as np

from colaworld.evaluation.measures import register_measure
from colaworld.evaluation.measures.measure import Headline, Measure


class Drift(Measure):
    """`drift` of evaluation.json: mean brightness of rollouts minus that of the truth."""

    variants = ("inferred",)

    def update(self, batch):
        drift = (batch.predicted("inferred") - batch.truth).mean(dim=(1, 2, 3, 4))
        self.keep(episodes=batch.episodes, drift=drift)

    def result(self):
        rng = np.random.default_rng([self.setting.config.seed, 1000])
        return {"drift": self.setting.interval(self.kept("drift"), self.kept("episodes"), rng=rng)}

    @staticmethod
    def headline(result):
        found = result.get("drift")
        return found and Headline("drift", found["mean"], found["low"], found["high"], digits=4)


register_measure(Drift)
