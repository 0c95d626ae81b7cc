"""What each phase minimises. Every objective is a forward pass and a list of loss terms over it.

flow            the video model alone, without actions                     (pretrain)
cola            flow loss through video model, conditioning and quantizer  (warmup, joint)
aligned         cola, and the change of frozen latents from the latent action  (warmup, joint)
world           the same flow loss under a frozen latent action model    (second stage)
reconstruction  a forward dynamics model in pixels                       (first stage)
adapter, adapted, adapted_lam: a robot's real actions, in adaptation.py

An objective of your own: subclass `BaseObjective`, then `register_objective("name", YourObjective)`.
Not here: which parts of the model train (phases), the loop (trainer), the models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.config import ConfigError
from colaworld.contracts import ClipBatch, LatentActions, ResetRows, to_float
from colaworld.data.transforms import random_resized_crop, random_shift
from colaworld.flow.config import Average
from colaworld.flow.loss import flow_matching_loss
from colaworld.flow.path import interpolate, sample_timesteps, target_velocity
from colaworld.models.config import ConditionerConfig
from colaworld.models.latent_action.quantizers import Quantized
from colaworld.models.world_model import WorldModel
from colaworld.rng import ClipGenerator, draw
from colaworld.training.config import OBJECTIVES, ObjectiveConfig
from colaworld.training.protocols import ClipSupply


@dataclass(frozen=True)
class Forward:
    """What a forward pass made, for the terms to read. Legend: B clips, T latent frames, F frames."""

    frames: Tensor | None = None  # [B, F, 3, H, W] in [0, 1] that the model was shown
    velocity: Tensor | None = None  # [B, C, T, h, w] of the video model
    target: Tensor | None = None  # [B, C, T, h, w] what it should be
    predict: Tensor | None = None  # [B, T] bool: frames that were noised
    average: Average = "frames"  # what the flow loss is a mean over
    usual: Tensor | None = None  # scalar: frames to predict of a clip, on average over the update
    predicted: Tensor | None = None  # [B, F - 1, 3, H, W] frames of a forward model
    latents: Tensor | None = None  # [B, C, T, h, w] clean ones of the video model
    change: Tensor | None = None  # [B, C, T - 1, h, w] of them, as predicted
    quantized: Quantized | None = None  # the latent actions, in training
    indices: Tensor | None = None  # [B, F - 1, N] codes used, for the codebook meter


class Noised(NamedTuple):
    """Clips on the path from data to noise. Legend: B clips, T latent frames."""

    x_t: Tensor  # [B, C, T, h, w]
    times: Tensor  # [B, T]
    target: Tensor  # [B, C, T, h, w] the velocity
    predict: Tensor  # [B, T] bool: frames that were noised
    usual: Tensor  # scalar: how many those are of a clip, on average over the whole update
    latents: Tensor  # [B, C, T, h, w] without noise


@dataclass(frozen=True)
class Term:
    """One addend of a loss; its value is reported under its name."""

    name: str
    value: Callable[[Any], Tensor]
    """What the forward pass made -> a scalar with its graph."""
    weight: Callable[[ObjectiveConfig], float] = lambda config: 1.0


def flow_error(made: Forward) -> Tensor:
    """Mean squared error of the velocity over the frames to predict."""
    assert made.velocity is not None and made.target is not None and made.predict is not None
    return flow_matching_loss(
        made.velocity, made.target, made.predict, average=made.average, usual=made.usual
    )


def quantizer_error(made: Forward) -> Tensor:
    """Codebook and commitment loss, or the KL divergence."""
    assert made.quantized is not None
    return made.quantized.loss


def frame_error(made: Forward) -> Tensor:
    """Mean squared error of predicted frames; pixels in [-1, 1], so on the scale of the flow loss."""
    assert made.predicted is not None and made.frames is not None
    return 4 * F.mse_loss(made.predicted.float(), made.frames[:, 1:])


def alignment_error(made: Forward) -> Tensor:
    """Mean squared error of the predicted change from each latent frame to the next."""
    assert made.change is not None and made.latents is not None
    return F.mse_loss(made.change.float(), made.latents.diff(dim=2))


FLOW = Term("flow", flow_error)
QUANTIZER = Term("quantizer", quantizer_error, lambda config: config.quantizer_weight)
RECONSTRUCTION = Term("reconstruction", frame_error)
ALIGNMENT = Term("alignment", alignment_error, lambda config: config.alignment_weight)


class BaseObjective:
    """A forward pass, and the terms whose weighted sum is minimised.

    Subclasses implement `forward` and say what they need. `codebook_size` and `tokens` are None
    where the codebook is not watched. See `protocols.Objective` for the hooks.
    """

    needs: tuple[str, ...] = ()
    """Parts the forward pass runs through, trained or frozen, besides tokenizer and backbone."""
    uses_actions = False
    """Whether batches must carry the recorded actions."""
    terms: tuple[Term, ...] = ()
    codebook_size: int | None = None
    tokens: int | None = None

    def __init__(self, model: WorldModel, config: ObjectiveConfig) -> None:
        self.model, self.config = model, config
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names) or {"loss", "indices"} & set(names):
            raise ConfigError(
                f"{type(self).__name__}.terms: expected names that differ, none of them loss or "
                f"indices, got {', '.join(names)}"
            )

    def forward(self, batch: ClipBatch, *, generator: torch.Generator) -> Any:
        """What the terms read; a `Forward`, or whatever they take."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward")

    def loss(
        self, batch: ClipBatch, *, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `protocols.Objective.loss`: the weighted sum of the terms, and each of them."""
        made = self.forward(batch, generator=generator)
        values = {term.name: term.value(made) for term in self.terms}
        loss: Any = sum(term.weight(self.config) * values[term.name] for term in self.terms)
        self.observe(made, generator=generator)
        metrics: dict[str, Any] = {name: value.detach() for name, value in values.items()}
        if getattr(made, "indices", None) is not None:
            metrics["indices"] = made.indices.detach()
        return loss, metrics

    def observe(self, made: Any, *, generator: torch.Generator) -> None:
        """Once per forward pass that counts: nothing to remember."""

    def before_phase(self, batches: ClipSupply, *, generator: torch.Generator) -> None:
        """Nothing to prepare."""

    def begin_step(self) -> None:
        """Nothing to forget."""

    def after_step(self, *, generator: torch.Generator) -> tuple[dict[str, float], ResetRows]:
        """Nothing to update."""
        return {}, []

    def _under(
        self, actions: LatentActions, frames: Tensor, batch: ClipBatch, generator: torch.Generator
    ) -> Forward:
        """The velocity that the world predicts for these frames under actions that are given."""
        noised = self._noised(frames, batch.latents, generator)
        drop = dropped(actions.codes, self.model.conditioner.config, generator)
        velocity = self.model.velocity(noised.x_t, noised.times, actions.codes, drop, fps=batch.fps)
        return Forward(
            frames=frames,
            velocity=velocity,
            target=noised.target,
            predict=noised.predict,
            average=self.config.average,
            usual=noised.usual,
            indices=actions.indices,
        )

    def _noised(self, frames: Tensor, stored: Tensor | None, generator: torch.Generator) -> Noised:
        """Latents of the frames on the path, with noise of their own.

        `stored` [B, C, T, h, w]: latents of these very frames, so that they need no encoding.
        """
        x0 = self.model.tokenizer.encode(frames) if stored is None else stored.float()
        clips, length = x0.shape[0], x0.shape[2]
        parts = [getattr(self.model, name, None) for name in ("backbone", "lora")]
        learns = any(p.requires_grad for part in parts if part for p in part.parameters())
        name = "history" if learns or self.config.frozen_history is None else "frozen_history"
        asked = getattr(self.config, name)
        low, high = asked[0], min(asked[1], length - 1)
        if not 1 <= low <= high:
            raise ValueError(
                f"objective.{name}: {asked} leaves nothing to predict of a clip of "
                f"{length} latent frames; expected 1 <= fewest <= most < {length}"
            )
        device = x0.device
        integers, shape = partial(torch.randint, low, high + 1), (clips, 1)
        if isinstance(generator, ClipGenerator):
            every = generator.rows(integers, shape)
            given = generator.own(every)
        else:
            every = given = integers(shape, generator=generator, device=device)
        predict = torch.arange(length, device=device) >= given  # [B, T]
        time = sample_timesteps(
            clips,
            self.config.times,
            generator=generator,
            device=device,
            native_shift=self.model.backbone.time_shift(length, *x0.shape[3:]),
        )
        times = time[:, None] * predict
        noise = draw(torch.randn, x0.shape, generator, large=True, device=device)
        usual = (length - every).sum() / len(every)
        return Noised(
            interpolate(x0, noise, times), times, target_velocity(x0, noise), predict, usual, x0
        )


class FlowObjective(BaseObjective):
    """The video model by itself: predict the rest of a clip from its history, without actions."""

    terms = (FLOW,)

    def forward(self, batch: ClipBatch, *, generator: torch.Generator) -> Forward:
        noised = self._noised(to_float(batch.frames), batch.latents, generator)
        return Forward(
            velocity=self.model.velocity(noised.x_t, noised.times, fps=batch.fps),
            target=noised.target,
            predict=noised.predict,
            average=self.config.average,
            usual=noised.usual,
        )


class _LatentActionObjective(BaseObjective):
    """Shared by the objectives that train a latent action model."""

    def __init__(self, model: WorldModel, config: ObjectiveConfig) -> None:
        super().__init__(model, config)
        self.codebook_size, self.tokens = model.codebook_size, model.tokens

    @torch.no_grad()
    def before_phase(self, batches: ClipSupply, *, generator: torch.Generator) -> None:
        """Start an unstarted quantizer from latents of real clips."""
        quantizer = self.model.quantizer
        if bool(quantizer.started):
            return
        latents, clips = [], 0
        while clips < self.config.start_clips:
            batch, own = batches()
            latents.append(self.model.idm(self._views(batch, own)[1]))
            clips += own.clips
        quantizer.start(torch.cat(latents), generator=generator)

    def begin_step(self) -> None:
        self.model.quantizer.begin_step()

    def after_step(self, *, generator: torch.Generator) -> tuple[dict[str, float], ResetRows]:
        return self.model.quantizer.after_step(generator=generator)

    def _views(self, batch: ClipBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The clips [B, F, 3, H, W] as the video model sees them, and as the IDM does."""
        config, whole = self.config, to_float(batch.frames)
        frames = random_resized_crop(whole, generator=generator) if config.augment else whole
        if config.idm_view == "crop":
            return frames, random_resized_crop(whole, generator=generator)
        if config.idm_view == "shift":
            most, patch = config.idm_shift, self.model.config.idm.patch
            return frames, random_shift(frames, most=most, patch=patch, generator=generator)
        return frames, frames

    def observe(self, made: Forward, *, generator: torch.Generator) -> None:
        assert made.quantized is not None
        self.model.quantizer.observe(made.quantized, generator=generator)


class ColaObjective(_LatentActionObjective):
    """CoLA-World: the flow loss reaches the IDM through video model, conditioner and quantizer.

    The same objective serves warm-up and joint training; the phase says what moves.
    """

    needs = OBJECTIVES["cola"].needs
    terms: tuple[Term, ...] = (FLOW, QUANTIZER)

    def forward(self, batch: ClipBatch, *, generator: torch.Generator) -> Forward:
        frames, seen = self._views(batch, generator)
        stored = None if self.config.augment else batch.latents  # those of a crop are others
        noised = self._noised(frames, stored, generator)
        quantized = self.model.quantize(seen, generator=generator)
        drop = dropped(quantized.codes, self.model.conditioner.config, generator)
        velocity = self.model.velocity(
            noised.x_t, noised.times, quantized.codes, drop, fps=batch.fps
        )
        return Forward(
            frames=frames,
            velocity=velocity,
            target=noised.target,
            predict=noised.predict,
            average=self.config.average,
            usual=noised.usual,
            latents=noised.latents,
            quantized=quantized,
            indices=quantized.indices,
        )


class AlignedObjective(ColaObjective):
    """`cola`, and an aligner that is given a frame's latents and the latent action must tell how they change.

    The aligner has the gradient's shortest way to the IDM: no noise, no video model between. In evaluation it is
    not asked.
    """

    needs = OBJECTIVES["aligned"].needs
    terms = (FLOW, QUANTIZER, ALIGNMENT)

    def forward(self, batch: ClipBatch, *, generator: torch.Generator) -> Forward:
        made = super().forward(batch, generator=generator)
        assert made.quantized is not None
        return replace(made, change=self.model.aligner(made.latents, made.quantized.codes))


class WorldObjective(BaseObjective):
    """The second of two stages: the world model learns to follow frozen latent actions."""

    needs = OBJECTIVES["world"].needs
    terms = (FLOW,)

    def __init__(self, model: WorldModel, config: ObjectiveConfig) -> None:
        super().__init__(model, config)
        self.codebook_size, self.tokens = model.codebook_size, model.tokens

    def forward(self, batch: ClipBatch, *, generator: torch.Generator) -> Forward:
        frames = to_float(batch.frames)  # no augmentation: the latent action model is fixed (paper)
        return self._under(self.model.infer_actions(frames), frames, batch, generator)


class ReconstructionObjective(_LatentActionObjective):
    """The first of two stages: a latent action model with its own small forward model."""

    needs = OBJECTIVES["reconstruction"].needs
    terms = (RECONSTRUCTION, QUANTIZER)

    def forward(self, batch: ClipBatch, *, generator: torch.Generator) -> Forward:
        frames, seen = self._views(batch, generator)
        quantized = self.model.quantize(seen, generator=generator)
        predicted = self.model.fdm(frames[:, :-1], quantized.codes)
        return Forward(
            frames=frames, predicted=predicted, quantized=quantized, indices=quantized.indices
        )


def dropped(codes: Tensor, config: ConditionerConfig, generator: torch.Generator) -> Tensor | None:
    """Which actions are replaced by the null action, [B, T - 1] bool; with nested dropout, which tokens of
    them, [B, T - 1, N]."""
    (clips, steps, tokens), device = codes.shape[:3], codes.device
    drop, chance = None, partial(draw, torch.rand, (clips, steps), generator, device=device)
    if config.dropout > 0:
        drop = chance() < config.dropout
    if config.nested_dropout > 0:
        few = chance() < config.nested_dropout
        counts = partial(torch.randint, 1, tokens)
        kept = draw(counts, (clips, steps), generator, device=device)
        later = torch.arange(tokens, device=device) >= kept[..., None]
        nested = later & few[..., None]
        drop = nested if drop is None else nested | drop[..., None]
    return drop


def register_objective(name: str, objective: type[BaseObjective]) -> None:
    """Make an objective known to phases. Raises ConfigError on a name that is taken."""
    OBJECTIVES.add(name, objective)
