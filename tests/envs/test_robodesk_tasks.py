"""RoboDesk's tasks without a simulator: thresholds at both sides, and a hand that goes where the thing is."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from colaworld import envs
from colaworld.envs import behaviours, robodesk
from colaworld.envs.robodesk_tasks import BLOCKS, TASKS, Hand, success
from colaworld.envs.scene import Scene


def _state(**changes: Any) -> dict[str, Any]:
    blocks = {block: np.array([0.2 * i, 0.7, 0.8]) for i, block in enumerate(BLOCKS)}
    return {
        "hand": np.array([0.0, 0.4, 1.0]),
        "lights": {"red": 0.0, "green": 0.0, "blue": 0.0},
        "buttons": {"red": np.array([-0.45, 0.625, 0.76])},
        "slide": 0.1,
        "drawer": 0.0,
        "blocks": blocks,
        "start": {name: place.copy() for name, place in blocks.items()},
        **changes,
    }


@pytest.mark.parametrize(
    ("task", "almost", "just"),
    [
        ("push_red", {"lights": {"red": -0.0045}}, {"lights": {"red": -0.0046}}),
        ("open_slide", {"slide": 0.55}, {"slide": 0.551}),
        ("open_drawer", {"drawer": -0.2}, {"drawer": -0.201}),
    ],
)
def test_thresholds(task: str, almost: dict[str, Any], just: dict[str, Any]) -> None:
    assert not success(task, _state(**almost))
    assert success(task, _state(**just))


def test_off_the_table_counts_while_the_others_stay() -> None:
    state = _state()
    assert not success("flat_block_off_table", state)
    state["blocks"]["flat_block"] = np.array([0.7, 0.7, 0.05])
    assert success("flat_block_off_table", state)
    assert not success("upright_block_off_table", state)
    state["blocks"]["ball"] = state["start"]["ball"] + (0.006, 0.006, 0.0)  # 8.5 mm
    assert success("flat_block_off_table", state)
    state["blocks"]["ball"] = state["start"]["ball"] + (0.0, 0.011, 0.0)
    assert not success("flat_block_off_table", state)


def test_the_seven_tasks_are_vp2s() -> None:
    assert len(TASKS) == 7 and "open_drawer" in TASKS
    with pytest.raises(ValueError, match=r"'stack'.*push_red"):
        success("stack", _state())


def test_the_hand_goes_above_the_button_then_down() -> None:
    hand, state = Hand("push_red"), _state()
    state["hand"] = np.array([0.0, 0.4, 0.93])  # risen already
    x, y, z, wrist, gripper = hand.act(state)  # 0.45 m to the left, 0.225 m away, 0.02 m down
    np.testing.assert_allclose([x, y, z], [-1, 0.5, -0.02 / 0.45], atol=1e-9)
    assert (wrist, gripper) == (0, -1)
    state["hand"] = np.array([-0.45, 0.625, 0.9])
    np.testing.assert_allclose(hand.act(state)[:3], [0, 0, -1], atol=1e-9)


def test_a_missing_scene_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"not installed: pip install --no-deps robodesk==1\.0\.0"
    ):
        robodesk._scene()


class _Line:
    """A point that continuous actions move; its scripted behaviour is held in `Noisy` here."""

    name, version, fps, action_range = "line", "0", 1.0, (-1.0, 1.0)
    action_spec = envs.base.ActionSpec("action", "continuous", 2)


class _Still:
    name = "still"

    def reset(self, env: Any, rng: np.random.Generator) -> None: ...

    def act(self, env: Any) -> Any:
        return np.zeros(2, np.float32) if env.name == "line" else 3


def test_noise_has_the_stated_size_and_stays_in_the_range() -> None:
    noisy, line = behaviours.Noisy(_Still(), 0.3), _Line()
    noisy.reset(line, np.random.default_rng(0))  # type: ignore[arg-type]
    drawn = np.array([noisy.act(line) for _ in range(4000)])  # type: ignore[arg-type]
    assert drawn.dtype == np.float32 and np.abs(drawn).max() <= 1
    assert abs(drawn.std() - 0.3) < 0.01 and abs(drawn.mean()) < 0.02
    scene = Scene()
    noisy.reset(scene, np.random.default_rng(0))
    other = np.mean([noisy.act(scene) != 3 for _ in range(4000)])
    assert abs(other - 0.3 * 4 / 5) < 0.03  # one fresh draw in 5 gives the same


def test_a_mixture_takes_one_behaviour_per_episode() -> None:
    class Always(_Still):
        def __init__(self, action: int) -> None:
            self.action = action

        def act(self, env: Any) -> int:
            return self.action

    scene, mixture = Scene(), behaviours.Mixture(Always(0), Always(1), Always(2))
    seen = []
    for episode in range(60):
        mixture.reset(scene, np.random.default_rng(episode))
        actions = {mixture.act(scene) for _ in range(5)}
        assert len(actions) == 1
        seen.append(actions.pop())
    assert min(np.bincount(seen, minlength=3)) >= 10
