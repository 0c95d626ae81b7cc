"""What each phase minimises. Every objective is `loss(batch, generator) -> (loss, metrics)`.

flow            the generator alone, without actions                     (pretrain)
cola            flow loss through generator, conditioning and quantizer  (warmup, joint)
world           the same flow loss under a frozen latent action model    (second stage)
reconstruction  a forward dynamics model in pixels                       (first stage)

Not here: which parts of the model train (phases), the loop (trainer), the models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.contracts import ClipBatch, Moved
from colaworld.data.transforms import random_resized_crop
from colaworld.flow.loss import masked_velocity_loss
from colaworld.flow.path import TimeConfig, draw_times, interpolate, target_velocity
from colaworld.models.world_model import WorldModel


@dataclass(frozen=True)
class ObjectiveConfig:
    """How clips are turned into a loss."""

    history: tuple[int, int] = (1, 3)
    """Fewest and most clean latent frames of history of a clip; the rest is noised and predicted."""
    times: TimeConfig = field(default_factory=TimeConfig)
    """Diffusion times of the noised frames."""
    augment: bool = True
    """One random resized crop per clip while the latent action model trains (paper)."""
    quantizer_weight: float = 1.0
    """Weight of the quantizer's loss (codebook + beta * commitment) beside the flow loss."""
    start_clips: int = 256
    """Clips whose latents give the codebook its start."""


def pixels(batch: ClipBatch) -> Tensor:
    """uint8 frames on the device -> float32 in [0, 1]."""
    return batch.frames.float().div_(255)


