"""Crafter: our drawing equals the game's, and a seed gives the same bytes in every process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("crafter", reason="needs crafter: pip install 'colaworld[crafter]'")

from colaworld import envs
from colaworld.envs import behaviours
from colaworld.envs.crafter import VISIBLE_ACTIONS, Crafter


@pytest.fixture(scope="module")
def world() -> Crafter:
    return Crafter(view="full")


def test_frames_equal_the_stock_renderers(world: Crafter) -> None:
    world.reset(11)
    rng = np.random.default_rng(0)
    for _ in range(100):
        frame, _ = world.step(rng.integers(1, 5))
        np.testing.assert_array_equal(frame, world._game.render())
    assert frame.shape == (36, 36, 3)


def test_the_quick_world_is_the_stock_world(world: Crafter) -> None:
    import crafter

    world.reset(5)
    stock = crafter.Env(size=(36, 36), seed=5)
    stock.reset()
    np.testing.assert_array_equal(world._game._world._mat_map, stock._world._mat_map)
    np.testing.assert_array_equal(world._game.render(), stock.render())


def test_map_view_leaves_the_inventory_out(world: Crafter) -> None:
    full = world.reset(3)
    cropped = Crafter(view="map").reset(3)
    assert cropped.shape == (28, 36, 3)
    np.testing.assert_array_equal(cropped, full[:28])


def test_a_move_scrolls_the_view_by_one_cell() -> None:
    env = Crafter(start="varied")
    for seed in range(4):
        before = env.reset(seed)
        place = env.state()["position"]
        for action in (1, 2, 3, 4, 1, 2, 3, 4):
            frame, _ = env.step(action)
            moved = np.subtract(env.state()["position"], place)
            place = env.state()["position"]
            if np.abs(moved).sum() == 1:
                dx, dy = 4 * moved
                y, x = np.mgrid[4:24, 4:32]
                far = (np.abs(y - 13.5) > 6) | (np.abs(x - 17.5) > 6)  # away from the player
                same = np.abs(frame[y, x].astype(int) - before[y + dy, x + dx]).max(-1) < 12
                assert same[far].mean() > 0.9  # creatures move of their own accord
                return
            before = frame
    raise AssertionError("no free move in four worlds")


_SCRIPT = """
import hashlib
from colaworld import envs
from colaworld.envs import behaviours
env = envs.make("crafter")
behaviour = behaviours.make("scripted", env)
film = envs.play(env, behaviour, seed=3, episode=2, steps=100)
print(hashlib.sha256(film.frames.tobytes() + film.actions.tobytes()).hexdigest())
"""


def test_the_seed_fixes_every_byte_in_another_process(world: Crafter) -> None:
    env = envs.make("crafter")
    behaviour = behaviours.make("scripted", env)
    for episode in (0, 2):  # something else was played before
        film = envs.play(env, behaviour, seed=3, episode=episode, steps=100)
    here = hashlib.sha256(film.frames.tobytes() + film.actions.tobytes()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here


def test_scripted_turns_when_blocked_and_gets_further_than_random() -> None:
    def reach(name: str) -> float:
        env = envs.make("crafter")
        behaviour = behaviours.make(name, env)
        far = []
        for episode in range(3):
            envs.play(env, behaviour, seed=0, episode=episode, steps=60)
            far.append(np.abs(np.subtract(env.state()["position"], (32, 32))).sum())
        return float(np.mean(far))

    assert reach("scripted") > reach("random")


def test_actions_are_indices_into_the_stated_subset() -> None:
    env = Crafter(actions=("move_right", "noop"))
    assert env.action_spec.names == ("move_right", "noop") and env.action_spec.size == 2
    env.reset(0)
    env.step(0)
    assert env.state()["facing"] == (1, 0)
    with pytest.raises(ValueError, match=r"0\.\.1, got 2"):
        env.step(2)
    with pytest.raises(ValueError, match="fly"):
        Crafter(actions=("fly",))
    assert VISIBLE_ACTIONS[0] == "noop"
