"""Residual VQ: several gradient codebooks in a row. Not here: a single codebook (codebook.py)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from colaworld.contracts import ResetRows
from colaworld.models.latent_action.quantizers.codebook import GradientVQ
from colaworld.models.latent_action.quantizers.config import ResidualConfig
from colaworld.models.latent_action.quantizers.estimators import ESTIMATORS
from colaworld.models.latent_action.quantizers.quantizer import BatchStats, Quantized, Quantizer


class ResidualVQ(Quantizer):
    """Codebooks one after the other, each on what the one before left (Zeghidour et al. 2021).

    An action's index is the mixed-radix number of its entries: K^depth codes in all. The estimator
    applies once, to the sum of the entries.
    """

    config: ResidualConfig
    codebook_size: int

    def __init__(self, config: ResidualConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.layers = nn.ModuleList(GradientVQ(config.each(), dim) for _ in range(config.depth))
        self.codebook_size = config.codebook_size**config.depth

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        left, total, loss = z, torch.zeros_like(z), z.new_zeros(())
        index = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
        seen = []
        for place, layer in enumerate(self.layers):
            part = layer(left)
            index = index + part.indices * self.config.codebook_size**place
            loss = loss + part.loss
            total = total + part.codes
            left = left - part.codes.detach()
            seen.append(part.seen)
        inner = BatchStats(inner=tuple(seen)) if self.training else None
        return Quantized(ESTIMATORS[self.config.estimator](z, total), index, loss, inner)

    def lookup(self, indices: Tensor) -> Tensor:
        size = self.config.codebook_size
        return sum(
            layer.lookup(indices // size**place % size) for place, layer in enumerate(self.layers)
        )

    @torch.no_grad()
    def start(self, z: Tensor, *, generator: torch.Generator | None = None) -> None:
        super().start(z, generator=generator)
        was = self.training
        self.eval()
        left = self.standardise(z.float())
        for layer in self.layers:
            layer.start(left, generator=generator)
            left = left - layer(left).codes
        self.train(was)

    def restart(self) -> None:
        super().restart()
        for layer in self.layers:
            layer.restart()

    def begin_step(self) -> None:
        super().begin_step()
        for layer in self.layers:
            layer.begin_step()

    def _observe(self, seen: BatchStats, generator: torch.Generator | None) -> None:
        super()._observe(seen, generator)
        for layer, part in zip(self.layers, seen.inner, strict=True):
            layer._observe(part, generator)

    def _local_stats(self, generator: torch.Generator | None) -> list[Tensor]:
        pieces = super()._local_stats(generator)
        for layer in self.layers:
            pieces += layer._local_stats(generator)
        return pieces

    def _apply_stats(
        self, pieces: Iterator[Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, float], ResetRows]:
        super()._apply_stats(pieces, generator)
        reseeded, moved = 0.0, []
        for layer in self.layers:
            metrics, rows = layer._apply_stats(pieces, generator)
            reseeded += metrics.get("reseeded", 0.0)
            moved += rows
        return {"reseeded": reseeded}, moved
