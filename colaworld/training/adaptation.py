"""What is minimised while a world learns a robot's real actions, from clips that have them.

adapter       the adapter's codes against the inferred ones of the same frames; beside it the head back
adapted       the flow loss under the adapter's codes; its gradient reaches the adapter
adapted_lam   the same, while the latent action model goes on learning from the same clips as before

The paper says: a two-layer MLP, then 3000 steps of fine-tuning. It does not say whether the latent action
model moves meanwhile. While it is frozen no codebook can change; its use is then that of the codes
nearest to the adapter's outputs. Where it moves, its use is that of the codes it infers.

Not here: adapters (models/adapters), phases and their lengths (runs/adaptation.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.contracts import ClipBatch, to_float
from colaworld.models.latent_action.quantizers.step_stats import sum_pieces
from colaworld.models.world_model import WorldModel
from colaworld.training.config import ObjectiveConfig
from colaworld.training.objectives import (
    FLOW,
    QUANTIZER,
    BaseObjective,
    ColaObjective,
    Forward,
    Term,
    dropped,
    flow_error,
)
from colaworld.training.protocols import ClipSupply


@dataclass(frozen=True)
class Matched:
    """What the phase `adapter` compares. Legend: B clips, N tokens, d token width."""

    codes: Tensor  # [B, T - 1, N, d] of the adapter
    inferred: Tensor  # [B, T - 1, N, d]
    estimate: Tensor  # [B, T - 1, size] of the head
    actions: Tensor  # classes [B, T - 1], or standardised numbers [B, T - 1, size]
    indices: Tensor | None  # [B, T - 1, N] the codes nearest to the adapter's


def head_error(made: Matched) -> Tensor:
    """Cross-entropy of classes, or mean squared error of standardised numbers."""
    if made.actions.is_floating_point():
        return F.mse_loss(made.estimate, made.actions)
    return F.cross_entropy(made.estimate.flatten(0, 1), made.actions.flatten())


MATCH = Term("match", lambda made: F.mse_loss(made.codes, made.inferred))
HEAD = Term("head", head_error)


def _real(batch: ClipBatch) -> Tensor:
    if batch.actions is None:
        raise ValueError("this phase learns from recorded actions; the loader gave none")
    return batch.actions


class _RealActions(BaseObjective):
    """Shared by the objectives that read recorded actions."""

    uses_actions = True

    def __init__(self, model: WorldModel, config: ObjectiveConfig) -> None:
        super().__init__(model, config)
        self.codebook_size, self.tokens = model.watched_codebook_size, model.tokens


class AdapterObjective(_RealActions):
    """Real actions should mean what the frozen latent action model sees between the frames."""

    needs = ("idm", "quantizer", "conditioner", "adapter", "action_head")
    terms = (MATCH, HEAD)

    def forward(self, batch: ClipBatch, *, generator: torch.Generator) -> Matched:
        frames, actions = to_float(batch.frames), _real(batch)
        inferred = self.model.infer_actions(frames).codes
        head = self.model.action_head
        codes = self.model.adapter(actions, self.model.seen_frames(frames))
        return Matched(
            codes,
            inferred,
            head(inferred),
            actions if head.config.discrete else head.scale(actions),
            self.model.nearest(codes),
        )

    @torch.no_grad()
    def before_phase(self, batches: ClipSupply, *, generator: torch.Generator) -> None:
        """Start a table from the mean inferred latent action of each class."""
        adapter: Any = self.model.adapter
        if not hasattr(adapter, "start"):
            return
        shape = (adapter.config.size, adapter.tokens, adapter.dim)
        sums = counts = None
        clips = 0
        while clips < self.config.start_clips:
            batch, own = batches()
            clips += own.clips
            classes = _real(batch).flatten()
            codes = self.model.infer_actions(to_float(batch.frames)).codes.flatten(0, 1).double()
            if sums is None or counts is None:
                sums, counts = codes.new_zeros(shape), codes.new_zeros(shape[0])
            sums.index_add_(0, classes, codes)
            counts += classes.bincount(minlength=shape[0])
        assert sums is not None and counts is not None
        sums, counts = sum_pieces([sums, counts], self.model.quantizer.process_group)
        adapter.start(sums, counts)


class AdaptedObjective(_RealActions):
    """The world model learns to follow the adapter's codes; the latent action model is frozen."""

    needs = ("idm", "quantizer", "conditioner", "adapter", "action_head")
    terms = (FLOW,)

    def forward(self, batch: ClipBatch, *, generator: torch.Generator) -> Forward:
        frames = to_float(batch.frames)  # no augmentation: the latent action model is fixed
        actions = self.model.encode_actions(_real(batch), frames)
        return self._under(actions, frames, batch, generator)


@dataclass(frozen=True)
class Both:
    """What `adapted_lam` made."""

    real: Forward  # under the adapter's codes
    inferred: Forward  # under inferred ones
    matched: Matched
    indices: Tensor | None  # [B, T - 1, N] inferred codes

    @property
    def quantized(self) -> object:
        """What the quantizer gave."""
        return self.inferred.quantized


class AdaptedLamObjective(ColaObjective):
    """`adapted` and `cola` on the same clips, noise and times; their flow losses count alike.

    The head back learns along, since the codes that it reads move.
    """

    needs = AdaptedObjective.needs
    uses_actions = True
    terms = (
        Term("flow", lambda made: flow_error(made.real)),
        Term("flow_inferred", lambda made: flow_error(made.inferred)),
        QUANTIZER,
        Term("head", lambda made: head_error(made.matched)),
    )

    def forward(  # type: ignore[override]
        self, batch: ClipBatch, *, generator: torch.Generator
    ) -> Both:
        frames, seen = self._views(batch, generator)
        stored = None if self.config.augment else batch.latents
        noised = self._noised(frames, stored, generator)
        quantized = self.model.quantize(seen, generator=generator)
        actions, head = _real(batch), self.model.action_head
        codes = self.model.encode_actions(actions, frames).codes
        drop = dropped(codes, self.model.conditioner.config, generator)

        def under(codes: Tensor, **more: object) -> Forward:
            return Forward(
                velocity=self.model.velocity(noised.x_t, noised.times, codes, drop, fps=batch.fps),
                target=noised.target,
                predict=noised.predict,
                average=self.config.average,
                usual=noised.usual,
                **more,  # type: ignore[arg-type]
            )

        inferred = quantized.codes.detach()
        matched = Matched(
            codes,
            inferred,
            head(inferred),
            actions if head.config.discrete else head.scale(actions),
            None,
        )
        return Both(
            under(codes), under(quantized.codes, quantized=quantized), matched, quantized.indices
        )
