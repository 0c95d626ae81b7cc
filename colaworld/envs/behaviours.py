"""Who chooses the actions while an environment is filmed. Each behaviour is fixed by its seed.

Not here: learned policies or planners. A behaviour sees the env's exact state, never the frame.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.envs.base import Env
from colaworld.envs.robodesk_tasks import TASKS, Hand, success

Action = Any  # int for discrete actions, float32 [A] for continuous ones


class Behaviour(Protocol):
    """Acts in an env. What it does follows from the env's state and its generator alone."""

    name: str

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        """A new episode begins; `rng` is its only source of chance."""
        ...

    def act(self, env: Env) -> Action:
        """The next action, as the env's `step` takes it."""
        ...


def _draw(spec: ActionSpec, env: Env, rng: np.random.Generator) -> Action:
    """Uniform: a class, numbers in their range, or, where actions are places, a way from where it is."""
    if spec.kind == "discrete":
        return int(rng.integers(spec.size))
    low, high = env.action_range  # type: ignore[attr-defined]  # continuous envs state theirs
    if spec.mode == "absolute":
        low, high = -env.pace, env.pace  # type: ignore[attr-defined]  # and what a hand does in a step
    return rng.uniform(low, high, spec.size).astype(np.float32)


def _taken(env: Env, drawn: Action) -> Action:
    """What was drawn, as the env's `step` takes it."""
    if env.action_spec.mode != "absolute":
        return drawn
    low, high = env.action_range  # type: ignore[attr-defined]
    return np.clip(env.state()["agent"] + drawn, low, high).astype(np.float32)


class Random:
    """Every action uniform and independent of the last. Places are drawn around where it is."""

    name = "random"

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, env: Env) -> Action:
        return _taken(env, _draw(env.action_spec, env, self._rng))


class StickyRandom:
    """Repeats the last action (of places: the way there) with probability `repeat`, else draws a new one uniformly.

    Goes further than `random` in the same number of steps, so that more of a world is seen.
    """

    name = "sticky-random"

    def __init__(self, repeat: float = 0.5) -> None:
        if not 0 <= repeat < 1:
            raise ValueError(f"StickyRandom.repeat: expected a probability in [0, 1), got {repeat}")
        self.repeat = repeat

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._rng, self._last = rng, None

    def act(self, env: Env) -> Action:
        if self._last is None or self._rng.uniform() >= self.repeat:
            self._last = _draw(env.action_spec, env, self._rng)
        return _taken(env, self._last)


class Explore:
    """Crafter, scripted: walks straight, turns when blocked, and now and then of its own accord."""

    name = "scripted"

    def __init__(self, turn: float = 0.1) -> None:
        self.turn = turn

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        names = env.action_spec.names
        self._moves = [i for i, name in enumerate(names) if name.startswith("move_")]
        if len(self._moves) < 2:
            raise ValueError(f"scripted: needs at least two of Crafter's moves, got {list(names)}")
        self._rng = rng
        self._move = int(rng.choice(self._moves))
        self._before: Any = None

    def act(self, env: Env) -> Action:
        position = env.state()["position"]
        if position == self._before or self._rng.uniform() < self.turn:
            self._move = int(self._rng.choice([m for m in self._moves if m != self._move]))
        self._before = position
        return self._move


