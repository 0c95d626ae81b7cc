"""The world as stable-worldmodel's solvers take one: their dict, their shapes, their call; by a solver like theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from colaworld.action_contract import ActionContract, Normaliser
from colaworld.models.adapters import MLPAdapterConfig
from colaworld.planning.contracts import Objective, Seen
from colaworld.planning.costs import GoalDistance
from colaworld.planning.dynamics import WorldDynamics
from colaworld.planning.stable_worldmodel import CostModel

B, S, H = 2, 12, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frames(seed: int, count: int = 1) -> torch.Tensor:
    return torch.rand(B, count, 3, 8, 8, generator=seeded(seed))


def expanded(info: dict[str, torch.Tensor]) -> dict[str, Any]:
    """As their solvers do once for all rounds: each candidate has a copy."""
    return {k: v[:, None].expand(B, S, *v.shape[1:]) for k, v in info.items()}


def one_hot(codes: torch.Tensor) -> torch.Tensor:
    """Codes [.., N] of four -> [.., N 4], as CategoricalCEMSolver flattens them."""
    return F.one_hot(codes, 4).float().flatten(-2)


def categorical_solver(model: Any, info: dict[str, torch.Tensor], rounds: int) -> torch.Tensor:
    """A cross-entropy method over codes that knows `get_cost` alone: the best candidate, [B, h, N]."""
    given, g = expanded(info), seeded(5)
    probabilities = torch.full((B, 1, H, 2, 4), 0.25)
    for _ in range(rounds):
        flat = probabilities.expand(-1, S, -1, -1, -1).reshape(-1, 4)
        codes = torch.multinomial(flat, 1, generator=g).view(B, S, H, 2)
        costs = model.get_cost(given, one_hot(codes))
        assert isinstance(costs, torch.Tensor) and costs.shape == (B, S)
        best = costs.topk(3, dim=1, largest=False).indices
        elites = codes[torch.arange(B)[:, None], best]
        probabilities = F.one_hot(elites, 4).float().mean(1, keepdim=True) + 0.05
    return elites[:, 0]


@pytest.mark.parametrize("gives", ["frames", "latents"])
def test_costs_are_those_of_our_own_planners(small, gives) -> None:
    dynamics = WorldDynamics(small(), gives=gives)
    history, goal = frames(1, 2), frames(2)
    codes = torch.randint(4, (B, S, H, 2), generator=seeded(3))
    model = CostModel(dynamics, seed=7, rows=5)
    info = expanded({"pixels": history, "goal": goal})
    found = model.get_cost(info, one_hot(codes))
    state = dynamics.begin(Seen(history, seeded(7)))
    wanted = goal[:, 0]
    if gives == "latents":
        wanted = dynamics.world.model.tokenizer.encode(goal)[:, :, 0]
    ours = Objective.of(dynamics, GoalDistance(wanted, reads=gives), state)(codes)
    torch.testing.assert_close(found, ours, rtol=1e-4, atol=1e-3)
    assert found.std() > 1e-3
    again = model.get_cost(info, one_hot(codes))  # what was read is kept in their dict
    torch.testing.assert_close(again, found)


def test_a_solver_finds_what_made_the_goal(small) -> None:
    dynamics = WorldDynamics(small())
    start = frames(1)
    secret = torch.tensor([[[1, 3], [0, 0]], [[2, 0], [3, 1]]])
    state = dynamics.begin(Seen(start, seeded(0)))
    goal = dynamics.imagine(state, secret)[:, -1:].clamp(0, 1)
    model = CostModel(dynamics)
    info = {"pixels": start, "goal": goal}
    random = model.get_cost(
        expanded(info), one_hot(torch.randint(4, (B, S, H, 2), generator=seeded(9)))
    )
    found = categorical_solver(model, info, rounds=8)
    cost = model.get_cost(expanded(info), one_hot(found)[:, None].expand(-1, S, -1, -1))[:, 0]
    assert (cost < random.median(dim=1).values / 2).all()


def test_encode_and_rollout_are_those_of_their_evaluator(small) -> None:
    """Goal and rollout apart, scored by an objective of theirs: the last step's squared error."""
    model = CostModel(WorldDynamics(small()))
    info = expanded({"pixels": frames(1), "goal": frames(2), "action": torch.zeros(B, 1, 8)})
    codes = one_hot(torch.randint(4, (B, S, H, 2), generator=seeded(3)))
    goal = {key: value[:, 0] for key, value in info.items()}
    goal["pixels"] = goal["goal"]
    emb = model.encode(goal)["emb"]
    rolled = model.rollout(dict(info), codes)["predicted_emb"]
    assert emb.shape == (B, 1, 3 * 8 * 8) and rolled.shape == (B, S, H, 3 * 8 * 8)
    scored = (rolled[:, :, -1] - emb[:, None, -1]).square().sum(-1)
    torch.testing.assert_close(scored, model.get_cost(info, codes))
    assert next(model.parameters()).dtype == torch.float32  # what their solvers ask for


def test_normalised_numbers_are_the_robots_own(small) -> None:
    known = Normaliser(kind="min_max", count=9, low=(-1.0, -2.0), high=(1.0, 2.0))
    contract = ActionContract("action", "continuous", 2, normaliser=known)
    world = replace(small(MLPAdapterConfig(size=2, hidden=8)), actions=contract)
    dynamics = WorldDynamics(world, space="real")
    info = {"pixels": frames(1), "goal": frames(2)}
    actions = torch.rand(B, S, H, 2, generator=seeded(4)) - 0.5
    plain = CostModel(dynamics).get_cost(expanded(info), actions)
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.5])
    normalised = CostModel(dynamics, mean=mean, std=std)
    torch.testing.assert_close(
        normalised.get_cost(expanded(info), (actions - mean) / std), plain, rtol=1e-4, atol=1e-3
    )
    far = torch.full((B, S, H, 2), 50.0)  # theirs draw without bounds
    edge = torch.tensor([1.0, 2.0]).expand(B, S, H, 2)
    model = CostModel(dynamics)
    torch.testing.assert_close(
        model.get_cost(expanded(info), far), model.get_cost(expanded(info), edge)
    )


def test_frames_come_as_they_have_them_or_are_refused(small) -> None:
    model = CostModel(WorldDynamics(small()))
    codes = one_hot(torch.zeros(B, S, H, 2, dtype=torch.int64))
    bytes_ = {"pixels": (frames(1) * 255).round().byte(), "goal": (frames(2) * 255).round().byte()}
    first = model.get_cost(expanded(bytes_), codes)
    last = {key: value.movedim(2, -1) for key, value in bytes_.items()}
    arrays = {key: value.numpy() for key, value in expanded(last).items()}
    torch.testing.assert_close(model.get_cost(arrays, codes), first)
    info = {"pixels": frames(1), "goal": frames(2)}
    for wrong, words in (
        ({"goal": frames(2)}, "pixels: expected frames in their dict, which has"),
        (
            info | {"goal": frames(2) * 4 - 2},
            r"goal: expected uint8, or floats in \[0, 1\], got -1.99",
        ),
        (
            info | {"pixels": frames(1)[:, 0]},
            r"expected frames \[B, S, T, 3, H, W\], got \[2, 12, 3",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            model.get_cost(expanded(wrong), codes)
    with pytest.raises(ValueError, match=r"expected \[B, S, h, 8\], 2 one-hot rows of 4, got"):
        model.get_cost(expanded(info), codes[..., :4])
