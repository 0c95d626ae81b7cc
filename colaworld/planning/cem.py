"""The cross-entropy method over continuous actions, and iCEM.

    draw candidates around mean and deviation -> cost -> elites -> their mean and deviation -> again

Sources: Rubinstein 1999; de Boer et al. 2005, "A tutorial on the cross-entropy method", section 3
(smoothing: equation 20). iCEM: Pinneri et al. 2020, arXiv 2008.06389, algorithm 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from colaworld.planning.config import CEMConfig, ICEMConfig
from colaworld.planning.contracts import Objective, Plan, Start, best, cheaper, elites
from colaworld.planning.noise import coloured
from colaworld.planning.spaces import Continuous


def cem(
    objective: Objective,
    space: Continuous,
    config: CEMConfig,
    *,
    horizon: int,
    batch: int,
    generator: torch.Generator,
    start: Start = Start(),  # noqa: B008
    prior: None = None,
) -> Plan:
    """The mean of the last round's elites, and its cost.

    A warm start is the first mean; steps that it lacks begin at the middle of the range. Noise is white,
    candidates are cut to the bounds, the deviation is that of the elites as a population.
    """
    shape = (batch, config.candidates, horizon, space.width)
    mean, std, half = begin(space, config.std, start, batch, horizon, generator.device)
    count, lowest = elite_count(config.elites, config.candidates), []
    objective.require((config.candidates + 1) * horizon, "a round of cem")
    for _ in range(config.iterations):
        if not objective.affords((config.candidates + 1) * horizon):
            break
        noise = torch.randn(shape, generator=generator, device=generator.device)
        drawn = clipped(mean[:, None] + std[:, None] * noise, space)
        cost = objective(drawn)
        lowest.append(cost.min(dim=1).values)
        chosen = elites(drawn, cost, count)
        mean, std = refitted(mean, std, chosen, config.momentum, config.min_std * half)
    final = objective(mean[:, None])[:, 0]
    return Plan(mean, final, objective.calls, torch.stack(lowest, dim=1))


def icem(
    objective: Objective,
    space: Continuous,
    config: ICEMConfig,
    *,
    horizon: int,
    batch: int,
    generator: torch.Generator,
    start: Start = Start(),  # noqa: B008
    prior: None = None,
) -> Plan:
    """The best candidate of all rounds, and elites for the next decision.

    As the paper: coloured noise, elites that join the next round and (shifted) the next decision, fewer
    candidates from round to round, the mean among the candidates of the last round. A warm start is
    the first mean and a candidate, its last step repeated: the best plan before, where the paper shifts its mean.
    """
    mean, std, half = begin(space, config.std, start, batch, horizon, generator.device, repeat=True)
    count, lowest = elite_count(config.elites, config.candidates), []
    kept = [_filled(part, horizon) for part in _given(start)]
    held: tuple[Tensor, Tensor] | None = None  # the best so far, and its cost
    chosen = mean[:, None]
    objective.require(config.candidates * horizon, "a round of icem")
    for number in range(config.iterations):
        fewer = int(config.candidates * config.decay**-number)
        candidates = max(min(fewer, config.candidates), min(2 * count, config.candidates))
        if number and not objective.affords(candidates * horizon):
            break
        joined = [part[:, : max(1, candidates // 2)] for part in kept]
        if number == config.iterations - 1:
            joined = [mean[:, None], *joined]
        old = [torch.cat(joined, dim=1)[:, : max(1, candidates - 1)]] if joined else []
        if new := candidates - sum(part.shape[1] for part in old):
            noise = coloured((batch, new, horizon, space.width), config.colour, generator=generator)
            old = [*old, mean[:, None] + std[:, None] * noise]
        drawn = clipped(torch.cat(old, dim=1), space)  # of equal ones the old stays
        cost = objective(drawn)
        lowest.append(cost.min(dim=1).values)
        chosen = elites(drawn, cost, min(count, drawn.shape[1]))
        mean, std = refitted(mean, std, chosen, config.momentum, config.min_std * half)
        kept = [chosen[:, : math.ceil(config.keep * count)]] if config.keep else []
        found = best(drawn, cost)
        held = found if held is None else cheaper(held, found)
    assert held is not None, "the first round is always made"
    keep = chosen[:, : math.ceil(config.keep * count)] if config.keep else None
    return Plan(held[0], held[1], objective.calls, torch.stack(lowest, dim=1), keep)


def begin(
    space: Continuous,
    std: tuple[float, ...],
    start: Start,
    batch: int,
    horizon: int,
    device: torch.device,
    *,
    repeat: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """First mean and deviation, [B, h, A] each, and half the range, [A].

    `repeat`: steps that a warm start lacks repeat its last, in place of the middle of the range.
    Raises ValueError on a `std` that is neither one number nor one a dimension.
    """
    if len(std) not in (1, space.width):
        raise ValueError(
            f"planner.std: expected 1 or {space.width} numbers, one for each dimension of an action, got "
            f"{len(std)}"
        )
    low, high = space.bounds(device)
    half = (high - low) / 2
    mean = ((low + high) / 2).expand(batch, horizon, -1).clone()
    if start.actions is not None and start.actions.shape[1]:
        given = _filled(start.actions[:, None], horizon)[:, 0] if repeat else start.actions
        mean[:, : given.shape[1]] = given
    return mean, (torch.tensor(std, device=device) * half).expand_as(mean).clone(), half


def elite_count(share: float, candidates: int) -> int:
    """How many of the candidates are elites: at least two, where there are as many."""
    return min(candidates, max(2, round(share * candidates)))


def clipped(actions: Tensor, space: Continuous) -> Tensor:
    """Actions [.., A] within the bounds."""
    low, high = space.bounds(actions.device)
    return torch.minimum(torch.maximum(actions, low), high)


def refitted(
    mean: Tensor, std: Tensor, chosen: Tensor, momentum: float, floor: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of elites [B, m, h, A], mixed with those before."""
    new_mean, new_std = chosen.mean(dim=1), chosen.std(dim=1, correction=0)
    mean = momentum * mean + (1 - momentum) * new_mean
    return mean, torch.maximum(momentum * std + (1 - momentum) * new_std, floor)


def _given(start: Start) -> list[Tensor]:
    """Beginnings [B, m, s, A], s >= 1."""
    parts = [None if start.actions is None else start.actions[:, None], start.kept]
    return [part for part in parts if part is not None and part.shape[2]]


def _filled(beginnings: Tensor, horizon: int) -> Tensor:
    """[B, m, s, A] -> [B, m, h, A], the last step repeated."""
    missing = horizon - beginnings.shape[2]
    return torch.cat([beginnings, beginnings[:, :, -1:].expand(-1, -1, missing, -1)], dim=2)
