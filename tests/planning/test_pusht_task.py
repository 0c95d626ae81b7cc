"""PushT with a goal: exact copies, displacements as steps, the protocol's success."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht", reason="needs gym-pusht: pip install 'colaworld[pusht]'")

from colaworld.action_contract import ActionContract, Normaliser
from colaworld.config import ConfigError
from colaworld.contracts import ActionSpec
from colaworld.data.config import DataConfig
from colaworld.data.sources.lerobot_writer import LeRobotWriter
from colaworld.envs import behaviours
from colaworld.envs.pusht import PushT
from colaworld.planning import pusht_task
from colaworld.planning.config import EpisodesConfig, MPCConfig, ShootingConfig
from colaworld.planning.pusht_task import PushTTask
from colaworld.planning.tasks import make_task, own
from colaworld.runs import steering
from colaworld.runs.planning import plan_run
from colaworld.runs.steering import check_spec


@pytest.fixture
def task() -> PushTTask:
    return PushTTask(height=32, width=32, goal_offset=10)


def _all(env: PushT) -> list[float]:
    agent, block = env._game.agent, env._game.block
    moving = (*agent.velocity, *block.velocity, block.angular_velocity)
    return [*agent.position, *block.position, block.angle, *moving]


@pytest.mark.parametrize("behaviour", ["scripted", "sticky-random"])
def test_a_copy_goes_the_same_way_to_the_last_bit(behaviour) -> None:
    """Through many touches of disc, T and walls; pymunk's own copies part at the first."""
    env = PushT(size=32)
    env.reset(1)
    acting = behaviours.make(behaviour, env)
    acting.reset(env, np.random.default_rng(0))
    copies, parted = [], 0
    for step in range(60):
        if step % 10 == 7:
            copies.append(copy.deepcopy(env))
        action = acting.act(env)
        env.advance(action)
        for other in copies:
            frame, _ = other.step(action)
            parted += _all(other) != _all(env)
            assert (frame == env.draw()).all()
    assert len(copies) == 6 and parted == 0
    untouched = copy.deepcopy(env)
    untouched.advance(np.array([0.0, 0.0]))
    assert _all(untouched) != _all(env)  # a copy that moves moves nothing else


def test_start_and_goal_are_two_places_of_one_episode(task) -> None:
    first, goal = task.reset(4)
    assert first.shape == goal.shape == (32, 32, 3) and not (first == goal).all()
    assert not task.succeeded() and task.block == 5 and task.space.width == 10
    again = PushTTask(height=32, width=32, goal_offset=10).reset(4)
    np.testing.assert_array_equal(np.stack(again), np.stack((first, goal)))
    assert not (task.reset(5)[1] == goal).all()


def test_the_place_at_the_start_is_where_the_pusher_sent_the_disc_last(task, monkeypatch) -> None:
    """The disc is some 30 px behind it, further than goals are wide; a code's distance is from there."""
    sent = []

    class Watched(behaviours.Push):
        def act(self, env):
            sent.append(super().act(env))
            return sent[-1]

    monkeypatch.setattr(pusht_task, "Push", Watched)
    task.reset(3)
    before = len(sent) - task.goal_offset
    assert before > 0
    np.testing.assert_array_equal(task.place, sent[before - 1])
    assert np.linalg.norm(task.place - task.state()["agent"]) > 10
    monkeypatch.setattr(pusht_task, "_BEGIN", 1)  # nobody has sent it anywhere
    task.reset(3)
    np.testing.assert_array_equal(task.place, task.state()["agent"])


def test_an_offset_that_leads_nowhere_is_refused_after_some_tries(monkeypatch) -> None:
    """One step seldom leads away: in the episode of seed 1 none of 300 does."""
    tried = []

    class Counted(behaviours.Push):
        def act(self, env):
            tried.append(env)
            assert len(tried) < 200, "without end"
            return super().act(env)

    monkeypatch.setattr(pusht_task, "Push", Counted)
    with pytest.raises(
        ConfigError, match=r"--goal-offset 1: in the episode of seed 1 .* 50 .* raise"
    ):
        PushTTask(height=32, width=32, goal_offset=1).reset(1)


@pytest.mark.parametrize(
    ("moved", "turned", "reached"),
    [
        ((0, 0, 0, 0), 0, True),
        ((11, 11, 11, 0), 0, True),  # 19.05 px as four numbers
        ((11, 11, 11, 11), 0, False),  # 22 px
        ((0, 0, 0, 0), np.radians(19), True),
        ((0, 0, 0, 0), np.radians(21), False),
        ((0, 0, 0, 0), 2 * np.pi - np.radians(19), True),  # the other way round
    ],
)
def test_success_is_that_of_the_protocol(task, moved, turned, reached) -> None:
    task.reset(0)
    now = task.state()
    task._goal = {
        "agent": now["agent"] + moved[:2],
        "block": now["block"] + moved[2:],
        "angle": now["angle"] + turned,
    }
    assert task.succeeded() == reached
    short = min(turned, 2 * np.pi - turned)
    wanted = np.hypot(np.linalg.norm(moved) / 20, np.degrees(short) / 20)
    assert task.distance() == pytest.approx(wanted)


def test_a_step_is_a_displacement_from_where_the_disc_is_when_it_is_due(task) -> None:
    task.reset(2)
    action = torch.tensor([0.5, 0.0] * 5)
    sent = []
    for one in task.steps(action):
        np.testing.assert_allclose(one, np.clip(task.state()["agent"] + (50, 0), 0, 512), rtol=1e-6)
        task.step(one)
        sent.append(one[0])
        np.testing.assert_array_equal(task.place, one)
    assert len(sent) == 5 and sent[-1] > sent[0]
    for one in task.steps(torch.full((10,), 3.0)):  # no further than the longest
        assert (np.abs(one - task.state()["agent"]) < 101).all() and one.max() <= 512
    recorded = task.recorded(torch.tensor([600.0, -3.0, *[256.0] * 8]))
    np.testing.assert_array_equal(recorded[0], [512, 0])
    assert len(recorded) == 5


