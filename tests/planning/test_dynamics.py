"""A world as dynamics: what is rolled is what the world itself rolls out; nothing is decoded in vain."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from colaworld.action_contract import ActionContract, Normaliser
from colaworld.models.adapters import (
    AttentionAdapterConfig,
    MLPAdapterConfig,
    TableAdapterConfig,
)
from colaworld.models.latent_action.quantizers import GaussianConfig
from colaworld.planning import BeamConfig, CategoricalConfig, Continuous, Discrete, Objective
from colaworld.planning.contracts import Seen
from colaworld.planning.costs import GoalDistance
from colaworld.planning.dynamics import WorldDynamics
from colaworld.planning.exact import CopyDynamics
from colaworld.planning.search import search


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(context: int = 1, batch: int = 2) -> Seen:
    return Seen(torch.rand(batch, context, 3, 8, 8, generator=seeded(3)), seeded(4))


def codes(n: int = 5, h: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randint(4, (batch, n, h, 2), generator=seeded(5))


@pytest.mark.parametrize("context", [1, 3])
def test_candidates_are_rolled_as_the_world_rolls_them(small, context) -> None:
    world, given, actions = small(), seen(context), codes()
    dynamics = WorldDynamics(world)
    made = dynamics.roll(dynamics.begin(given), actions)
    past = None if context == 1 else world.infer_actions(given.frames).codes
    wanted = world.rollout_candidates(
        given.frames, world.lookup(actions), context_codes=past, generator=seeded(4)
    )
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    assert made.std(dim=1).max() > 1e-3  # the actions matter


def test_rounds_of_a_decision_share_their_noise_and_leave_the_state_alone(small) -> None:
    dynamics = WorldDynamics(small())
    state, actions = dynamics.begin(seen()), codes()
    first = dynamics.roll(state, actions)
    dynamics.roll(state, actions.flip(0))
    torch.testing.assert_close(dynamics.roll(state, actions), first)
    alone = dynamics.imagine(state, actions[:, 2])
    torch.testing.assert_close(alone, first[:, 2], rtol=1e-4, atol=1e-5)


def test_candidates_that_are_priced_in_parts_cost_the_same(small) -> None:
    dynamics = WorldDynamics(small())
    state, cost = dynamics.begin(seen()), GoalDistance(torch.zeros(2, 3, 8, 8), reads="frames")
    whole, parts = (Objective.of(dynamics, cost, state, rows=rows) for rows in (256, 5))
    torch.testing.assert_close(parts(codes()), whole(codes()), rtol=1e-4, atol=1e-3)
    assert parts.calls == whole.calls == 5 * 3


def test_latents_are_those_behind_the_frames_and_nothing_is_decoded(small, monkeypatch) -> None:
    world = small()
    latents, frames = WorldDynamics(world, gives="latents"), WorldDynamics(world)
    shown = frames.roll(frames.begin(seen()), codes())

    def refused(latents: torch.Tensor) -> torch.Tensor:
        raise AssertionError("decoded")

    monkeypatch.setattr(world.model.tokenizer, "decode", refused)
    made = latents.roll(latents.begin(seen()), codes())
    monkeypatch.undo()
    decoded = world.model.tokenizer.decode(made.flatten(0, 1).transpose(1, 2))
    torch.testing.assert_close(decoded.unflatten(0, (2, 5)), shown)


@pytest.mark.parametrize(
    "adapter",
    [
        TableAdapterConfig(discrete=True, size=3),
        MLPAdapterConfig(size=2, hidden=8),
        AttentionAdapterConfig(size=2, width=16),
    ],
    ids=lambda a: a.kind,
)
def test_real_actions_lead_where_the_world_follows_them(small, adapter) -> None:
    world = small(adapter)
    if adapter.discrete:
        contract = ActionContract("action", "discrete", 3)
        actions = torch.randint(3, (2, 4, 3, 1), generator=seeded(6))
    else:
        known = Normaliser(kind="min_max", count=9, low=(-1.0, -2.0), high=(1.0, 2.0))
        contract = ActionContract("action", "continuous", 2, normaliser=known)
        actions = torch.rand(2, 4, 3, 2, generator=seeded(6)) - 0.5
    world = replace(world, actions=contract)
    dynamics = WorldDynamics(world, space="real")
    wanted_space = Discrete(3) if adapter.discrete else Continuous((-1.0, -2.0), (1.0, 2.0))
    assert dynamics.space == wanted_space
    given = seen()
    made = dynamics.roll(dynamics.begin(given), actions)
    for candidate in range(4):
        one = actions[:, candidate, :, 0] if adapter.discrete else actions[:, candidate]
        followed = world.follow(given.frames, one, generator=seeded(4)).generated
        torch.testing.assert_close(made[:, candidate], followed, rtol=1e-3, atol=1e-4)


def test_a_planner_finds_the_codes_that_made_a_goal(small) -> None:
    """The goal is a frame that the world itself makes, under the same noise: of 16 actions one fits."""
    world, given = small(), seen()
    dynamics = WorldDynamics(world)
    state = dynamics.begin(given)
    secret = torch.tensor([[[1, 3]], [[2, 0]]])  # [B, h, N]
    goal = dynamics.imagine(state, secret)[:, -1]
    objective = Objective.of(dynamics, GoalDistance(goal, reads="frames"), state)
    config = CategoricalConfig(candidates=40, iterations=4)
    plan = search(objective, dynamics.space, config, horizon=1, batch=2, generator=seeded(8))
    assert torch.equal(plan.actions, secret)
    assert plan.cost.max() < 1e-6 and plan.calls == 160


def test_numbers_of_combinations_are_rolled_as_these(small) -> None:
    world, among = small(), torch.tensor([[1, 3], [2, 0], [3, 3]])
    every, some = WorldDynamics(world), WorldDynamics(world, among=among)
    assert some.space == Discrete(3)
    state = every.begin(seen())
    numbers = torch.tensor([[[[2], [0]]], [[[1], [1]]]])  # [B, n, h, 1]
    rolled = some.roll(state, numbers)
    torch.testing.assert_close(rolled, every.roll(state, among[numbers[..., 0]]), rtol=0, atol=0)


def test_what_a_world_cannot_is_said(small) -> None:
    with pytest.raises(ValueError, match="knows no real actions: colaworld adapt RUN --data SRC"):
        WorldDynamics(small(), space="real")
    with pytest.raises(ValueError, match="latent actions of this run are continuous"):
        WorldDynamics(small(quantizer=GaussianConfig()))
    with pytest.raises(ValueError, match="gives: expected 'frames' or 'latents', got 'pixels'"):
        WorldDynamics(small(), gives="pixels")


def test_planners_and_the_loop_know_no_model() -> None:
    """They plan in whatever satisfies the contract."""
    code = (
        "import sys, colaworld.planning.search, colaworld.planning.mpc, colaworld.planning.costs, "
        "colaworld.planning.exact, colaworld.planning.tasks, colaworld.planning.action_map;"
        "from colaworld.planning import PLANNERS;"
        "print(sorted(m for m in sys.modules if m.startswith(('colaworld.models', 'colaworld.flow'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_objective_knows_how_many_frames_come_at_once(small) -> None:
    """Beam search in a dynamics of pairs: it is never asked for one action alone."""

    class Pairs(CopyDynamics):
        stride = 2

        def roll(self, state: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            assert actions.shape[2] % 2 == 0
            return super().roll(state, actions)

    def objective(dynamics) -> Objective:
        cost = GoalDistance(torch.zeros(2, 3, 8, 8), reads="frames")
        return Objective.of(dynamics, cost, dynamics.begin(seen()))

    assert objective(WorldDynamics(small())).stride == objective(CopyDynamics()).stride == 1
    options = {"horizon": 4, "batch": 2, "generator": seeded()}
    plan = search(objective(Pairs()), Discrete(3), BeamConfig(width=2, branch=4), **options)
    assert plan.actions.shape == (2, 4, 1)
