"""Every planner finds the best plan where it is known: a least-squares problem, and the own scene."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from colaworld.envs.scene import MOVES, Scene
from colaworld.planning import (
    PLANNERS,
    BeamConfig,
    CategoricalConfig,
    CEMConfig,
    Continuous,
    Discrete,
    ICEMConfig,
    MPPIConfig,
    Objective,
    ShootingConfig,
    Start,
)
from colaworld.planning.contracts import BudgetError
from colaworld.planning.costs import ActionPenalty, GoalDistance, WeightedSum
from colaworld.planning.exact import PointMassDynamics
from colaworld.planning.prior import CodeBigram
from colaworld.planning.search import search

PUSH = Continuous((-1.0, -1.0), (1.0, 1.0))
H = 4
CONTINUOUS = (
    CEMConfig(candidates=200, iterations=12),
    ICEMConfig(candidates=200, iterations=12, colour=0.5),
    MPPIConfig(candidates=400, iterations=40, gamma=2000.0, beta=0.0, std=(0.1,)),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pushed(budget: int | None = None) -> tuple[Objective, torch.Tensor, torch.Tensor]:
    """Three point masses, the cost of a plan, and the best plans and costs by least squares.

    cost = |p_h - goal|^2 + w |a|^2, p_h = p + h v + step M a: a = (step^2 M'M + w I)^-1 step M' r.
    """
    state = torch.tensor([[0.5, 0.5, 0, 0], [0.3, 0.6, 0.01, 0], [0.6, 0.4, 0, -0.02]])
    goal = torch.tensor([[0.6, 0.45], [0.4, 0.55], [0.55, 0.45]])
    step, weight = 0.02, 2e-3

    class Ends(GoalDistance):
        def __call__(self, imagined, actions):
            return super().__call__(imagined[..., :2], actions)

    cost = WeightedSum((1.0, Ends(goal, reads="states")), (weight, ActionPenalty((0.0, 0.0))))
    objective = Objective.of(PointMassDynamics(step=step), cost, state, budget=budget)
    reach = step * torch.arange(H, 0, -1).double()  # of the position, by each action
    rest = (goal - state[:, :2] - H * state[:, 2:]).double()  # [B, 2]
    plan = reach[None, :, None] * rest[:, None] / (reach @ reach + weight)
    left = rest - (reach[None, :, None] * plan).sum(1)
    price = left.square().sum(-1) + weight * plan.square().sum(dim=(1, 2))
    assert plan.abs().max() < 1  # so the bounds do not bind
    return objective, plan.float(), price.float()


@pytest.mark.parametrize("config", CONTINUOUS, ids=lambda c: c.kind)
def test_continuous_planners_find_the_least_squares_plan(config) -> None:
    objective, plan, price = pushed()
    found = search(objective, PUSH, config, horizon=H, batch=3, generator=seeded())
    torch.testing.assert_close(found.cost, price, rtol=0.05, atol=2e-5)
    assert (found.actions - plan).abs().max() < 0.12
    again = objective(found.actions[:, None])[:, 0]
    torch.testing.assert_close(found.cost, again)  # the cost that is told is that of the plan


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (ShootingConfig(candidates=4000), 0.4),
        (CategoricalConfig(candidates=300, iterations=10, bins=9), 0.05),
        (BeamConfig(width=32, branch=81, bins=9), 0.2),
    ],
    ids=lambda c: getattr(c, "kind", None),
)
def test_the_others_come_near_it(config, left) -> None:
    """Share of the way from standing still to the best cost that is left: shooting does not search, beam is
    greedy (early pushes pay late), both of the last take nine values of each push."""
    objective, _, price = pushed()
    still = objective(torch.zeros(3, 1, H, 2))[:, 0]
    found = search(objective, PUSH, config, horizon=H, batch=3, generator=seeded())
    assert (found.cost - price < left * (still - price)).all()


def moves_to(offset: tuple[int, int], seed: int = 3) -> tuple[Objective, int]:
    """Plans in the own scene: squared error of the last frame from the goal's, and a little for moves."""
    scene = Scene(height=16, width=16)
    scene.reset(seed)
    camera, square = scene.state()["camera"], scene.state()["square"]

    def frames(actions: torch.Tensor) -> torch.Tensor:  # [B, n, h, 1] -> [B, n, 1, 3, H, W]
        ends = np.array(MOVES)[actions[..., 0].numpy()].sum(axis=2) * scene.speed
        drawn = [scene.draw((camera + end) % 64, square) for end in ends.reshape(-1, 2)]
        film = torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 255
        return film.view(*actions.shape[:2], 1, *film.shape[1:])

    goal = scene.draw((camera + scene.speed * np.array(offset)) % 64, square)
    wanted = torch.from_numpy(goal).movedim(-1, 0).float()[None] / 255
    cost = WeightedSum((1.0, GoalDistance(wanted, reads="frames")), (0.01, ActionPenalty((0,))))
    return Objective(lambda actions: cost(frames(actions), actions)), sum(map(abs, offset))


@pytest.mark.parametrize(
    "config",
    [
        ShootingConfig(candidates=600),
        CategoricalConfig(candidates=100, iterations=6),
        BeamConfig(width=16, branch=5),
        CEMConfig(candidates=150, iterations=10),
        ICEMConfig(candidates=150, iterations=10, colour=0.0),
        MPPIConfig(candidates=300, iterations=20, gamma=1.0, beta=0.0),
    ],
    ids=lambda c: c.kind,
)
@pytest.mark.parametrize("offset", [(2, 0), (-1, 1)])
def test_every_planner_finds_the_fewest_moves_in_the_scene(config, offset) -> None:
    """The floor shows where the camera is, so a cost of 0.01 a move means: there, on a shortest way."""
    objective, fewest = moves_to(offset)
    found = search(objective, Discrete(5), config, horizon=3, batch=1, generator=seeded(1))
    assert found.actions.dtype == torch.int64 and found.actions.shape == (1, 3, 1)
    assert float(found.cost) == pytest.approx(0.01 * fewest, abs=1e-6)
    ends = np.array(MOVES)[found.actions[0, :, 0].numpy()].sum(axis=0)
    assert tuple(ends) == offset


def test_beam_with_every_beginning_is_exhaustive() -> None:
    """Against all 27 sequences, under a cost whose first step misleads."""
    generator = seeded(5)
    table = torch.rand(3, 3, 3, generator=generator)

    def cost(actions: torch.Tensor) -> torch.Tensor:
        steps = actions[..., 0]
        if steps.shape[2] < 3:
            return torch.zeros(steps.shape[:2])
        return table[steps[..., 0], steps[..., 1], steps[..., 2]]

    exact = min(itertools.product(range(3), repeat=3), key=lambda i: float(table[i]))
    config = BeamConfig(width=9, branch=3)
    found = search(Objective(cost), Discrete(3), config, horizon=3, batch=1, generator=generator)
    assert tuple(found.actions[0, :, 0].tolist()) == exact
    assert found.calls == 3 * 1 + 9 * 2 + 27 * 3  # beginnings of 1, 2 and 3 steps


@pytest.mark.parametrize("kind", list(PLANNERS))
def test_equal_generators_give_equal_plans(kind) -> None:
    config = PLANNERS[kind].config()
    plans = []
    for seed in (4, 4, 5):
        objective = Objective(lambda a: (a - 0.3).square().sum(dim=(-1, -2)))
        plans.append(search(objective, PUSH, config, horizon=3, batch=2, generator=seeded(seed)))
    assert torch.equal(plans[0].actions, plans[1].actions)
    if kind != "beam":  # of 25 pushes it tries all
        assert not torch.equal(plans[0].lowest, plans[2].lowest)


@pytest.mark.parametrize("kind", list(PLANNERS))
def test_environments_of_a_batch_are_planned_for_each_by_itself(kind) -> None:
    """Goals 0.5 and -0.5: each row finds its own."""
    goal = torch.tensor([0.5, -0.5])

    def cost(actions: torch.Tensor) -> torch.Tensor:
        return (actions - goal[:, None, None, None]).square().sum(dim=(-1, -2))

    config = PLANNERS[kind].config()
    extra = {"gamma": 5.0, "iterations": 20} if kind == "mppi" else {}
    config = type(config)(**extra)
    found = search(Objective(cost), PUSH, config, horizon=2, batch=2, generator=seeded())
    assert (found.actions[0].mean() > 0.25) and (found.actions[1].mean() < -0.25)


@pytest.mark.parametrize("kind", list(PLANNERS))
def test_a_budget_is_never_exceeded(kind) -> None:
    config = PLANNERS[kind].config()
    free = Objective(lambda a: a.square().sum(dim=(-1, -2)))
    search(free, PUSH, config, horizon=3, batch=1, generator=seeded())
    for budget in (free.calls, free.calls - 1):
        objective = Objective(lambda a: a.square().sum(dim=(-1, -2)), budget=budget)
        try:
            search(objective, PUSH, config, horizon=3, batch=1, generator=seeded())
        except BudgetError as error:
            assert "mpc.calls" in str(error) and budget == free.calls - 1
        assert objective.calls <= budget
    with pytest.raises(BudgetError, match="needs"):
        search(
            Objective(lambda a: a[..., 0, 0], budget=2),
            *(PUSH, config),
            **{"horizon": 3, "batch": 1, "generator": seeded()},
        )


@pytest.mark.parametrize("kind", ["shooting", "icem", "categorical", "beam"])
def test_a_warm_start_is_never_made_worse(kind) -> None:
    """One sequence in 5^6 is free: nobody finds it in a few draws, but it may be handed on."""
    secret = torch.tensor([1, 4, 2, 0, 3, 3])[None, :, None]

    def cost(actions: torch.Tensor) -> torch.Tensor:
        wrong = (actions != secret[:, None, : actions.shape[2]]).all(-1).float().sum(-1)
        return (wrong > 0).float() if actions.shape[2] == 6 else torch.zeros(actions.shape[:2])

    small = {"width": 1, "branch": 2} if kind == "beam" else {"candidates": 8}
    config = type(PLANNERS[kind].config())(**small)
    options = {"horizon": 6, "batch": 1, "generator": seeded()}
    cold = search(Objective(cost), Discrete(5), config, **options)
    assert float(cold.cost) == 1
    start = Start(actions=secret)
    warm = search(Objective(cost), Discrete(5), config, start=start, **options)
    assert float(warm.cost) == 0 and torch.equal(warm.actions, secret)


def test_what_is_left_of_a_plan_starts_the_next_one() -> None:
    objective, *_ = pushed()
    config = ICEMConfig(candidates=40, elites=0.1, keep=0.5)
    plan = search(objective, PUSH, config, horizon=H, batch=3, generator=seeded())
    start = plan.after(1)
    assert torch.equal(start.actions, plan.actions[:, 1:])
    assert torch.equal(start.last, plan.actions[:, 0])
    assert start.kept.shape == (3, 2, H - 1, 2)  # half of the four elites


def test_costs_that_are_no_numbers_are_refused() -> None:
    options = {"horizon": 2, "batch": 1, "generator": seeded()}
    with pytest.raises(ValueError, match="expected finite"):
        search(Objective(lambda a: a[..., 0, 0] * torch.nan), PUSH, CEMConfig(), **options)
    with pytest.raises(ValueError, match=r"expected \[1, 64\], one a candidate, got \[1, 64, 2\]"):
        search(Objective(lambda a: a[..., 0]), PUSH, CEMConfig(), **options)
    with pytest.raises(ValueError, match=r"planner.std: expected 1 or 2 numbers"):
        search(Objective(lambda a: a[..., 0, 0]), PUSH, CEMConfig(std=(1, 1, 1)), **options)
    with pytest.raises(ValueError, match=r"start.actions: expected floats \[.., 2\], got float32"):
        start = Start(actions=torch.zeros(1, 2, 3))
        search(Objective(lambda a: a[..., 0, 0]), PUSH, CEMConfig(), start=start, **options)


class Watched(Objective):
    """The squared size of actions, and what was asked."""

    def __init__(self) -> None:
        self.asked: list[torch.Tensor] = []
        super().__init__(lambda a: self.asked.append(a) or (a.float() - 0.2).square().sum((-1, -2)))


def test_one_round_of_mppi_is_the_weighted_mean_of_its_candidates() -> None:
    """exp(-gamma (cost - lowest)) / sum, by numpy in double precision."""
    objective, config = Watched(), MPPIConfig(candidates=7, gamma=0.8, std=(0.5, 0.1))
    plan = search(objective, PUSH, config, horizon=3, batch=2, generator=seeded())
    drawn = objective.asked[0].double().numpy()
    cost = ((drawn - 0.2) ** 2).sum(axis=(2, 3))
    weights = np.exp(-0.8 * (cost - cost.min(axis=1, keepdims=True)))
    weights /= weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        plan.actions.numpy(), np.einsum("bn,bnha->bha", weights, drawn), rtol=1e-5, atol=1e-6
    )
    assert drawn[..., 0].std() > 3 * drawn[..., 1].std()  # each dimension has its own deviation
    assert plan.calls == 7 * 3 + 3


