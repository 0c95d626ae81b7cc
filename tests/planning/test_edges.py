"""Planning at its edges: tiny budgets, plans of one action, starts and priors that do not fit, agents that do nothing."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from colaworld.planning import (
    PLANNERS,
    BeamConfig,
    Continuous,
    Discrete,
    MPCConfig,
    Objective,
    ShootingConfig,
    Start,
)
from colaworld.planning.contracts import BudgetError, Seen
from colaworld.planning.goals import begin
from colaworld.planning.mpc import Asked, Decision, RandomAgent, play
from colaworld.planning.prior import CodeBigram
from colaworld.planning.search import search
from colaworld.planning.tasks import SceneTask

PUSH, CODES = Continuous((-1.0, -1.0), (1.0, 1.0)), Discrete(3, 2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ASKED = Asked(Seen(torch.zeros(2, 1, 3, 8, 8), seeded()), torch.zeros(2, 3, 8, 8), 2, seeded())


def squares(actions: torch.Tensor) -> torch.Tensor:
    return (actions.float() - 0.3).square().sum(dim=(-1, -2))


def begun(space: Continuous | Discrete, steps: int) -> Start:
    """A warm start of two environments, with three further beginnings."""
    kind = torch.float32 if isinstance(space, Continuous) else torch.int64
    actions = torch.zeros(2, steps, 2, dtype=kind)
    return Start(actions, actions[:, None].expand(-1, 3, -1, -1), torch.zeros(2, 2, dtype=kind))


@pytest.mark.parametrize("kind", list(PLANNERS))
@pytest.mark.parametrize("space", [PUSH, CODES], ids=["numbers", "codes"])
@pytest.mark.parametrize("few", [1, 2, 3])
def test_a_warm_start_does_not_exceed_the_budget_of_few_candidates(kind, space, few) -> None:
    config = PLANNERS[kind].config
    small = {"width": few, "branch": few} if kind == "beam" else {"candidates": few}
    for horizon in (1, 2):
        for start in (Start(), begun(space, horizon), begun(space, horizon - 1)):
            options = {"horizon": horizon, "batch": 2, "start": start}
            free = Objective(squares)
            search(free, space, config(**small), generator=seeded(), **options)
            for budget in range(1, free.calls + 1):
                objective = Objective(squares, budget=budget)
                try:
                    search(objective, space, config(**small), generator=seeded(), **options)
                except BudgetError:
                    assert budget < free.calls
                assert objective.calls <= budget


@pytest.mark.parametrize("kind", list(PLANNERS))
def test_a_start_that_does_not_fit_is_said(kind) -> None:
    def plan(space, start=None, horizon=2, batch=3, prior=None):
        config = PLANNERS[kind].config()
        options = {"horizon": horizon, "batch": batch, "generator": seeded()}
        return search(Objective(squares), space, config, start=start, prior=prior, **options)

    for wrong, words in (
        (Start(torch.zeros(3, 5, 2)), "start.actions: expected [3, 0 .. 2, 2], got [3, 5, 2]"),
        (Start(torch.zeros(1, 1, 2)), "start.actions: expected [3, 0 .. 2, 2], got [1, 1, 2]"),
        (Start(kept=torch.zeros(3, 1, 2)), "start.kept: expected [3, m, 0 .. 2, 2], got [3, 1, 2]"),
        (Start(last=torch.zeros(2, 2)), "start.last: expected [3, 2], got [2, 2]"),
        (Start(torch.full((3, 1, 2), math.nan)), "start.actions: expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            plan(PUSH, wrong)
    with pytest.raises(ValueError, match=r"start.actions: expected codes in 0 .. 2, got 7 .. 7"):
        plan(CODES, Start(torch.full((3, 1, 2), 7)))
    for horizon, batch, words in ((0, 3, "horizon"), (2, 0, "batch")):
        with pytest.raises(ValueError, match=f"search: {words}: expected 1 or more, got 0"):
            plan(PUSH, horizon=horizon, batch=batch)
    if PLANNERS[kind].plans != "continuous":
        other = CodeBigram.from_indices([torch.tensor([[0], [5]])], Discrete(6))
        with pytest.raises(ValueError, match=r"prior: it is of 6 codes in 1 token, .* 3 in 2"):
            plan(CODES, prior=other)


def test_bounds_that_are_no_numbers_are_refused() -> None:
    for low in (math.nan, -math.inf, 1.5):
        with pytest.raises(ValueError, match="expected finite low <= high"):
            Continuous((low,), (1.0,))


@pytest.mark.parametrize("kind", list(PLANNERS))
def test_a_number_that_was_always_the_same_stays_so(kind) -> None:
    """As the gripper of a scripted hand that never opens it: its bounds are one value."""
    space = Continuous((-1.0, -0.7), (1.0, -0.7))
    start = Start(torch.tensor([[[0.5, -0.7]]] * 2))
    options = {"horizon": 2, "batch": 2, "generator": seeded(), "start": start}
    found = search(Objective(squares), space, PLANNERS[kind].config(), **options)
    torch.testing.assert_close(found.actions[..., 1], torch.full((2, 2), -0.7))
    assert (found.actions[..., 0] > -0.3).all()
    assert (RandomAgent(space).decide(ASKED).actions[..., 1] == -0.7).all()


def test_the_next_plan_begins_within_this_one() -> None:
    plan = search(
        *(Objective(squares), PUSH, ShootingConfig()), horizon=3, batch=1, generator=seeded()
    )
    assert plan.after(3).actions.shape == (1, 0, 2)
    for steps in (0, 4):
        with pytest.raises(ValueError, match=f"steps: expected 1 .. 3, got {steps}"):
            plan.after(steps)


def test_a_beam_holds_no_beginning_twice() -> None:
    """After each code just two can follow, and the cheap first step leads to the dear end. A beam of four
    that held copies of the cheap beginning would end there: 0 costs 0 and its ways on 5, 1 costs 1 and ends
    at 2."""
    recorded = [torch.tensor([[0], [0]]), torch.tensor([[0], [1]])] * 4
    recorded += [torch.tensor([[1], [0]]), torch.tensor([[1], [1]])] * 4
    prior = CodeBigram.from_indices(recorded, Discrete(8))

    def cost(actions: torch.Tensor) -> torch.Tensor:
        first = actions[:, :, 0, 0].float()
        return first if actions.shape[2] == 1 else 5 - 3 * first

    options = {"horizon": 2, "batch": 1, "prior": prior}
    for width, seed in itertools.product((2, 4), range(5)):
        config, generator = BeamConfig(width=width, branch=8), seeded(seed)
        plan = search(Objective(cost), Discrete(8), config, generator=generator, **options)
        assert plan.actions[0, 0, 0] == 1 and float(plan.cost) == 2


def test_a_cost_with_weights_that_are_trained_leaves_no_graph_behind() -> None:
    weight = torch.ones((), requires_grad=True)
    plan = search(
        *(Objective(lambda a: weight * squares(a)), PUSH, ShootingConfig(candidates=3)),
        **{"horizon": 2, "batch": 1, "generator": seeded()},
    )
    assert not plan.cost.requires_grad


@pytest.mark.parametrize("count", [0, 3])
def test_an_agent_that_does_nothing_or_too_much_is_refused(count) -> None:
    """The loop would go on for ever, or beyond the steps of an episode."""

    class Other(RandomAgent):
        def decide(self, asked: Asked) -> Decision:
            return Decision(torch.zeros(len(asked.goals), count, 1, dtype=torch.int64))

    config = MPCConfig(horizon=2, replan=2, steps=4)
    start = lambda seed: begin(SceneTask(height=16, width=16, goal_offset=3), seed)  # noqa: E731
    agent = Other(Discrete(5))
    with pytest.raises(ValueError, match=rf"decided: expected 1 .. 2 actions, got {count}"):
        play(agent, start, (0,), config, generator=seeded())


@pytest.mark.parametrize("case", ["all", "drawn", "prior"])
def test_a_beam_grows_by_what_a_world_makes_at_once(case) -> None:
    """Three actions at once; one sequence of six is free, each action that is off costs one. Of 2^3 ways all are
    tried, of 8^6 some are drawn, a prior knows which follow each other."""
    space = {"all": Discrete(2), "drawn": Discrete(8, 2), "prior": Discrete(8)}[case]
    secret = {"all": [1, 0, 1, 1, 0, 0], "drawn": [0] * 6, "prior": [1, 2, 3, 4, 5, 6]}[case]
    wanted = torch.tensor(secret)[:, None].expand(-1, space.tokens)
    asked = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        asked.append(actions.shape[2])
        return (actions != wanted[: actions.shape[2]]).float().sum(dim=(-1, -2))

    prior = None
    if case == "prior":
        recorded = torch.arange(8).repeat(3)[:, None]
        prior = CodeBigram.from_indices([recorded, torch.tensor([[1], [4], [1]])], space)
    options = {"horizon": 6, "batch": 2, "generator": seeded(), "prior": prior}
    objective = Objective(cost, stride=3)
    plan = search(objective, space, BeamConfig(width=4, branch=40), **options)
    assert asked == [3, 6]
    branch = 8 if case == "all" else 40
    assert plan.calls == branch * 3 + min(4, branch) * branch * 6
    if case == "drawn":  # of 12 codes, by chance one or two are right
        assert plan.cost.max() < 10
    else:
        assert torch.equal(plan.actions[0], wanted) and float(plan.cost.max()) == 0
    with pytest.raises(
        ValueError, match=r"mpc.horizon: .* expected a multiple of 3 actions, got 4"
    ):
        search(objective, space, BeamConfig(), **(options | {"horizon": 4}))
    plan = search(
        *(Objective(squares, stride=2), PUSH, BeamConfig(bins=3)),
        **{"horizon": 2, "batch": 1, "generator": seeded()},
    )
    assert plan.actions.shape == (1, 2, 2)  # numbers, cut into bins
