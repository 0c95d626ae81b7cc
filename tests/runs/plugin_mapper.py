"""A part, an objective, a phase and a recipe from outside: an adapter from real actions to codes.

It stands for what a user writes in one file of their own; no list of the package knows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from colaworld.contracts import to_float
from colaworld.models.parts import Part, register_part
from colaworld.recipes import nano, register_recipe
from colaworld.training.objectives import BaseObjective, Forward, Term, register_objective
from colaworld.training.phases import Phase


@dataclass(frozen=True)
class MapperConfig:
    """Sizes of the adapter."""

    actions: int = 17
    """How many discrete actions there are."""


class Mapper(nn.Module):
    """Discrete actions [B, T - 1] to codes [B, T - 1, N, d]."""

    def __init__(self, config: MapperConfig, *, tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.table = nn.Embedding(config.actions, tokens * dim)

    def forward(self, actions: torch.Tensor) -> torch.Tensor:
        return self.table(actions).unflatten(-1, (self.tokens, -1))


def distance(made: Forward) -> torch.Tensor:
    """Mean squared distance of the adapter's codes to the latent actions of the same frames."""
    return F.mse_loss(made.predicted, made.target)


class MapperObjective(BaseObjective):
    """Real actions should mean what the latent action model sees between the frames."""

    # The conditioner is not trained: with it the run is a world, which acts on real actions.
    needs = ("idm", "quantizer", "conditioner", "mapper")
    uses_actions = True
    terms = (Term("distance", distance),)

    def forward(self, batch, *, generator):
        codes = self.model.infer_actions(to_float(batch.frames)).codes
        return Forward(predicted=self.model.mapper(batch.actions), target=codes)


def build(config: MapperConfig, model: nn.Module) -> Mapper:
    return Mapper(config, tokens=model.config.idm.tokens, dim=model.config.idm.dim)


register_part(Part("mapper", MapperConfig, build, needs=("idm", "quantizer")))
register_objective("mapper", MapperObjective)


def mapper():
    """Map a data set's actions to the latent actions of a trained world."""
    config = nano.cola()
    phase = Phase("mapper", "mapper", ("mapper",), steps=20, lr_warmup_steps=0, learning_rate=0.05)
    model = replace(config.model, parts={"mapper": MapperConfig()})
    phases = config.phases | {"mapper": phase}
    return replace(config, recipe="toy.mapper", schedule=("mapper",), phases=phases, model=model)


register_recipe("toy.mapper", mapper)
