"""Play episodes: an env, a behaviour and a seed in; frames and actions out.

Not here: files (the recorder's work). Episode i of seed s is a function of (s, i) alone, whatever
was played before it, so episodes can be played in any order or in several processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colaworld.envs.base import Env
from colaworld.envs.behaviours import Behaviour


@dataclass(frozen=True)
class Episode:
    """`actions[t]` was taken at frame t and led to frame t + 1; the last one leads out of it."""

    index: int
    frames: np.ndarray  # [n, H, W, 3] uint8
    actions: np.ndarray  # [n] int64 (discrete) | [n, A] float32 (continuous)


class ConstantClipError(ValueError):
    """An episode whose frames are all one colour: a renderer that failed, not a film."""


def episode_seeds(seed: int, episode: int) -> tuple[int, np.random.Generator]:
    """(seed of the env, generator of the behaviour) for one episode, independent of all others."""
    env_seed, behaviour_seed = np.random.SeedSequence([seed, episode]).spawn(2)
    return int(env_seed.generate_state(1)[0] >> 1), np.random.default_rng(behaviour_seed)


def play(env: Env, behaviour: Behaviour, *, seed: int, episode: int, steps: int) -> Episode:
    """Play one episode of at most `steps` frames (fewer where the env ends it).

    Raises ConstantClipError if every pixel of every frame is the same.
    """
    if steps < 2:
        raise ValueError(f"play: expected at least 2 steps, got {steps}")
    env_seed, rng = episode_seeds(seed, episode)
    frame = env.reset(env_seed)
    behaviour.reset(env, rng)
    frames, actions, done = [], [], False
    while True:
        frames.append(frame)
        actions.append(behaviour.act(env))
        if done or len(frames) == steps:
            break
        frame, done = env.step(actions[-1])
    film = np.stack(frames)
    if film.min() == film.max():
        raise ConstantClipError(
            f"{env.name}: episode {episode} of seed {seed} shows nothing but the value "
            f"{film.min()} in all {len(film)} frames; the renderer is broken (for a GL renderer, "
            "check MUJOCO_GL=egl or osmesa)"
        )
    dtype = np.int64 if env.action_spec.kind == "discrete" else np.float32
    return Episode(episode, film, np.asarray(actions, dtype))
