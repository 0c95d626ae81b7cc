"""VP2's tasks on RoboDesk: starts that are not done, goals that are, copies that go the same way."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="needs mujoco: pip install 'colaworld[robodesk]'")
if importlib.util.find_spec("robodesk") is None:
    pytest.skip("needs pip install --no-deps robodesk==1.0.0", allow_module_level=True)

from colaworld.config import ConfigError
from colaworld.envs.robodesk_tasks import Hand
from colaworld.planning.robodesk_task import RoboDeskTask


@pytest.fixture(scope="module")
def pushing() -> tuple[RoboDeskTask, np.ndarray, np.ndarray]:
    task = RoboDeskTask(height=32, width=32, task="push_green", goal_offset=3)
    return task, *task.reset(1)


def test_the_start_is_so_many_steps_before_the_script_was_done(pushing) -> None:
    begun, first, goal = pushing
    assert first.shape == goal.shape == (32, 32, 3) and not (first == goal).all()
    task = copy.deepcopy(begun)
    hand = Hand("push_green")
    hand._stage = 2  # on its way down
    steps = 0
    while not task.succeeded():
        action = torch.tensor(hand.act(task.state()), dtype=torch.float32)
        for one in task.steps(action):
            task.step(one)
        steps += 1
    assert 2 <= steps <= 4 and not begun.succeeded()
    assert task.told == {"task": "push_green", "quality": "fast", "control_steps": 50}


def test_the_distance_falls_as_the_thing_is_brought_to_where_it_counts(pushing) -> None:
    task = copy.deepcopy(pushing[0])
    hand = Hand("push_green")
    hand._stage = 2  # on its way down
    left = [task.distance()]
    reach = float(np.linalg.norm(task.state()["hand"] - task.state()["buttons"]["green"]))
    assert left[0] == pytest.approx(1 + reach)
    while not task.succeeded():
        task.step(hand.act(task.state()))
        left.append(task.distance())
    assert left == sorted(left, reverse=True) and left[-1] < 0.5


def test_a_copy_goes_the_same_way_to_the_last_bit(pushing) -> None:
    one, other = copy.deepcopy(pushing[0]), copy.deepcopy(pushing[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (3, 5)):
        one.step(action)
        other.step(action)
        for name in ("qpos", "qvel", "qacc_warmstart"):
            mine, theirs = (getattr(task._env._data, name) for task in (one, other))
            np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(one.frame(), other.frame())
    assert one._env._renderer is pushing[0]._env._renderer  # one GL context for all
    np.testing.assert_array_equal(pushing[0].frame(), pushing[1])


def test_what_does_not_fit_is_said(pushing) -> None:
    with pytest.raises(ConfigError, match=r"--task: robodesk has push_red, .* got 'push_pink'"):
        RoboDeskTask(height=32, width=32, task="push_pink")
    with pytest.raises(ConfigError, match="its frames are square; expected a run of such"):
        RoboDeskTask(height=28, width=36)


@pytest.mark.slow
def test_what_the_script_does_not_bring_about_is_put_where_it_counts() -> None:
    task = RoboDeskTask(height=32, width=32, task="open_drawer")
    first, goal = task.reset(0)
    assert task.state()["drawer"] > -0.2 and not task.succeeded()
    task._env.put("drawer", -0.22)
    assert task.succeeded() and not (first == goal).all()
