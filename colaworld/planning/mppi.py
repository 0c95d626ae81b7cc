"""Model predictive path integral control: the weighted mean of all candidates.

    w_i = exp(-gamma (cost_i - lowest cost)),  plan = sum w_i actions_i / sum w_i

Sources: Williams et al. 2017, "Information theoretic MPC"; in this form PDDM (Nagabandi et al. 2019, arXiv
1909.11652, equation 3) and VP2 (Tian et al. 2023, arXiv 2304.13723), whose settings are the defaults.
"""

from __future__ import annotations

import torch

from colaworld.planning.cem import begin, clipped
from colaworld.planning.config import MPPIConfig
from colaworld.planning.contracts import Objective, Plan, Start
from colaworld.planning.noise import correlated
from colaworld.planning.spaces import Continuous


def mppi(
    objective: Objective,
    space: Continuous,
    config: MPPIConfig,
    *,
    horizon: int,
    batch: int,
    generator: torch.Generator,
    start: Start = Start(),  # noqa: B008
    prior: None = None,
) -> Plan:
    """The weighted mean of the candidates, and its cost.

    The deviation stays as it is. A warm start is the first mean, its last step repeated, as in VP2.
    """
    shape = (batch, config.candidates, horizon, space.width)
    mean, std, _ = begin(space, config.std, start, batch, horizon, generator.device, repeat=True)
    lowest = []
    objective.require((config.candidates + 1) * horizon, "a round of mppi")
    for _ in range(config.iterations):
        if not objective.affords((config.candidates + 1) * horizon):
            break
        noise = correlated(shape, config.beta, generator=generator)
        drawn = clipped(mean[:, None] + std[:, None] * noise, space)
        cost = objective(drawn)
        lowest.append(cost.min(dim=1).values)
        weights = torch.softmax(-config.gamma * cost, dim=1)
        mean = torch.einsum("bn,bnha->bha", weights.to(drawn.dtype), drawn)
    final = objective(mean[:, None])[:, 0]
    return Plan(mean, final, objective.calls, torch.stack(lowest, dim=1))
