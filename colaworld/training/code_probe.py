"""What do the codes mean? A linear probe from held-out codes to recorded actions, while training.

Control (control.py) says whether codes steer; this says whether they are the moves that were made. The fit is that
of evaluation's linear probe, cross-validated over the episodes of some hundred held-out clips. Recorded actions
are read for this number alone: no loss, no gradient and no random number comes of them. Not here: when it is
measured (trainer.py), evaluation's probe with intervals and baselines.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from colaworld.contracts import ActionSpec, ClipBatch, to_float
from colaworld.metrics.config import ProbeConfig
from colaworld.metrics.probe import (
    chance_probe,
    cross_validated,
    flat_actions,
    linear_probe,
    rows_of,
)
from colaworld.models.world_model import WorldModel, evaluating
from colaworld.training.config import TrainingConfig
from colaworld.training.step import uses_bf16

FOLDS = 4


class CodeProbe:
    """Called without arguments, it measures the model as it stands; modes are restored.

    Args:
        model: with IDM and quantizer.
        clips: held out, with actions, on the CPU, of two episodes at least; always the same ones.
        spec: what the actions are.
        training: batch size and arithmetic.
        config: how it is fitted.

    Raises:
        ValueError: all clips are of one episode, or the action never changes.
    """

    needs = ("idm", "quantizer")
    """Parts that a model must have to be measured."""

    def __init__(
        self,
        model: WorldModel,
        clips: ClipBatch,
        spec: ActionSpec,
        training: TrainingConfig,
        config: ProbeConfig,
    ) -> None:
        if clips.actions is None:
            raise ValueError("probe: expected clips with actions, got none")
        self.model, self.training, self.config = model, training, config
        self.frames, self.kind = clips.frames, spec.kind
        self.actions = flat_actions(clips.actions, spec)
        self.episodes = np.repeat(clips.episode.numpy(), clips.actions.shape[1])
        chance = functools.partial(chance_probe, self.actions, kind=self.kind)
        self.chance = cross_validated(chance, self.episodes, folds=FOLDS)
        if np.isnan(self.chance) or bool((self.actions == self.actions[:1]).all()):
            raise ValueError("probe: the recorded action never changes in the held-out clips")

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """`score`, accuracy or R^2 on episodes that the fit did not see, and that of `chance`. Codes that are not finite
        have no score (NaN)."""
        device = next(self.model.parameters()).device
        bf16 = uses_bf16(self.training.autocast, device)
        with evaluating(self.model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            codes = [
                self.model.infer_actions(to_float(part, device)).codes.cpu()
                for part in self.frames.split(self.training.batch_size)
            ]
        features = rows_of(torch.cat(codes))
        if not bool(features.isfinite().all()):
            return {"score": math.nan, "chance": self.chance}
        fit = functools.partial(
            linear_probe, features, self.actions, kind=self.kind, config=self.config
        )
        return {
            "score": cross_validated(fit, self.episodes, folds=FOLDS),
            "chance": self.chance,
        }
