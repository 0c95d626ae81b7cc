"""The contract of all quantizers, and the standardisation of latents.

Not here: any quantizer (codebook.py, residual.py, finite.py, continuous.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from colaworld.contracts import ResetRows
from colaworld.models.latent_action.quantizers.config import QuantizerConfig
from colaworld.models.latent_action.quantizers.step_stats import (
    StepStats,
    gather_rows,
    mean_over,
    sum_pieces,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class BatchStats:
    """What one training forward pass saw, without its graph: for `Quantizer.observe`."""

    latents: Tensor | None = None  # [M, d] what the codebook was searched with
    indices: Tensor | None = None  # [M] what was found; None while latents pass unquantised
    moments: tuple[Tensor, Tensor] | None = None  # mean [d] and scale [d] of the batch
    inner: tuple[BatchStats, ...] = ()  # of the codebooks of a residual quantizer


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns. `indices` is None when there is no codebook."""

    codes: Tensor  # [..., N, d] float32, differentiable with respect to z
    indices: Tensor | None  # [..., N] int64
    loss: Tensor  # scalar: codebook + beta * commitment, or KL
    seen: BatchStats | None = None  # in training: what `observe` takes


class Standardise(nn.Module):
    """Standardisation of each channel over the batch, without affine parameters.

    Statistics are those of the batch, of all processes, in training and running ones in evaluation. Each channel has
    its own scale, so that one large distinction cannot fill the whole space: measured better than
    one scale for all, on one seed (recipes/EXPERIMENTS.md). `forward` changes nothing; running
    statistics move by `update`, once per optimiser step. They follow within a few steps: the mean of latents
    is of no concern to any loss, and wanders.
    """

    mean: Tensor  # [d]
    scale: Tensor  # [d]

    def __init__(self, dim: int, *, momentum: float = 0.3, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.process_group: ProcessGroup | None = None  # over whose batches statistics are

    def forward(self, z: Tensor) -> Tensor:
        """z [..., d] standardised, the same shape."""
        return self.with_moments(z)[0]

    def with_moments(self, z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """z [..., d] standardised and, in training, the batch's mean and scale, with their graph."""
        if not self.training:
            return (z - self.mean) / self.scale, None
        mean, scale = self._statistics(z.reshape(-1, z.shape[-1]), self.process_group)
        return (z - mean) / scale, (mean, scale)

    @torch.no_grad()
    def update(self, mean: Tensor, scale: Tensor) -> None:
        """Move the running statistics towards a step's mean [d] and scale [d]."""
        self.mean.lerp_(mean, self.momentum)
        self.scale.lerp_(scale, self.momentum)

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """Take the running statistics from z [M, d]."""
        mean, scale = self._statistics(z)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def _statistics(self, z: Tensor, group: ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
        mean = mean_over(z.mean(0), group)
        return mean, (mean_over((z - mean).square().mean(0), group) + self.eps).sqrt()


class Quantizer(nn.Module):
    """The contract. Subclasses implement `_quantize` and `lookup`; those that learn from what they
    see also `_observe`, `_local_stats` and `_apply_stats`.
    """

    config: QuantizerConfig
    codebook_size: int | None = None
    continuous = False  # whether latents pass unquantised for now: it has no codes yet
    standardise: Standardise | nn.Identity
    started: Tensor  # bool: whether `start` was called

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.standardise = Standardise(dim) if config.normalise else nn.Identity()
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.process_group: ProcessGroup | None = None
        self._pending = StepStats(capacity=0)

    def forward(self, z: Tensor, *, generator: torch.Generator | None = None) -> Quantized:
        """z [..., N, d] -> Quantized. `generator` feeds quantizers that draw noise.

        Changes no state, so it may run again (activation checkpointing).
        """
        if z.shape[-1] != self.dim:
            raise ValueError(f"quantizer: expected z [..., {self.dim}], got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            z, moments = z.float(), None
            if isinstance(self.standardise, Standardise):
                z, moments = self.standardise.with_moments(z)
            made = self._quantize(z, generator)
        if not self.training:
            return made
        if moments is not None:
            mean, scale = moments
            if floor := self.config.scale_floor:
                missing = (floor / scale).log().clamp_min(0)
                made = replace(made, loss=made.loss + missing.square().mean())
            moments = mean.detach(), scale.detach()
        return replace(made, seen=replace(made.seen or BatchStats(), moments=moments))

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        raise TypeError(f"{type(self).__name__} must implement _quantize")

    def lookup(self, indices: Tensor) -> Tensor:
        """Codebook entries [..., d] of indices [...]. Raises TypeError without a codebook."""
        raise TypeError(f"{type(self).__name__} has no codebook to look indices up in")

    def start(self, z: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Take a start from latents z [B, ..., N, d] of real clips, before the first step.

        Over several processes: from the latents of all, which must be equally many, and with a
        `generator` that draws the same on each.
        """
        self.started.fill_(True)
        if isinstance(self.standardise, Standardise):
            every = gather_rows(z.float(), self.process_group)
            self.standardise.start(every.reshape(-1, self.dim))

    def restart(self) -> None:
        """Let the next phase `start` it anew, from its latents."""
        self.started.fill_(False)

    def set_process_group(self, group: ProcessGroup | None) -> None:
        """Let `start` and `after_step` count what all processes of `group` saw; None: this one."""
        for module in self.modules():
            if isinstance(module, (Quantizer, Standardise)):
                module.process_group = group

    def begin_step(self) -> None:
        """Before the forward passes of an optimiser step: forget what an abandoned step left."""
        self._pending.clear()

    @torch.no_grad()
    def observe(self, made: Quantized, *, generator: torch.Generator | None = None) -> None:
        """Count what a forward pass saw. Once per pass, also of the passes of one optimiser step.

        `generator` draws which latents are kept for re-seeding: a ClipGenerator, or one that draws the
        same on every process. Does nothing for a pass in evaluation.
        """
        if made.seen is not None:
            self._observe(made.seen, generator)

    @torch.no_grad()
    def after_step(
        self, *, generator: torch.Generator | None = None
    ) -> tuple[dict[str, float], ResetRows]:
        """Once after every optimiser step: running statistics, dead codes, from what was observed.

        One reduction over processes. Returns metrics, and which rows of which parameters moved.
        """
        pieces = self._local_stats(generator)
        if not pieces:
            return {}, []
        result = self._apply_stats(iter(sum_pieces(pieces, self.process_group)), generator)
        self.begin_step()
        return result

    def _observe(self, seen: BatchStats, generator: torch.Generator | None) -> None:
        if seen.moments is not None:
            self._pending.add_moments(*seen.moments)

    def _local_stats(self, generator: torch.Generator | None) -> list[Tensor]:
        """What this process adds to the sum over processes; nothing when nothing was observed."""
        return [] if self._pending.moments is None else [self._pending.moments]

    def _apply_stats(
        self, pieces: Iterator[Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, float], ResetRows]:
        """Learn from the summed pieces, taking one's own from the front."""
        if isinstance(self.standardise, Standardise) and self._pending.moments is not None:
            moments = next(pieces)
            mean, scale = moments[:, :-1] / moments[:, -1:]
            self.standardise.update(mean, scale)
        return {}, []