class Push:
    """PushT, scripted: drives the block towards one place after another, going round it to get behind."""

    name = "scripted"

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._rng, self._left, self._aim = rng, 0, np.zeros(2)

    def act(self, env: Env) -> Action:
        state = env.state()
        agent, block = np.asarray(state["agent"]), np.asarray(state["block"])
        if self._left == 0 or np.linalg.norm(self._aim - block) < 30:
            self._aim, self._left = self._rng.uniform(100, 412, 2), 60  # away from the walls
        self._left -= 1
        way = (self._aim - block) / max(float(np.linalg.norm(self._aim - block)), 1.0)
        side = np.array([-way[1], way[0]])
        ahead, beside = float((agent - block) @ way), float((agent - block) @ side)
        if ahead < -20 and abs(beside) < 30:
            target = agent + 60 * way - beside * side  # behind: push
        elif ahead < -40 or abs(beside) > 85:
            target = block - 70 * way + min(max(beside, -60.0), 60.0) * (ahead > 0) * side
        else:
            target = agent + (50 if beside >= 0 else -50) * side - 20 * way  # beside it: make room
        low, high = env.action_range  # type: ignore[attr-defined]
        pace = env.pace  # type: ignore[attr-defined]
        step = np.clip(target - agent, -pace, pace)
        return np.clip(agent + step, low, high).astype(np.float32)


class Desk:
    """RoboDesk, scripted: carries out one task of VP2 after the other, each drawn at random."""

    name = "scripted"

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._rng, self._left, self._hand = rng, 0, Hand(TASKS[0])

    def act(self, env: Env) -> Action:
        state = env.state()
        if self._left == 0 or success(self._hand.task, state):
            self._hand, self._left = Hand(str(self._rng.choice(TASKS))), 30
        self._left -= 1
        return self._hand.act(state).astype(np.float32)


class Noisy:
    """Another behaviour with noise on what it does.

    Continuous actions get normal noise of standard deviation `noise`, as a share of half their range or, where they
    are places, of the env's pace, and stay in their range; a discrete action is drawn anew with probability `noise`.
    """

    name = "noisy-scripted"

    def __init__(self, inner: Behaviour, noise: float = 0.2) -> None:
        if not 0 <= noise <= 1:
            raise ValueError(f"Noisy.noise: expected a share in [0, 1], got {noise}")
        self.inner, self.noise = inner, noise

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._rng = rng
        self.inner.reset(env, rng)

    def act(self, env: Env) -> Action:
        action = self.inner.act(env)
        if env.action_spec.kind == "discrete":
            redraw = self._rng.uniform() < self.noise
            return _draw(env.action_spec, env, self._rng) if redraw else action
        low, high = env.action_range  # type: ignore[attr-defined]
        places = env.action_spec.mode == "absolute"
        most = env.pace if places else (high - low) / 2  # type: ignore[attr-defined]
        shift = self._rng.normal(0, self.noise * most, env.action_spec.size)
        return np.clip(action + shift, low, high).astype(np.float32)


class Mixture:
    """One of several behaviours per episode, each as likely."""

    name = "mixture"

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = behaviours

    def reset(self, env: Env, rng: np.random.Generator) -> None:
        self._chosen = self.behaviours[rng.integers(len(self.behaviours))]
        self._chosen.reset(env, rng)

    def act(self, env: Env) -> Action:
        return self._chosen.act(env)


NAMES = ("random", "sticky-random", "scripted", "noisy-scripted", "mixture")


def make(name: str, env: Env, *, repeat: float = 0.5, noise: float = 0.2) -> Behaviour:
    """The behaviour called `name` for this env. `repeat` is sticky-random's, `noise` noisy-scripted's.

    "mixture" takes sticky-random, scripted or noisy-scripted.
    """
    if name == "random":
        return Random()
    if name == "sticky-random":
        return StickyRandom(repeat)
    if name not in NAMES:
        raise ValueError(f"unknown behaviour {name!r}; expected one of {', '.join(NAMES)}")
    scripts: dict[str, type[Behaviour]] = {"crafter": Explore, "pusht": Push, "robodesk": Desk}
    if env.name not in scripts:
        raise ValueError(
            f"no scripted behaviour for {env.name!r}, which {name} needs; it exists for {', '.join(scripts)}; "
            "use random or sticky-random"
        )
    script = scripts[env.name]
    if name == "scripted":
        return script()
    noisy = Noisy(script(), noise)
    return noisy if name == "noisy-scripted" else Mixture(StickyRandom(repeat), script(), noisy)
