"""Codebook usage on held-out transitions: how evenly the codes are used, and how many occur.

The numbers are those of `metrics/codebook.py`. A world with continuous latents has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from colaworld.evaluation.measures.measure import Headline, Judgement, Measure, number
from colaworld.evaluation.rollouts import Batch
from colaworld.metrics.codebook import codebook_health

EVEN, COLLAPSED = 0.7, 0.3  # normalised entropy above and below which we say so


class CodebookEntropy(Measure):
    """`codebook` of evaluation.json; its headline is the normalised entropy."""

    def update(self, batch: Batch) -> None:
        if self.setting.codebook_size is not None and batch.latent.indices is not None:
            self.keep(indices=batch.latent.indices)

    def result(self) -> dict[str, Any]:
        size = self.setting.codebook_size
        if size is None:
            return {"codebook": None}
        used = torch.from_numpy(self.kept("indices")).flatten(0, 1)  # [transitions, N]
        return {"codebook": codebook_health(used, codebook_size=size)}

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline:
        name, health = "normalised code entropy", result.get("codebook")
        if health is None:
            clause = "There is no codebook to collapse"
            return _without_codebook(name, clause)
        value = health["entropy_normalised"]
        if value >= EVEN:
            said = Judgement(
                "good", "healthy", "The codes are used evenly.", "The codebook is healthy"
            )
        elif value >= COLLAPSED:
            text = "A few codes carry most of the actions."
            said = Judgement("fair", "uneven", text, "The codebook is used unevenly")
        else:
            text = "Nearly all actions share one code."
            said = Judgement("poor", "collapsed", text, "The codebook has collapsed")
        return Headline(
            name,
            value,
            note=f"perplexity {number(health['perplexity'])} of "
            f"{result['world']['codebook_size']}, joint "
            f"{number(health['joint']['entropy_normalised'])}",
            judgement=said,
            marks=((0.0, "one code"), (EVEN, "aim"), (1.0, "even")),
        )


class CodebookUtilisation(Measure):
    """The share of codes in use, another number of what `CodebookEntropy` measured."""

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline:
        name, health = "codebook utilisation", result.get("codebook")
        if health is None:
            return _without_codebook(name)
        value = health["utilisation"]
        if value >= 0.9:
            text = "Every code occurs." if value == 1 else "Nearly every code occurs."
            said = Judgement("good", "in use", text)
        elif value >= 0.5:
            said = Judgement("fair", "in part", "Some codes never occur.")
        else:
            said = Judgement("poor", "mostly idle", "Most codes never occur.")
        return Headline(
            name,
            value,
            note=f"most used code {number(health['max_usage'])}",
            judgement=said,
            marks=((0.0, "none"), (1.0, "all codes")),
        )


def _without_codebook(name: str, clause: str = "") -> Headline:
    text = "Latent actions are continuous."
    said = Judgement("open", "no codebook", text, clause)
    return Headline(name, None, note="continuous latents", judgement=said)
