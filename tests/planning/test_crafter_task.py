"""Crafter with a goal: no way is shorter, copies play on alike, wood is told by the inventory."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

pytest.importorskip("crafter", reason="needs crafter: pip install 'colaworld[crafter]'")

from colaworld.config import ConfigError
from colaworld.contracts import ActionSpec
from colaworld.planning.crafter_task import CrafterTask
from colaworld.runs.steering import check_spec


def _fewest(task: CrafterTask, most: int) -> int:
    """By trying all ways."""
    for length in range(most + 1):
        for way in itertools.product(range(1, task.space.size), repeat=length):
            played = copy.deepcopy(task)
            for action in way:
                played.step(action)
            if played.succeeded():
                return length
    return most + 1


@pytest.mark.parametrize("kind", ["reach", "collect"])
def test_no_way_is_shorter(kind) -> None:
    task = CrafterTask(height=28, width=36, task=kind, goal_offset=2)
    for seed in (0, 1):
        frame, goal = task.reset(seed)
        assert frame.shape == goal.shape == (28, 36, 3) and not (frame == goal).all()
        assert _fewest(task, 3) == 2


@pytest.mark.parametrize("kind", ["reach", "collect"])
def test_the_distance_is_that_of_the_fewest_actions(kind) -> None:
    task = CrafterTask(height=28, width=36, task=kind, goal_offset=3)
    for seed in (0, 1):
        task.reset(seed)
        assert task.distance() == 3 and not task.succeeded()
        after = {}
        for action in range(1, task.space.size):
            played = copy.deepcopy(task)
            played.step(action)
            after[action] = played.distance()
        nearer = min(after, key=after.__getitem__)
        assert after[nearer] == 2 and max(after.values()) >= 3
        played = copy.deepcopy(task)
        for left in (2, 1, 0):
            ahead = {a: copy.deepcopy(played) for a in range(1, task.space.size)}
            for action, one in ahead.items():
                one.step(action)
            played = min(ahead.values(), key=CrafterTask.distance)
            assert played.distance() == left and played.succeeded() == (left == 0)


def test_a_goal_that_is_far_away_or_walled_in_is_at_most_so_far(monkeypatch) -> None:
    task = CrafterTask(height=28, width=36, goal_offset=2)
    task.reset(0)
    monkeypatch.setattr(task, "_target", (-9, -9))
    assert task.distance() == 5


def test_a_copy_plays_on_alike_and_leaves_the_other_alone() -> None:
    task = CrafterTask(height=14, width=18)
    task.reset(3)
    twin, resting = copy.deepcopy(task), copy.deepcopy(task)
    for action in (1, 1, 4, 4, 2, 3, 0, 1, 2, 2):
        for one in (task, twin):
            one.step(action)
        assert twin.state() == task.state() and (twin.frame() == task.frame()).all()
    assert resting.state() != task.state()
    assert twin._env._game._textures is task._env._game._textures


def test_what_does_not_fit_is_said() -> None:
    task = CrafterTask(height=18, width=18, task="collect")
    assert task.told == {"task": "collect", "view": "full"} and task.space.size == 6
    assert list(task.steps(torch.tensor([5]))) == [5] == list(task.recorded(torch.tensor(5)))
    order = ("move_left", "noop", "move_right", "move_up", "move_down", "do")
    with pytest.raises(ConfigError, match=r"actions are move_left, noop, .* in this order"):
        check_spec(ActionSpec("action", "discrete", 6, order), task, where="a set")
    with pytest.raises(ConfigError, match="a set: its actions are 5 classes, crafter takes 6"):
        check_spec(ActionSpec("action", "discrete", 5), task, where="a set")
    with pytest.raises(ConfigError, match=r"--task: crafter has reach and collect, got 'eat'"):
        CrafterTask(height=28, width=36, task="eat")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"7k x 9k or 9k x 9k px .* trained on 32x32"):
        CrafterTask(height=32, width=32)
    with pytest.raises(ConfigError, match=r"--goal-offset: expected 2 .. 30 steps, got 1"):
        CrafterTask(height=28, width=36, task="collect", goal_offset=1)


def test_a_world_without_such_a_goal_is_said(monkeypatch) -> None:
    monkeypatch.setattr(CrafterTask, "_ways", lambda task: [])
    with pytest.raises(ConfigError, match="in the world of seed 0 no goal lies 30 steps"):
        CrafterTask(height=14, width=18, goal_offset=30).reset(0)
