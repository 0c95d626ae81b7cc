"""z-sensitivity: how much the next frame changes with the code, against how much it changes with noise.

    codes   RMSE between the first frames drawn under two different random actions, with equal noise
    noise   RMSE between the first frames drawn under one action, with two noises

in levels of 8 bits, over channels, pixels and clips. A world that ignores its actions scores 0 under
`codes`; `ratio` is codes over noise. It says that codes do something, not that they do the right thing.
Cost: the first steps of the rollouts "random" and "constant" are there already; one step more a clip.
Where the tokenizer makes r frames at once, the first r frames are compared. Clips in which both
actions are the same code by chance are left out of `codes` (`pairs` counts the others).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from colaworld.evaluation.measures.measure import Headline, Measure, number
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import RandomStream


class Sensitivity(Measure):
    """`sensitivity` of evaluation.json."""

    variants = ("random", "constant")

    def steps(self, clips: int) -> int:
        return self.setting.in_batches(self.setting.config.sensitivity_clips, clips)

    def update(self, batch: Batch) -> None:
        if batch.first >= self.setting.config.sensitivity_clips:
            return
        first, start = batch.stride, batch.history - 1
        one, two = (batch.predicted(v)[:, :first] for v in self.variants)
        codes = [batch.codes[v][:, start : start + first] for v in self.variants]
        differ = (codes[0] != codes[1]).flatten(1).any(dim=1)
        again = batch.roll(codes[0][:, None], stream=RandomStream.SENSITIVITY)[:, 0]
        errors = [(one - other).double().square().mean((1, 2, 3, 4)) for other in (two, again)]
        own = slice(self.setting.config.sensitivity_clips - batch.first)
        self.keep(
            episodes=batch.episodes[own],
            codes=errors[0][own],
            noise=errors[1][own],
            differ=differ[own],
        )

    def result(self) -> dict[str, Any]:
        if not self._rows:
            return {"sensitivity": None}
        codes, noise, episodes = (self.kept(name) for name in ("codes", "noise", "episodes"))
        rng = np.random.default_rng([self.setting.config.seed, RandomStream.SENSITIVITY])
        differ = self.kept("differ")

        def rmse(values: np.ndarray) -> float:
            return 255 * float(np.sqrt(values.mean())) if values.size else float("nan")

        def of_codes(rows: np.ndarray) -> float:
            return rmse(codes[rows][differ[rows]])

        def ratio(rows: np.ndarray) -> float:
            spread = rmse(noise[rows])
            return of_codes(rows) / spread if spread > 0 else float("nan")

        return {
            "sensitivity": {
                "codes": self.setting.interval(of_codes, episodes, rng=rng),
                "noise": self.setting.interval(lambda r: rmse(noise[r]), episodes, rng=rng),
                "ratio": self.setting.interval(ratio, episodes, rng=rng),
                "pairs": int(differ.sum()),
                "episodes": int(np.unique(episodes).size),
            }
        }

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        found = result.get("sensitivity")
        if found is None:
            return None
        codes, noise, ratio = (found[name] for name in ("codes", "noise", "ratio"))
        return Headline(
            "change of the next frame by the code",
            codes["mean"],
            codes["low"],
            codes["high"],
            "levels",
            f"by other noise {number(noise['mean'])}, {number(ratio['mean'])}× that",
            digits=1,
            meaning="How far apart are the next frames of two actions, with equal noise? 0: no effect.",
            episodes=found["episodes"],
            control=True,
        )