def test_one_round_of_cem_is_the_mean_of_its_elites() -> None:
    """Two of ten, mixed with the first mean (zero) at the weight of momentum."""
    objective = Watched()
    config = CEMConfig(candidates=10, elites=0.2, iterations=1, momentum=0.25)
    plan = search(objective, PUSH, config, horizon=3, batch=2, generator=seeded())
    drawn = objective.asked[0].double().numpy()
    cost = ((drawn - 0.2) ** 2).sum(axis=(2, 3))
    for row in range(2):
        best = drawn[row, np.argsort(cost[row])[:2]]
        np.testing.assert_allclose(plan.actions[row], 0.75 * best.mean(axis=0), atol=1e-6)


def test_categorical_draws_the_next_round_from_the_shares_of_its_elites() -> None:
    """Without smoothing and momentum what no elite did is never done again."""
    objective = Watched()
    config = CategoricalConfig(candidates=30, elites=0.1, iterations=2, momentum=0, smoothing=0)
    search(objective, Discrete(4), config, horizon=2, batch=1, generator=seeded())
    first, second = (part[0, :, :, 0] for part in objective.asked)
    order = (first.float() - 0.2).square().sum(-1).argsort(stable=True)[:3]
    for step in range(2):
        assert set(second[:, step].tolist()) <= set(first[order, step].tolist())


