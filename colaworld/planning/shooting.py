"""Random shooting: candidates are drawn once, without looking, and the best is taken.

Source: Nagabandi et al. 2018, arXiv 1708.02596, section IV-D. The measure every other planner must beat
at the same budget.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colaworld.planning.config import ShootingConfig
from colaworld.planning.contracts import Objective, Plan, Start, best
from colaworld.planning.prior import CodeBigram, uniform_codes
from colaworld.planning.spaces import Continuous, Space


def shooting(
    objective: Objective,
    space: Space,
    config: ShootingConfig,
    *,
    horizon: int,
    batch: int,
    generator: torch.Generator,
    start: Start = Start(),  # noqa: B008
    prior: CodeBigram | None = None,
) -> Plan:
    """The best of `candidates` sequences, uniform over the space or drawn from a data prior.

    A warm start is one of them, its missing steps drawn.
    """
    shape = (batch, config.candidates, horizon)
    drawn: Tensor
    if isinstance(space, Continuous):
        low, high = space.bounds(generator.device)
        uniform = torch.rand((*shape, space.width), generator=generator, device=generator.device)
        drawn = low + (high - low) * uniform
    elif prior is not None:
        drawn = prior.sample(shape, last=start.last, generator=generator, given=start.actions)
    else:
        drawn = uniform_codes(shape, space, generator=generator)
    if start.actions is not None:
        drawn[:, 0, : start.actions.shape[1]] = start.actions
    objective.require(config.candidates * horizon, "shooting")
    cost = objective(drawn)
    actions, lowest = best(drawn, cost)
    return Plan(actions, lowest, objective.calls, lowest[:, None])
