"""The loop in environments whose best plan is known, with exact dynamics, the true simulator and none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from colaworld.config import ConfigError
from colaworld.planning import (
    BeamConfig,
    CategoricalConfig,
    CEMConfig,
    ICEMConfig,
    MPCConfig,
    MPPIConfig,
    ShootingConfig,
)
from colaworld.planning.config import EpisodesConfig
from colaworld.planning.contracts import Seen
from colaworld.planning.costs import ActionPenalty, GoalDistance, WeightedSum
from colaworld.planning.exact import CopyDynamics, PointMassDynamics, SimulatorDynamics
from colaworld.planning.goals import Begun, begin
from colaworld.planning.mpc import PlanningAgent, RandomAgent, play
from colaworld.planning.spaces import Discrete
from colaworld.planning.tasks import PointMassTask, SceneTask, make_task
from colaworld.runs.planning import plan_run

SCENE = {"height": 16, "width": 16}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene_agent(dynamics, planner, config) -> PlanningAgent:
    def cost(goals: torch.Tensor) -> WeightedSum:
        goal = GoalDistance(goals, reads="frames", over="all")  # now rather than later
        return WeightedSum((1.0, goal), (0.01, ActionPenalty((0,))))

    return PlanningAgent(dynamics, Discrete(5), planner, config, cost)


PLANNERS = (
    ShootingConfig(candidates=150),
    CategoricalConfig(candidates=40, iterations=4),
    BeamConfig(width=6, branch=5),
    CEMConfig(candidates=150, iterations=6),
    ICEMConfig(candidates=150, iterations=3, colour=0.0),
    MPPIConfig(candidates=80, iterations=8, gamma=1.0, beta=0.0),
)


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda c: c.kind)
def test_in_the_true_simulator_every_planner_takes_the_fewest_moves(planner) -> None:
    config = MPCConfig(horizon=2, steps=2)
    agent = scene_agent(SimulatorDynamics(), planner, config)
    played = play(
        agent,
        lambda seed: begin(SceneTask(goal_offset=2, **SCENE), seed),
        (1, 2),
        config,
        generator=seeded(),
    )
    assert [one.success for one in played.episodes] == [True, True]
    assert [one.steps for one in played.episodes] == [2, 2]
    assert played.calls >= played.decided * 2  # two steps at least for each plan


@pytest.mark.parametrize(
    "planner",
    [
        ShootingConfig(candidates=200),
        CategoricalConfig(candidates=60, iterations=4, bins=9),
        BeamConfig(width=4, branch=81, bins=9),
        CEMConfig(candidates=60, iterations=5),
        ICEMConfig(candidates=60, iterations=5, colour=0.5),
        MPPIConfig(candidates=60, iterations=6, gamma=20.0, beta=0.0),
    ],
    ids=lambda c: c.kind,
)
def test_at_the_true_cost_every_planner_brings_the_point_mass_to_its_goal(planner) -> None:
    """In the fewest steps, full pushes of one axis, and to within 3 % of the picture: none is left over."""
    result, _ = plan_run(
        "point-mass",
        None,
        size=(8, 8),
        planner=planner,
        mpc=MPCConfig(horizon=2, steps=2),
        config=EpisodesConfig(episodes=2, goal_offset=2, rows=("oracle-state",), shown=0),
    )
    row = result["rows"]["oracle-state"]
    assert row["successes"] == 2 and row["more_than_fewest"] == 0


def test_a_dynamics_in_which_nothing_happens_reaches_nothing_and_a_random_agent_little() -> None:
    config = MPCConfig(horizon=3, steps=4)
    agent = scene_agent(CopyDynamics(), CategoricalConfig(candidates=20, iterations=2), config)
    start = lambda seed: begin(SceneTask(goal_offset=3, **SCENE), seed)  # noqa: E731
    still = play(agent, start, range(6), config, generator=seeded(), shown=1)
    assert not any(one.success for one in still.episodes)
    assert all(one.steps == 4 for one in still.episodes)
    np.testing.assert_array_equal(still.episodes[0].imagined[0], still.episodes[0].real[0])
    assert not still.episodes[1].real  # not shown, not kept
    lost = play(RandomAgent(Discrete(5)), start, range(30), config, generator=seeded())
    assert sum(one.success for one in lost.episodes) <= 5  # 3 moves of 5^3 at least three times
    assert lost.calls == 0


def test_the_true_simulator_draws_what_is_asked_for() -> None:
    task = SceneTask(goal_offset=3, **SCENE)
    task.reset(0)
    seen = Seen(torch.zeros(1, 1, 3, 16, 16), seeded(), [task])
    actions = torch.randint(5, (1, 4, 3, 1), generator=seeded())
    whole, last = SimulatorDynamics(), SimulatorDynamics(last=True)
    frames, state = whole.roll(whole.begin(seen), actions), last.begin(seen)
    assert frames.shape == (1, 4, 3, 3, 16, 16)
    torch.testing.assert_close(last.roll(state, actions), frames[:, :, -1:], rtol=0, atol=0)
    torch.testing.assert_close(last.imagine(state, actions[:, 1]), frames[:, 1], rtol=0, atol=0)


def test_the_point_mass_is_brought_to_its_goal_in_the_fewest_steps() -> None:
    """Goals are as far as full pushes of one axis lead, so no plan is shorter."""
    config = MPCConfig(horizon=4, steps=6)
    goals = {}

    class Near(GoalDistance):
        def __call__(self, imagined, actions):
            return super().__call__(imagined[..., :2], actions)

    def start(seed: int) -> Begun:
        task = PointMassTask(**SCENE, goal_offset=4)
        goals[len(goals)] = task
        return begin(task, seed)

    agent = PlanningAgent(
        PointMassDynamics(),
        make_task("point-mass", **SCENE).space,
        CEMConfig(candidates=200, iterations=8),
        config,
        lambda frames: Near(
            torch.tensor(np.array([goals[i].goal for i in range(len(frames))])).float(),
            reads="states",
            over="best",
        ),
    )
    played = play(agent, start, (0,), config, generator=seeded())
    assert played.episodes[0].success and played.episodes[0].steps == 4


def test_equal_seeds_play_equally_and_batches_stay_apart() -> None:
    config = MPCConfig(horizon=2, steps=3)
    agent = scene_agent(SimulatorDynamics(), ShootingConfig(candidates=10), config)
    start = lambda seed: begin(SceneTask(goal_offset=3, **SCENE), seed)  # noqa: E731
    first, again = (
        play(agent, start, range(5), config, generator=seeded(7), batch=2) for _ in range(2)
    )
    assert [one.costs for one in first.episodes] == [one.costs for one in again.episodes]
    assert [one.seed for one in first.episodes] == list(range(5))
    with pytest.raises(ValueError, match="batch: expected 1 or more"):
        play(agent, start, range(5), config, generator=seeded(7), batch=0)


def test_actions_are_repeated_and_several_are_carried_out_before_the_next_plan() -> None:
    config = MPCConfig(horizon=2, replan=2, steps=4, action_repeat=3)
    agent = scene_agent(CopyDynamics(), ShootingConfig(candidates=4), config)
    played = play(
        agent,
        lambda seed: begin(SceneTask(goal_offset=8, **SCENE), seed),
        (3,),
        config,
        generator=seeded(),
        shown=1,
    )
    episode = played.episodes[0]
    assert played.decisions == 2 and len(episode.costs) == 2
    assert episode.steps == 12 and len(episode.real) == 5  # a frame for each planned action
    with pytest.raises(ConfigError, match=r"mpc.replan: expected at most the 2 actions"):
        replace(config, replan=3)


def test_the_true_simulator_repeats_actions_as_the_environment_does() -> None:
    """Or it would bound another environment from above than the one that is played."""
    config = MPCConfig(horizon=2, replan=2, steps=4, action_repeat=3)
    played, shown = plan_run(
        "scene",
        None,
        size=(16, 16),
        planner=ShootingConfig(candidates=4),
        mpc=config,
        config=EpisodesConfig(episodes=1, rows=("oracle",), goal_offset=7, shown=1),
    )
    episode = shown["oracle"][0]
    assert played["rows"]["oracle"]["episodes"][0]["steps"] == 12
    np.testing.assert_array_equal(np.stack(episode.imagined), np.stack(episode.real[1:]))


def test_the_context_is_the_last_frames_in_order() -> None:
    class Watching(CopyDynamics):
        lengths: list[int] = []  # noqa: RUF012

        def begin(self, seen: Seen) -> torch.Tensor:
            self.lengths.append(seen.frames.shape[1])
            return super().begin(seen)

    config = MPCConfig(horizon=1, steps=4, context=3)
    agent = scene_agent(Watching(), ShootingConfig(candidates=2), config)
    play(
        agent,
        lambda seed: begin(SceneTask(goal_offset=8, **SCENE), seed),
        (3,),
        config,
        generator=seeded(),
    )
    assert Watching.lengths == [1, 2, 3, 3]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("moves", ["camera", "square"])
def test_the_goal_of_the_scene_is_so_many_moves_away(seed, moves) -> None:
    """By a breadth-first search of all ways."""
    task = SceneTask(goal_offset=2, moves=moves, **SCENE)
    frame, goal = task.reset(seed)
    assert frame.shape == goal.shape == (16, 16, 3) and not (frame == goal).all()
    reached = {}
    for first in range(5):
        for second in range(5):
            task.reset(seed)
            shown, done = [], []
            for move in (first, second):
                task.step(move)
                shown.append(task.frame())
                done.append(task.succeeded())
            reached[first, second] = done
            for picture, there in zip(shown, done, strict=True):
                assert there == bool((picture == goal).all())
    assert any(done[1] for done in reached.values())
    assert not any(done[0] for done in reached.values())


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ConfigError, match=r"--goal-offset: expected 1 .. 10 moves"):
        SceneTask(goal_offset=11, **SCENE)
    with pytest.raises(ConfigError, match="no environment with goals 'scen' is registered"):
        make_task("scen", height=16, width=16)
    with pytest.raises(ValueError, match="it reads latents, and these dynamics give frames"):
        config = MPCConfig()
        agent = replace(
            scene_agent(CopyDynamics(), ShootingConfig(), config),
            cost=lambda goals: GoalDistance(goals, reads="latents"),
        )
        start = lambda seed: begin(SceneTask(**SCENE), seed)  # noqa: E731
        play(agent, start, (0,), config, generator=seeded())