def test_a_prior_keeps_plans_on_codes_that_follow_each_other() -> None:
    """Recorded: 0 1 2 0 1 2 ..; so after 1 comes 2, and from 1 on every plan is 2 0 1 2."""
    recorded = torch.tensor([0, 1, 2] * 5)[:, None]
    prior = CodeBigram.from_indices([recorded], Discrete(4))
    start = Start(last=torch.tensor([[1]]))
    for config in (
        ShootingConfig(candidates=9),
        CategoricalConfig(candidates=9),
        BeamConfig(width=2, branch=2),
    ):
        objective = Watched()
        plan = search(
            objective,
            *(Discrete(4), config),
            **{"horizon": 4, "batch": 1, "generator": seeded(), "start": start, "prior": prior},
        )
        assert plan.actions[0, :, 0].tolist() == [2, 0, 1, 2], config.kind
    with pytest.raises(ValueError, match="prior: cem plans continuous actions here"):
        options = {"horizon": 4, "batch": 1, "generator": seeded(), "prior": prior}
        search(Watched(), Discrete(4), CEMConfig(), **options)


@pytest.mark.parametrize("given", [None, [1], [1, 1], [2, 2, 2]], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        ShootingConfig(candidates=16),
        CategoricalConfig(candidates=16, iterations=4),
        CategoricalConfig(candidates=16, iterations=4, smoothing=0, momentum=0, elites=0.5),
        BeamConfig(width=4, branch=2),
    ],
    ids=lambda c: c.kind,
)
def test_no_candidate_makes_a_step_that_the_prior_never_saw(config, given) -> None:
    """0 -> 1 or 2, which stay what they are; asked for is 1 2 2 of two tokens, cold and from what is left of a plan."""
    follows = torch.tensor([[0, 0.5, 0.5], [0, 1, 0], [0, 0, 1]]).expand(2, 3, 3)
    prior = CodeBigram(torch.full((2, 3), 1 / 3), follows)
    wanted, asked = torch.tensor([1, 2, 2])[:, None], []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        asked.append(torch.cat([torch.zeros_like(actions[:, :, :1]), actions], dim=2))
        return (actions != wanted[: actions.shape[2]]).float().sum(dim=(-1, -2))

    begun = None if given is None else torch.tensor(given)[None, :, None].expand(2, -1, 2)
    start = Start(begun, last=torch.zeros(2, 2, dtype=torch.int64))
    how = {"horizon": 3, "batch": 2, "start": start, "prior": prior}
    for seed in range(5):
        plan = search(Objective(cost), Discrete(3, 2), config, generator=seeded(seed), **how)
        again = search(Objective(cost), Discrete(3, 2), config, generator=seeded(seed), **how)
        assert torch.equal(plan.actions, again.actions)
    seen = 0
    for part in asked:
        for token in range(2):
            assert follows[token][part[:, :, :-1, token], part[:, :, 1:, token]].min() > 0
        if begun is not None and config.kind != "beam":
            seen += bool((part[:, 0, 1 : 1 + len(given)] == begun).all())
    assert begun is None or config.kind == "beam" or seen >= 10  # it was a candidate


def test_rounds_that_learn_nothing_draw_as_the_prior_does() -> None:
    """Of plans that cost the same the last round is as likely as the first: a prior counts once, not in every round."""
    follows = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    prior = CodeBigram(torch.tensor([[0.8, 0.2]]), follows[None])
    asked: list[torch.Tensor] = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        asked.append(actions[0, :, :, 0])
        return torch.zeros(actions.shape[:2])

    config = CategoricalConfig(candidates=4000, iterations=6, elites=0.5)
    how = {"horizon": 3, "batch": 1, "generator": seeded(), "prior": prior}
    search(Objective(cost), Discrete(2), config, **how)
    for part in (asked[0], asked[-1]):
        for step in range(2):
            for code in range(2):
                after = part[part[:, step] == code, step + 1].float().mean()
                assert float(after) == pytest.approx(float(follows[code, 1]), abs=0.06)
