"""Beam search over discrete actions: the best beginnings are extended, step by step.

Source: beam search as in the trajectory transformer (Janner et al. 2021, arXiv 2106.02039, algorithm 1),
under a cost in place of a likelihood. Extensions are drawn without repeats by the Gumbel-top-k trick (Kool
et al. 2019, arXiv 1903.06059) where there are more than `branch`.

A beginning is judged by the cost of what it leads to so far. So the search is exact where that never
misleads, and greedy where a detour must be paid for first. Each is rolled out from the start again: a plan
of h steps costs width x branch x h (h + 1) / 2 model calls, less in the first steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colaworld.planning.config import BeamConfig
from colaworld.planning.contracts import Objective, Plan, Start, best, cheaper
from colaworld.planning.prior import CodeBigram, uniform_codes
from colaworld.planning.spaces import Discrete

MOST = 1 << 16  # actions of which a table is held


def beam(
    objective: Objective,
    space: Discrete,
    config: BeamConfig,
    *,
    horizon: int,
    batch: int,
    generator: torch.Generator,
    start: Start = Start(),  # noqa: B008
    prior: CodeBigram | None = None,
) -> Plan:
    """The best of the last step's beginnings; of a warm start that is as long, if that is better.

    Under a data prior actions that are likelier are drawn more often, and impossible ones never. Where a world
    makes r frames at once (`Objective.stride`), beginnings grow by r actions: all there are, or draws of them.

    Raises ValueError on more than 65536 actions (codes to the power of tokens), where r is 1, and on a horizon
    that is no multiple of r.
    """
    group = objective.stride
    if horizon % group:
        raise ValueError(
            f"mpc.horizon: this world makes {group} frames at once; expected a multiple of {group} actions, got "
            f"{horizon}"
        )
    total = space.size ** (space.tokens * group)
    if total > MOST and group == 1:
        raise ValueError(
            f"beam: expected at most {MOST} actions a step, got {space.size} codes in {space.tokens} "
            "tokens; use categorical"
        )
    device, branch = generator.device, min(config.branch, total)
    table = None
    if total <= MOST and (group == 1 or prior is None):
        places = [torch.arange(space.size, device=device)] * (space.tokens * group)
        table = torch.cartesian_prod(*places).view(total, group, space.tokens)
    objective.require(calls(config.width, branch, horizon, group), "beam")
    beams = torch.zeros((batch, 1, 0, space.tokens), dtype=torch.int64, device=device)
    cost = torch.zeros((batch, 1), device=device)
    copies = torch.zeros((batch, 1), dtype=torch.bool, device=device)
    row, lowest = torch.arange(batch, device=device)[:, None], []
    for _ in range(horizon // group):
        W = beams.shape[1]
        before = _before(beams, start)
        if table is None:
            new, twice = _drawn(before, (batch, W, branch, group), space, prior, generator)
        else:
            chosen, twice = _extensions(before, (batch, W), table, branch, prior, generator)
            new = table[chosen]
        held = beams[:, :, None].expand(-1, -1, branch, -1, -1)
        longer = torch.cat([held, new], dim=3).flatten(1, 2)
        found = objective(longer)
        lowest.append(found.min(dim=1).values)
        copies = (copies[:, :, None] | twice).flatten(1)
        order = found.argsort(dim=1, stable=True)
        # Copies come last, whatever they cost, or a beam would soon hold nothing else.
        order = order.gather(1, copies[row, order].int().argsort(dim=1, stable=True))
        order = order[:, : config.width]
        beams, cost, copies = longer[row, order], found[row, order], copies[row, order]
    actions, price = best(beams, cost)
    given = start.actions
    if given is not None and given.shape[1] == horizon and objective.affords(horizon):
        actions, price = cheaper((actions, price), (given, objective(given[:, None])[:, 0]))
    return Plan(actions, price, objective.calls, torch.stack(lowest, dim=1))


def calls(width: int, branch: int, horizon: int, group: int = 1) -> int:
    """Model calls of a search: beginnings of t steps are rolled out from the start, t a multiple of `group`."""
    made, beams = 0, 1
    for step in range(group, horizon + 1, group):
        made += beams * branch * step
        beams = min(width, beams * branch)
    return made


def _before(beams: Tensor, start: Start) -> Tensor | None:
    """The action that each beginning goes on from, [B, W, N]; None: not known."""
    if beams.shape[2]:
        return beams[:, :, -1]
    return None if start.last is None else start.last[:, None]


def _extensions(
    before: Tensor | None,
    shape: tuple[int, int],
    table: Tensor,
    branch: int,
    prior: CodeBigram | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Rows [B, W, branch] of the table of actions, and which of them are there already: none where as many
    are possible."""
    B, W = shape
    total = len(table)
    if branch == total and prior is None:
        every = torch.arange(total, device=table.device).expand(B, W, -1)
        return every, torch.zeros_like(every, dtype=torch.bool)
    score = torch.zeros((B, W, total), device=table.device)
    if prior is not None:
        each = prior.next(before, (B, W)).expand(B, W, -1, -1)  # [B, W, N, K]
        for token in range(table.shape[2]):
            score = score + each[:, :, token].log()[:, :, table[:, 0, token]]
    uniform = torch.rand(score.shape, generator=generator, device=table.device)
    gumbel = -(-uniform.clamp_min(1e-20).log()).log()
    order = (score + gumbel).argsort(dim=-1, descending=True, stable=True)[:, :, :branch]
    # What cannot happen is replaced by the best that can.
    possible = score.gather(-1, order).isfinite()
    return torch.where(possible, order, order[:, :, :1]), ~possible


def _drawn(
    before: Tensor | None,
    shape: tuple[int, int, int, int],
    space: Discrete,
    prior: CodeBigram | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Codes [B, W, branch, r, N] that were drawn, and which of them were before, [B, W, branch]."""
    B, W, branch, group = shape
    rows = (B * W, branch, group)
    if prior is None:
        codes = uniform_codes(rows, space, generator=generator)
    else:
        last = None if before is None else before.expand(B, W, -1).flatten(0, 1)
        codes = prior.sample(rows, last=last, generator=generator)
    flat = codes.flatten(2)
    alike = (flat[:, :, None] == flat[:, None]).all(-1)
    twice = alike.tril(-1).any(-1)
    return codes.unflatten(0, (B, W)), twice.unflatten(0, (B, W))
