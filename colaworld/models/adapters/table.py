"""A code for each class of action, which starts from what the latent action model sees of that class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colaworld.models.adapters.adapter import Adapter
from colaworld.models.adapters.config import TableAdapterConfig


class TableAdapter(Adapter):
    """A row of the table for each class."""

    undecayed = ("table",)  # codes, which the optimizer must not pull towards zero

    def __init__(
        self, config: TableAdapterConfig, *, tokens: int, dim: int, patch: int = 1
    ) -> None:
        super().__init__(config, tokens=tokens, dim=dim)
        self.table = nn.Parameter(torch.zeros(config.size, tokens * dim))

    @torch.no_grad()
    def start(self, sums: Tensor, counts: Tensor) -> None:
        """Take the means of classes: sums of codes [size, N, d], and of how many [size].

        A class that was not seen starts from the mean over all.
        """
        seen = counts > 0
        mean = sums.sum(0) / counts.sum().clamp(min=1)
        each = sums / counts.clamp(min=1)[:, None, None]
        self.table.copy_(torch.where(seen[:, None, None], each, mean).flatten(1))

    def _codes(self, actions: Tensor, frames: Tensor | None) -> Tensor:
        return self.table[actions]
