"""Mutual information between code and real action: how much does knowing the code tell of the action?

As a share of the action's entropy, less what chance would show (`metrics/information.py`): 0 for codes
of other clips, 1 where the code settles the action. Unlike a probe it fits nothing, and sees any
relation. The code is the whole combination of N tokens; each token is given apart, too, since
combinations are soon too many for the sample: the number then reads low, not high. Continuous actions
are binned by quantiles, one dimension at a time. Continuous latents have nothing to count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from colaworld.evaluation.measures.measure import Headline, number
from colaworld.evaluation.measures.real_actions import RealActions, Skipped, names_of, skipping
from colaworld.evaluation.rollouts import Batch, derangement
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.information import Information, information, quantile_bins

PAIRINGS = 100  # of unrelated clips, to measure chance


class ActionInformation(RealActions):
    """`information` and `information_skipped` of evaluation.json."""

    def update(self, batch: Batch) -> None:
        super().update(batch)
        if batch.latent.indices is not None:
            self.keep(indices=batch.latent.indices, clips=batch.episodes)

    def result(self) -> dict[str, Any]:
        return skipping("information", self._measure, what="mutual information")

    def _measure(self) -> dict[str, Any]:
        spec, config = self.spec(), self.setting.config
        if self.setting.codebook_size is None or "indices" not in self._rows:
            raise Skipped("latent actions are continuous: there are no codes to count")
        tokens, episodes = self.kept("indices"), self.kept("clips")  # [M, T-1, N], [M]
        whole = _combined(tokens)
        real = self.kept("actions").reshape(*whole.shape, -1)
        rng = np.random.default_rng([config.seed, RandomStream.INFORMATION])
        other = derangement(episodes, generator=rng)

        def told(codes: np.ndarray, actions: np.ndarray) -> Information:
            return information(codes, actions, episodes, permutations=PAIRINGS, generator=rng)

        parts: list[dict[str, Any]] = []
        for i, name in enumerate(names_of(spec) if spec.kind == "continuous" else (spec.column,)):
            actions = real[..., i]
            if spec.kind == "continuous":
                actions = quantile_bins(actions, bins=config.action_bins)
            found, control = told(whole, actions), told(whole[other], actions)
            parts.append(
                {
                    "name": name,
                    "bits": found.bits,
                    "share": found.share.as_dict(),
                    "shuffled": control.share.as_dict(),
                    "chance_bits": found.chance,
                    "action_bits": found.entropy,
                    "tokens": [told(one, actions).share.mean for one in np.moveaxis(tokens, -1, 0)],
                }
            )
        shares = [part["share"]["mean"] for part in parts]
        varies = [s for s in shares if np.isfinite(s)]
        return {
            "share": float(np.mean(varies)) if varies else float("nan"),
            "episodes": int(np.unique(episodes).size),
            "parts": parts,
        }

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        found = result.get("information")
        if found is None:
            return None
        parts = found["parts"]
        alone = parts[0] if len(parts) == 1 else None
        wrong = [p["shuffled"]["mean"] for p in parts if p["shuffled"]["mean"] is not None]
        size = f"{number(alone['bits'])} of {number(alone['action_bits'])} bits" if alone else ""
        among = f"mean of {len(parts)} dimensions" if not alone else size
        return Headline(
            "action's entropy told by the code",
            found["share"],
            alone["share"]["low"] if alone else None,
            alone["share"]["high"] if alone else None,
            note=f"{among}, codes of other clips {number(max(wrong, default=None))}",
            meaning="How much of the real action does the code settle, by counts alone?",
            episodes=found["episodes"],
        )


def _combined(tokens: np.ndarray | Tensor) -> np.ndarray:
    """[M, T, N] codes -> [M, T] numbers of their combinations."""
    flat = np.asarray(tokens).reshape(-1, np.shape(tokens)[-1])
    return np.unique(flat, axis=0, return_inverse=True)[1].reshape(np.shape(tokens)[:-1])
