"""Action transfer: do the actions of one video do the same in another scene?

The rollout "shuffled" starts in a clip's scene and replays the actions of a donor, a clip of another
episode. The actions that the world reads off that generated video are compared with

    donor      those it was told; 1 is perfect transfer
    own        those that really happened in the scene: what a world that ignores actions may draw
    chance     unrelated ones, of the same frequencies

as the share of steps in which all N tokens are the same (continuous latents: cosine about their mean),
of the steps in which donor and scene differ: the others tell nothing. `reference` is the same for rollouts
under a clip's own actions, over all steps. `margin` is donor less the better of own and chance.

The world itself is the judge there, and a code that it draws and reads back need not mean anything. So
where real actions exist, a linear probe, fitted on real videos of the training episodes of `probe`'s split,
reads the donor's real action off the generated video (`probe.generated`; accuracy or R2, donors of the
test episodes alone), beside the same probe on the donor's real video (`probe.real`, the upper reference),
the scene's own real action (`probe.own`) and chance. Intervals: over the scenes' episodes, and for the
probe over the donors'. Transfer between videos as latent action papers show it in pictures (Genie, arXiv
2402.15391), in numbers. Cost: no rollout; the actions of two videos are inferred anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from colaworld.evaluation.measures.agreement import agreement, by_chance, differs, said
from colaworld.evaluation.measures.measure import Headline, Judgement, Measure, number
from colaworld.evaluation.measures.real_actions import (
    KINDS,
    RealActions,
    Skipped,
    skipping,
)
from colaworld.evaluation.rollouts import Batch, head
from colaworld.evaluation.settings import RandomStream
from colaworld.metrics.probe import (
    ProbePrediction,
    chance_probe,
    flat_actions,
    linear_probe,
    rows_of,
)


class ActionTransfer(RealActions):
    """`transfer` of evaluation.json."""

    variants = ("inferred", "shuffled")
    every_clip = True  # the probe is fitted on all of them

    def update(self, batch: Batch) -> None:
        super().update(batch)
        if not batch.rollouts:
            return
        assert batch.donors is not None
        lent = batch.donors
        told = head(lent.latent, slice(None), batch.future)
        drawn = batch.reinferred("shuffled")
        self.keep(
            scene=batch.episodes,
            told=said(told),
            drawn=said(drawn),
            own=said(head(batch.latent, slice(None), batch.future)),
            again=said(batch.reinferred("inferred")),
        )
        spec, actions, own = self.setting.action_spec, lent.clips.actions, batch.actions
        if spec is None or actions is None or own is None:
            return
        steps = drawn.codes.shape[1]
        self.keep(
            lender=np.repeat(lent.clips.episode.numpy(), steps),
            drawn_codes=rows_of(drawn.codes),
            told_codes=rows_of(told.codes),
            lent_actions=flat_actions(actions[:, batch.future], spec),
            own_actions=flat_actions(own[:, batch.future], spec),
        )

    def result(self) -> dict[str, Any]:
        told, drawn, own, again = (self.kept(k) for k in ("told", "drawn", "own", "again"))
        scene, contested = self.kept("scene"), differs(told, own)
        rng = np.random.default_rng([self.setting.config.seed, RandomStream.TRANSFER])

        def over(statistic: Callable[[np.ndarray], float]) -> dict[str, float]:
            return self.setting.interval(statistic, scene, rng=rng)

        def share(with_: np.ndarray, kept: np.ndarray) -> Callable[[np.ndarray], float]:
            def mean(rows: np.ndarray) -> float:
                count = kept[rows].sum()
                return float((with_ * kept)[rows].sum() / count) if count else float("nan")

            return mean

        donor = share(agreement(drawn, told, about=own), contested)
        scenes = share(agreement(drawn, own, about=own), contested)
        chance = by_chance(drawn[contested], told[contested], about=own)
        found = {
            "by": "cosine" if self.setting.codebook_size is None else "agreement",
            "donor": over(donor),
            "own": over(scenes),
            "chance": chance,
            "margin": over(lambda rows: donor(rows) - max(scenes(rows), chance)),
            "reference": over(share(agreement(again, own, about=own), np.ones_like(contested))),
            "steps": int(contested.sum()),
            "share": float(contested.mean()),
            "episodes": int(np.unique(scene).size),
        }
        return {"transfer": found | skipping("probe", self._probe, what="probe of action transfer")}

    def _probe(self) -> dict[str, Any]:
        spec, config = self.spec(), self.setting.config
        train, test = self.split()
        lender = self.kept("lender")
        rows = np.flatnonzero(np.isin(lender, self.kept("episodes_of_rows")[test]))
        if not rows.size:
            raise Skipped(
                "no rollout replays a clip of the probe's test episodes; roll out more (evaluation.clips)"
            )
        episodes = lender[rows]
        lent, scenes = (self.kept(k)[rows] for k in ("lent_actions", "own_actions"))
        drawn, told = (self.kept(k)[rows] for k in ("drawn_codes", "told_codes"))
        blocks = {"generated": (drawn, lent), "real": (told, lent), "own": (drawn, scenes)}
        features = np.concatenate([self.kept("codes")[train], *(x for x, _ in blocks.values())])
        actions = np.concatenate([self.kept("actions")[train], *(y for _, y in blocks.values())])
        fit = np.arange(len(train))
        asked = np.arange(len(train), len(features))
        about: dict[str, Any] = {"kind": spec.kind}
        real = torch.from_numpy(actions)
        answers = linear_probe(
            torch.from_numpy(features), real, fit, asked, config=config.probe, **about
        )
        chance = chance_probe(real, fit, asked[: len(rows)], **about).score()
        rng = np.random.default_rng([config.seed, RandomStream.TRANSFER, 1])
        found = {
            name: self.setting.interval(
                ProbePrediction(
                    answers.kind,
                    answers.predicted[i * len(rows) : (i + 1) * len(rows)],
                    answers.target[i * len(rows) : (i + 1) * len(rows)],
                ).score,
                episodes,
                rng=rng,
            )
            for i, name in enumerate(blocks)
        }
        return {
            "kind": KINDS[spec.kind],
            **found,
            "chance": chance,
            "rows": len(rows),
            "episodes": int(np.unique(episodes).size),
        }

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        found = result.get("transfer")
        if found is None:
            return None
        donor, own = found["donor"], found["own"]
        return Headline(
            f"action transfer, {found['by']} with the donor",
            donor["mean"],
            donor["low"],
            donor["high"],
            note=f"with the scene's own {number(own['mean'])}, chance {number(found['chance'])}, "
            f"in its own scene {number(found['reference']['mean'])}",
            meaning="Replayed in another scene, do actions do the same? Read off the drawn video.",
            episodes=found["episodes"],
            judgement=judge(found["margin"]),
            control=True,
        )


class TransferProbe(Measure):
    """Another number of what `ActionTransfer` measured: the donor's real action, read by a probe."""

    @staticmethod
    def headline(result: Mapping[str, Any]) -> Headline | None:
        probe = (result.get("transfer") or {}).get("probe")
        if probe is None:
            return None
        shown = probe["generated"]
        return Headline(
            "action transfer, probe's " + ("R²" if probe["kind"] == "r2" else "accuracy"),
            shown["mean"],
            shown["low"],
            shown["high"],
            note=f"on the donor's real video {number(probe['real']['mean'])}, chance "
            f"{number(probe['chance'])}, the scene's own action {number(probe['own']['mean'])}",
            meaning="The same by a probe of real actions: is the donor's real action seen?",
            episodes=probe["episodes"],
            control=True,
        )


def judge(margin: Mapping[str, Any]) -> Judgement:
    """Of the agreement with the donor less that with the scene or chance."""
    if margin["low"] is None or margin["high"] is None:
        return Judgement(
            "open", "open", "No interval: one episode, or the same actions everywhere."
        )
    if margin["low"] > 0:
        return Judgement("good", "transfers", "What is drawn is the donor's action.")
    if margin["high"] < 0:
        return Judgement("poor", "does not", "What is drawn is not the donor's action.")
    return Judgement("fair", "not clear", "Not clearly above the scene's own action and chance.")
