"""From latent actions back to real ones: an estimate, with the error that was measured beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colaworld.models.adapters.adapter import Scale
from colaworld.models.adapters.config import ActionHeadConfig
from colaworld.models.layers.autocast import no_autocast
from colaworld.models.layers.mlp import MLP


class ActionHead(nn.Module):
    """Codes [B, T - 1, N, d] to classes or numbers; an MLP, or a linear map where `hidden` is 0."""

    def __init__(self, config: ActionHeadConfig, *, tokens: int, dim: int) -> None:
        super().__init__()
        self.config, self.scale = config, Scale(config)
        self.map: nn.Module = (
            MLP(tokens * dim, config.hidden, config.size)
            if config.hidden
            else nn.Linear(tokens * dim, config.size)
        )

    def forward(self, codes: Tensor) -> Tensor:
        """[B, T - 1, size]: logits of classes, or standardised numbers."""
        with no_autocast(codes):
            return self.map(codes.float().flatten(2))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Classes int64 [B, T - 1], or numbers [B, T - 1, size] in the data's units."""
        made = self(codes)
        return made.argmax(-1) if self.config.discrete else self.scale.back(made)
