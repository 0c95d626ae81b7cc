"""Episodes are functions of (seed, number) alone, and a black renderer is refused."""

from __future__ import annotations

import numpy as np
import pytest

from colaworld import envs
from colaworld.contracts import ActionSpec
from colaworld.envs import behaviours
from colaworld.envs.scene import Scene


def _play(episode: int, seed: int = 0, name: str = "sticky-random") -> envs.Episode:
    env = Scene()
    return envs.play(env, behaviours.make(name, env), seed=seed, episode=episode, steps=20)


def test_an_episode_does_not_depend_on_what_was_played_before() -> None:
    env = Scene()
    behaviour = behaviours.make("sticky-random", env)
    envs.play(env, behaviour, seed=0, episode=0, steps=20)
    second = envs.play(env, behaviour, seed=0, episode=1, steps=20)
    alone = _play(1)
    np.testing.assert_array_equal(second.frames, alone.frames)
    np.testing.assert_array_equal(second.actions, alone.actions)
    assert not np.array_equal(alone.actions, _play(2).actions)
    assert not np.array_equal(alone.actions, _play(1, seed=1).actions)


def test_action_t_leads_from_frame_t_to_t_plus_1() -> None:
    episode = _play(0)
    env = Scene()
    first = env.reset(envs.episodes.episode_seeds(0, 0)[0])
    np.testing.assert_array_equal(episode.frames[0], first)
    for t in range(19):
        np.testing.assert_array_equal(episode.frames[t + 1], env.step(episode.actions[t])[0])
    assert episode.frames.shape == (20, 32, 32, 3) and episode.actions.shape == (20,)


def test_sticky_repeats_as_often_as_stated() -> None:
    env = Scene()
    for repeat in (0.0, 0.5, 0.9):
        behaviour = behaviours.StickyRandom(repeat)
        behaviour.reset(env, np.random.default_rng(0))
        actions = np.array([behaviour.act(env) for _ in range(4000)])
        same = np.mean(actions[1:] == actions[:-1])
        expected = repeat + (1 - repeat) / 5  # a fresh draw equals the last one 1 time in 5
        assert abs(same - expected) < 0.03  # 3.8 standard errors at the widest


class _Black:
    name, version, fps = "black", "0", 10.0
    action_spec = ActionSpec("action", "discrete", 2)

    def reset(self, seed: int) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def step(self, action: int) -> tuple[np.ndarray, bool]:
        return np.zeros((8, 8, 3), np.uint8), False

    def state(self) -> dict:
        return {}


class _Short(Scene):
    def step(self, action: int) -> tuple[np.ndarray, bool]:
        return super().step(action)[0], True


def test_black_frames_are_refused() -> None:
    env = _Black()
    with pytest.raises(envs.ConstantClipError, match=r"value 0 in all 5 frames.*MUJOCO_GL"):
        envs.play(env, behaviours.Random(), seed=0, episode=0, steps=5)


def test_an_env_that_ends_makes_a_shorter_episode() -> None:
    env = _Short()
    episode = envs.play(env, behaviours.Random(), seed=0, episode=0, steps=50)
    assert len(episode.frames) == len(episode.actions) == 2


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="crafter, point-mass, pusht, robodesk, scene"):
        envs.make("doom")
    with pytest.raises(
        ValueError, match="random, sticky-random, scripted, noisy-scripted, mixture"
    ):
        behaviours.make("lazy", Scene())
    with pytest.raises(ValueError, match="no scripted behaviour for 'scene'"):
        behaviours.make("scripted", Scene())
