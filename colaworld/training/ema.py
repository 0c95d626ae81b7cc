"""Averaged weights of the parts that train.

The average restarts from the live weights with every phase, so the frozen parts in it are exactly
those that the phase trained against. Its decay ramps up, min(decay, (1 + n) / (10 + n)) after n
updates, so that a short phase is not dominated by where it began. Buffers (counters, running
statistics) are taken live. A code that is re-seeded moves in the average only as fast as it decays.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from colaworld.training.sharding import own_pieces


class WeightAverage:
    """Exponential moving average of the parameters of `model` that require a gradient."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.updates = 0
        self._shadow = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the live weights after one update."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = dict(self.model.named_parameters())
        names = list(self._shadow)
        torch._foreach_lerp_(
            own_pieces(self._shadow[name] for name in names),
            own_pieces(live[name].detach() for name in names),
            1 - decay,
        )

    def weights(self) -> dict[str, Tensor]:
        """A whole state_dict of the model in which averaged parameters replace the live ones."""
        return {**self.model.state_dict(), **self._shadow}

    def tensors(self) -> list[Tensor]:
        """The averages themselves."""
        return list(self._shadow.values())

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Restore from `weights()` and the count of updates."""
        self.updates = updates
        with torch.no_grad():
            for name, value in self._shadow.items():
                value.copy_(weights[name])