class _Base:
    """What all objectives share. `codebook_size` and `tokens` are None without a codebook."""

    codebook_size: int | None = None
    tokens: int | None = None

    def __init__(self, model: WorldModel, config: ObjectiveConfig) -> None:
        self.model, self.config = model, config

    def before_phase(self, batches: Callable[[], ClipBatch], *, generator: torch.Generator) -> None:
        """Nothing to prepare."""

    def begin_step(self) -> None:
        """Nothing to forget."""

    def after_step(self, *, generator: torch.Generator) -> tuple[dict[str, float], Moved]:
        """Nothing to update."""
        return {}, []

    def _noised(
        self, frames: Tensor, stored: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents on the path, their times [B, T], the target velocity, the mask to predict.

        `stored` [B, C, T, h, w]: latents of these very frames, so that they need no encoding.
        """
        x0 = self.model.tokenizer.encode(frames) if stored is None else stored.float()
        clips, length = x0.shape[0], x0.shape[2]
        low, high = self.config.history
        high = min(high, length - 1)
        if not 1 <= low <= high:
            raise ValueError(
                f"objective.history: {self.config.history} leaves nothing to predict of a clip of "
                f"{length} latent frames; expected 1 <= fewest <= most < {length}"
            )
        device = x0.device
        given = torch.randint(low, high + 1, (clips, 1), generator=generator, device=device)
        predict = torch.arange(length, device=device) >= given  # [B, T]
        time = draw_times(
            clips,
            self.config.times,
            generator=generator,
            device=device,
            own_shift=self.model.backbone.time_shift(length, *x0.shape[3:]),
        )
        times = time[:, None] * predict
        noise = torch.randn(x0.shape, generator=generator, device=device)
        return interpolate(x0, noise, times), times, target_velocity(x0, noise), predict


class FlowObjective(_Base):
    """The generator by itself: predict the rest of a clip from its history, without actions."""

    def loss(
        self, batch: ClipBatch, *, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        x_t, times, target, predict = self._noised(pixels(batch), batch.latents, generator)
        loss = masked_velocity_loss(self.model.velocity(x_t, times), target, predict)
        return loss, {"flow": loss.detach()}


class _LatentActionObjective(_Base):
    """Shared by the objectives that train a latent action model."""

    def __init__(self, model: WorldModel, config: ObjectiveConfig) -> None:
        super().__init__(model, config)
        self.codebook_size, self.tokens = model.codebook_size, model.tokens

    @torch.no_grad()
    def before_phase(self, batches: Callable[[], ClipBatch], *, generator: torch.Generator) -> None:
        """Start an unstarted quantizer from latents of real clips."""
        quantizer = self.model.quantizer
        if bool(quantizer.started):
            return
        latents, clips = [], 0
        while clips < self.config.start_clips:
            batch = batches()
            latents.append(self.model.idm(self._frames(batch, generator)).flatten(0, 1))
            clips += len(batch)
        quantizer.start(torch.cat(latents), generator=generator)

    def begin_step(self) -> None:
        self.model.quantizer.begin_step()

    def after_step(self, *, generator: torch.Generator) -> tuple[dict[str, float], Moved]:
        return self.model.quantizer.after_step(generator=generator)

    def _frames(self, batch: ClipBatch, generator: torch.Generator) -> Tensor:
        frames = pixels(batch)
        return random_resized_crop(frames, generator=generator) if self.config.augment else frames

    def _report(self, indices: Tensor | None) -> dict[str, Any]:
        return {} if indices is None else {"indices": indices.flatten(0, 1).detach()}


class ColaObjective(_LatentActionObjective):
    """CoLA-World: the flow loss reaches the IDM through generator, conditioner and quantizer.

    The same objective serves warm-up and joint training; the phase says what moves.
    """

    def loss(
        self, batch: ClipBatch, *, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        frames = self._frames(batch, generator)
        stored = None if self.config.augment else batch.latents  # those of a crop are others
        x_t, times, target, predict = self._noised(frames, stored, generator)
        quantized = self.model.quantize(frames, generator=generator)
        drop = _drop(quantized.codes, self.model.conditioner.config.dropout, generator)
        velocity = self.model.velocity(x_t, times, quantized.codes, drop)
        flow = masked_velocity_loss(velocity, target, predict)
        loss = flow + self.config.quantizer_weight * quantized.loss
        self.model.quantizer.observe(quantized, generator=generator)
        metrics = {"flow": flow.detach(), "quantizer": quantized.loss.detach()}
        return loss, metrics | self._report(quantized.indices)


class WorldObjective(_Base):
    """The second of two stages: the world model learns to follow frozen latent actions."""

    def __init__(self, model: WorldModel, config: ObjectiveConfig) -> None:
        super().__init__(model, config)
        self.codebook_size, self.tokens = model.codebook_size, model.tokens

    def loss(
        self, batch: ClipBatch, *, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        frames = pixels(batch)  # no augmentation: the latent action model is fixed (paper)
        x_t, times, target, predict = self._noised(frames, batch.latents, generator)
        actions = self.model.infer_actions(frames)
        drop = _drop(actions.codes, self.model.conditioner.config.dropout, generator)
        velocity = self.model.velocity(x_t, times, actions.codes, drop)
        loss = masked_velocity_loss(velocity, target, predict)
        metrics: dict[str, Any] = {"flow": loss.detach()}
        if actions.indices is not None:
            metrics["indices"] = actions.indices.flatten(0, 1)
        return loss, metrics


class ReconstructionObjective(_LatentActionObjective):
    """The first of two stages: a latent action model with its own small forward model."""

    def loss(
        self, batch: ClipBatch, *, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        frames = self._frames(batch, generator)
        quantized = self.model.quantize(frames, generator=generator)
        predicted = self.model.fdm(frames[:, :-1], quantized.codes)
        # Pixels in [-1, 1], so that the loss has the scale of the flow loss.
        error = 4 * F.mse_loss(predicted.float(), frames[:, 1:])
        loss = error + self.config.quantizer_weight * quantized.loss
        self.model.quantizer.observe(quantized, generator=generator)
        metrics = {"reconstruction": error.detach(), "quantizer": quantized.loss.detach()}
        return loss, metrics | self._report(quantized.indices)


def _drop(codes: Tensor, share: float, generator: torch.Generator) -> Tensor | None:
    """Which actions are replaced by the null action, [B, T - 1] bool."""
    if share <= 0:
        return None
    return torch.rand(codes.shape[:2], generator=generator, device=codes.device) < share


OBJECTIVES = {
    "flow": FlowObjective,
    "cola": ColaObjective,
    "world": WorldObjective,
    "reconstruction": ReconstructionObjective,
}