@pytest.mark.parametrize("mode", ["absolute", ""])
def test_a_code_leads_on_from_the_last_place_also_where_a_set_does_not_say_places(
    task, tmp_path, mode
) -> None:
    """As the set of the hub, whose file says nothing of modes. Each step of the recorded ones goes 10 px on."""
    spec = replace(task.action_spec, mode=mode, frame="", units=())
    writer = LeRobotWriter(tmp_path / "set", fps=10, height=32, width=32, action=spec)
    frames = np.random.default_rng(0).integers(0, 256, (22, 32, 32, 3), np.uint8)
    places = (100 + 10 * np.arange(22, dtype=np.float32)).repeat(2).reshape(22, 2)
    for _ in range(2):
        writer.add(frames, places)
    data = DataConfig(
        path=writer.finish(), frames_per_clip=3, stride=5, holdout=0.0, scene_cut_threshold=0
    )

    def infer(frames: Any) -> Any:
        return SimpleNamespace(indices=torch.zeros(len(frames), 2, 1, dtype=torch.int64))

    world = SimpleNamespace(codebook_size=1, tokens=1, frame_size=(32, 32), infer_actions=infer)
    steered = steering.steer(world, task, data, clips=4)
    assert steered.places and steered.steps == 4 and steered.action_map is not None
    assert steered.action_map.actions.tolist() == [[10.0] * 10]
    task.reset(0)
    task.place = np.array([200.0, 300.0])
    sent = np.stack(list(steered.act(torch.zeros(1, dtype=torch.int64), task)))
    np.testing.assert_allclose(sent, [200, 300] + 10.0 * np.arange(1, 6)[:, None])


@pytest.mark.parametrize("mode", ["as_recorded", "relative"])
def test_a_set_of_ways_is_refused_as_what_the_environment_does_not_take(
    task, tmp_path, mode
) -> None:
    """Whatever the run learned from: nobody is told to leave out an option that was not given."""
    spec = replace(task.action_spec, mode="relative")
    writer = LeRobotWriter(tmp_path / "set", fps=10, height=32, width=32, action=spec)
    writer.add(np.zeros((22, 32, 32, 3), np.uint8), np.ones((22, 2), np.float32))
    data = DataConfig(path=writer.finish(), frames_per_clip=3, stride=5, holdout=0.0, actions=mode)
    world = SimpleNamespace(codebook_size=1, tokens=1, frame_size=(32, 32))
    with pytest.raises(ConfigError, match="set: its actions are relative, pusht takes absolute"):
        steering.steer(world, task, data, clips=4)


def test_a_run_that_knows_ways_plans_from_the_last_place(task) -> None:
    task.reset(0)
    ways = replace(task.action_spec, mode="relative").every(5)
    world = SimpleNamespace(actions=ActionContract.of(ways, rate=2.0, normaliser=Normaliser()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering, "WorldDynamics", lambda *args, **named: SimpleNamespace(space=None))
        steered = steering.steer_real(world, task)
    task.place = np.array([200.0, 300.0])
    sent = np.stack(list(steered.act(torch.tensor([10.0, 0] * 4 + [0, -20]), task)))
    assert steered.places
    np.testing.assert_allclose(sent, [[210, 300], [220, 300], [230, 300], [240, 300], [240, 280]])


def test_places_have_no_size_that_a_penalty_could_weigh() -> None:
    """(0, 0) is a corner of the board: the nearer it, the cheaper."""
    config = EpisodesConfig(episodes=1, rows=("world",), penalty=0.1)
    with pytest.raises(ConfigError, match="--penalty: actions of this run are places"):
        plan_run(
            *("pusht", object()),
            size=(32, 32),
            planner=ShootingConfig(),
            mpc=MPCConfig(),
            config=config,
            steering=steering.Steering("real", own),
        )


def test_what_does_not_fit_is_said(task) -> None:
    spec = task.action_spec
    check_spec(spec.every(5), task, where="a set")
    with pytest.raises(ConfigError, match="a set: its actions are relative, pusht takes absolute"):
        check_spec(replace(spec, mode="relative").every(5), task, where="a set")
    check_spec(ActionSpec("action", "continuous", 10, units=("",) * 10), task, where="a set")
    metres = replace(spec, units=("px of 512", "m")).every(5)
    with pytest.raises(
        ConfigError, match=r"unit of y\+0, .*are in 'm', those of pusht in 'px of 512'"
    ):
        check_spec(metres, task, where="a set")
    with pytest.raises(ConfigError, match="a set: frame of reference: its actions are in 'base'"):
        check_spec(replace(spec, frame="base").every(5), task, where="a set")
    with pytest.raises(ConfigError, match=r"a set: an action is 1 steps of pusht .* --block 1"):
        check_spec(spec, task, where="a set")
    with pytest.raises(ConfigError, match=r"its actions are 7 numbers, pusht takes 10 numbers"):
        check_spec(ActionSpec("action", "continuous", 7), task, where="a set")
    with pytest.raises(ConfigError, match="expected a run of such, got 28x36"):
        make_task("pusht", height=28, width=36)
    with pytest.raises(ConfigError, match="--block: scene has none"):
        make_task("scene", height=16, width=16, block=5)
