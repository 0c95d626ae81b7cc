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

AIM, COLLAPSED = 0.7, 0.3  # normalised entropy: what training aims at, and a collapse
EVEN = 0.75  # share of the codes that an evenly used codebook is worth (its perplexity over K)
OFTEN = 2.0  # no code of an evenly used codebook has more than this many times its even share
IDLE = 0.1  # share of the codes that may go unused in one


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
        value, size = health["entropy_normalised"], result["world"]["codebook_size"]
        return Headline(
            name,
            value,
            note=f"perplexity {number(health['perplexity'])} of "
            f"{size}, joint "
            f"{number(health['joint']['entropy_normalised'])}",
            meaning="Are the codes used alike? 1: equally often; 0: only one of them.",
            judgement=usage(health, size),
            marks=((0.0, "one code"), (AIM, "aim"), (1.0, "even")),
        )


class CodebookUtilisation(Measure):
    """The share of codes in use, another number of what `CodebookEntropy` measured."""

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline:
        name, health = "codebook utilisation", result.get("codebook")
        if health is None:
            return _without_codebook(name)
        value = health["utilisation"]
        several = len(health.get("positions") or ()) > 1
        idle = f"{1 - value:.0%} of the codes never occur"
        idle += ", in the mean over tokens." if several else "."
        if value >= 1 - IDLE:
            text = "Every code occurs." if value == 1 else "Nearly every code occurs."
            said = Judgement("good", "in use", text)
        elif value >= 0.5:
            said = Judgement("fair", "in part", idle)
        else:
            said = Judgement("poor", "mostly idle", idle)
        return Headline(
            name,
            value,
            note=f"most used code {number(health['max_usage'])}",
            meaning="Which share of the codes occurs at all?",
            judgement=said,
            marks=((0.0, "none"), (1.0, "all codes")),
        )


def usage(health: Mapping[str, Any], size: int) -> Judgement:
    """How a codebook of `size` codes is used: one answer for the cards and the verdict.

    Evenly is said only where its perplexity is at least EVEN of the codes, no code has more than
    OFTEN times its even share, and at most IDLE of the codes never occur.
    """
    entropy, worth = health["entropy_normalised"], health["perplexity"]
    idle, most = 1 - health["utilisation"], health["max_usage"]
    if entropy < COLLAPSED:
        text = "Nearly all actions share one code."
        return Judgement("poor", "collapsed", text, "The codebook has collapsed")
    facts = f"worth {worth:.1f} of {size}, the most used takes {most:.0%} of the steps"
    facts += f", {idle:.0%} never occur" if idle > 0 else ""
    facts += "; in the mean over tokens" if len(health.get("positions") or ()) > 1 else ""
    if entropy < AIM:
        text = f"A few codes carry most of the actions: {facts}."
        return Judgement("fair", "uneven", text, f"The codebook is used unevenly ({facts})")
    if worth >= EVEN * size and most <= OFTEN / size and idle <= IDLE:
        clause = f"The codebook is healthy and evenly used (worth {worth:.1f} of {size} codes)"
        return Judgement("good", "healthy", "The codes are used evenly.", clause)
    text = f"It has not collapsed, but the codes are not used evenly: {facts}."
    clause = f"The codebook has not collapsed, though it is not used evenly ({facts})"
    return Judgement("fair", "not even", text, clause)


def _without_codebook(name: str, clause: str = "") -> Headline:
    text = "Latent actions are continuous."
    said = Judgement("open", "no codebook", text, clause)
    return Headline(name, None, note="continuous latents", judgement=said)
