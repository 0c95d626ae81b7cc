"""PushT: observations without the painted action, and a disc that goes where it is sent."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="needs gym-pusht: pip install 'colaworld[pusht]'")

from colaworld import envs
from colaworld.envs import behaviours
from colaworld.envs.pusht import PushT


def test_the_action_is_not_painted() -> None:
    env = PushT(size=96)
    env.reset(0)
    frame, _ = env.step(np.array([400.0, 60.0], np.float32))
    red = (frame[..., 0] > 200) & (frame[..., 1] < 80) & (frame[..., 2] < 80)
    assert frame.shape == (96, 96, 3) and not red.any()


def test_the_disc_goes_where_it_is_sent() -> None:
    env = PushT()
    env.reset(1)
    for _ in range(10):
        env.step(np.array([60.0, 60.0], np.float32))
    np.testing.assert_allclose(env.state()["agent"], [60, 60], atol=5)
    with pytest.raises(ValueError, match=r"0\.\.512"):
        env.step(np.array([600.0, 0.0], np.float32))


def test_seed_and_scripted_push() -> None:
    def film() -> envs.Episode:
        env = PushT(size=32)
        return envs.play(env, behaviours.make("scripted", env), seed=2, episode=0, steps=60)

    a, b = film(), film()
    np.testing.assert_array_equal(a.frames, b.frames)
    env = PushT(size=32)
    envs.play(env, behaviours.make("scripted", env), seed=2, episode=0, steps=2)
    start = env.state()["block"]
    envs.play(env, behaviours.make("scripted", env), seed=2, episode=0, steps=60)
    assert np.linalg.norm(env.state()["block"] - start) > 10  # it was pushed


def test_the_scripted_pusher_keeps_the_block_moving() -> None:
    env = PushT(size=32)
    behaviour = behaviours.make("scripted", env)
    moved = []
    for episode in range(4):
        seed, rng = envs.episodes.episode_seeds(0, episode)
        env.reset(seed)
        behaviour.reset(env, rng)
        for _ in range(5):
            before = env.state()["block"]
            for _ in range(40):
                env.advance(behaviour.act(env))
            moved.append(np.linalg.norm(env.state()["block"] - before) > 5)
    assert np.mean(moved) > 0.6


@pytest.mark.parametrize("name", behaviours.NAMES)
def test_no_behaviour_makes_the_disc_jump(name: str) -> None:
    """Over the whole board in a step, as places drawn anywhere would: no code could tell such a move."""
    env = PushT(size=32)
    behaviour = behaviours.make(name, env, repeat=0.9, noise=0.2)
    env.reset(3)
    behaviour.reset(env, np.random.default_rng(3))
    ahead = []
    for _ in range(40):
        before = env.state()["agent"]
        action = behaviour.act(env)
        ahead.append(np.abs(action - before).max())
        env.step(action)
    noise = 5 * 0.2 * PushT.pace if name in ("noisy-scripted", "mixture") else 0.1
    assert 0.2 * PushT.pace < np.median(ahead) and max(ahead) <= PushT.pace + noise
