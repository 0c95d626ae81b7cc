"""The cross-entropy method over discrete actions: a probability of each code, token and step.

Source: de Boer et al. 2005, "A tutorial on the cross-entropy method", section 5: the new probabilities
are the shares among the elites, smoothed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.planning.cem import elite_count
from colaworld.planning.config import CategoricalConfig
from colaworld.planning.contracts import Objective, Plan, Start, best, cheaper, elites
from colaworld.planning.prior import CodeBigram, draw
from colaworld.planning.spaces import Discrete


def categorical(
    objective: Objective,
    space: Discrete,
    config: CategoricalConfig,
    *,
    horizon: int,
    batch: int,
    generator: torch.Generator,
    start: Start = Start(),  # noqa: B008
    prior: CodeBigram | None = None,
) -> Plan:
    """The best candidate of all rounds.

    Without a warm start the first round is uniform, or as the data prior has it. A warm start gets `trust` of the
    first round's probability at each of its steps and is a candidate itself.

    Under a prior each step is drawn after the one before it, from p(code | before) ~ prior(code | before) q(code) /
    m(code): q the probability that was learnt of that step, m that of the prior. So rounds that learn nothing draw as
    the prior does, and no round makes a step that it never saw. Smoothing spreads over codes as m does.
    """
    n, K = config.candidates, space.size
    device = generator.device
    even = torch.full((batch, horizon, space.tokens, K), 1 / K, device=device)
    base = even if prior is None else prior.marginals(batch, horizon, last=start.last)
    probabilities, given = base, start.actions
    if given is not None and given.shape[1]:
        follow = F.one_hot(given, K).to(base.dtype)
        mixed = config.trust * follow + (1 - config.trust) * base[:, : given.shape[1]]
        probabilities = torch.cat([mixed, base[:, given.shape[1] :]], dim=1)
    count, lowest = elite_count(config.elites, n), []
    held: tuple[Tensor, Tensor] | None = None
    objective.require(n * horizon, "a round of categorical")
    for number in range(config.iterations):
        if number and not objective.affords(n * horizon):
            break
        begun = given if number == 0 else None
        if prior is not None:
            drawn = prior.sample(
                (batch, n, horizon),
                last=start.last,
                generator=generator,
                weights=probabilities / base.clamp_min(1e-12),  # what was learnt beyond the prior
                given=begun,
            )
        else:
            rows = probabilities[:, None].expand(-1, n, -1, -1, -1)
            drawn = draw(rows, generator=generator)
            if begun is not None:
                drawn[:, 0, : begun.shape[1]] = begun
        cost = objective(drawn)
        lowest.append(cost.min(dim=1).values)
        counts = F.one_hot(elites(drawn, cost, count), K).sum(dim=1)  # [B, h, N, K]
        pseudo = config.smoothing * K
        shares = (counts + pseudo * base) / (count + pseudo)
        probabilities = config.momentum * probabilities + (1 - config.momentum) * shares
        found = best(drawn, cost)
        held = found if held is None else cheaper(held, found)
    assert held is not None, "the first round is always made"
    return Plan(held[0], held[1], objective.calls, torch.stack(lowest, dim=1))
