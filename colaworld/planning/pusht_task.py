"""PushT with a goal: bring disc and T to where a scripted pusher took them, as stable-worldmodel evaluates.

The protocol (github.com/galilai-group/stable-worldmodel, scripts/plan/config/pusht.yaml and envs/pusht/env.py, 2026):
start and goal are two places of an expert's episode, 25 steps apart; 50 steps are allowed, and 5 make a planned
action. A step is a displacement in [-1, 1]^2 of 100 px from where the disc is. Reached is a goal when (x, y) of
disc and T, as four numbers, are less than 20 px from it and the angle of the T less than 20 degrees.

What departs from it: the expert is our scripted pusher, not their recorded set; the T is gym-pusht's, a quarter
smaller than theirs; an episode whose start would count as its goal is not played; start and copies keep what moves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from colaworld.config import ConfigError
from colaworld.envs.behaviours import Push
from colaworld.envs.pusht import PushT
from colaworld.planning.spaces import Continuous, Space
from colaworld.planning.tasks import in_turn

_NEAR, _TURNED = 20.0, np.pi / 9  # px of 512, radians
_REACH = 100.0  # px that a step of 1 sends the disc
_TRIES = 50  # starts of an episode; of six episodes with goals 2 steps away none took more than 6
_BEGIN = 50  # steps that the pusher has made before the start, at most


class PushTTask:
    """PushT, from a pusher's place to where it is `goal_offset` steps later. Frames are square."""

    name = "pusht"
    shortest = False  # the pusher goes round the T, and others may not
    told: ClassVar = {"near_px": _NEAR, "turned_degrees": 20, "step_px": _REACH}

    def __init__(
        self, *, height: int, width: int, goal_offset: int = 25, block: int = 5, **options: Any
    ) -> None:
        if height != width:
            raise ConfigError(
                f"pusht: its frames are square; expected a run of such, got {height}x{width}"
            )
        self._env, self.place = PushT(size=height, **options), np.zeros(2)
        self.goal_offset, self.block, self.frame_size = goal_offset, block, (height, width)
        self.action_spec = self._env.action_spec
        self.space: Space = Continuous((-1.0,) * 2 * block, (1.0,) * 2 * block)

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        env, rng = self._env, np.random.default_rng([seed, 1])
        env.reset(seed)
        pusher = Push()
        pusher.reset(env, rng)
        sent = env.state()["agent"]
        for _ in range(int(rng.integers(_BEGIN))):
            env.advance(sent := pusher.act(env))
        for _ in range(_TRIES):
            self._env, self.place = copy.deepcopy(env), np.asarray(sent)
            for _ in range(self.goal_offset):
                env.advance(sent := pusher.act(env))
            self._goal = env.state()
            if not self.succeeded():
                return self.frame(), env.draw()
        raise ConfigError(
            f"--goal-offset {self.goal_offset}: in the episode of seed {seed} each of the first {_TRIES} goals counts as "
            "reached where it starts; raise it (the protocol has 25), or take another --seed"
        )

    def steps(self, action: Tensor) -> Iterator[np.ndarray]:
        for way in in_turn(action, -1, 1, 2):
            yield np.clip(self._env.state()["agent"] + _REACH * way, *self._env.action_range)

    def recorded(self, action: Tensor) -> list[np.ndarray]:
        return in_turn(action, *self._env.action_range, 2)

    def step(self, action: Any) -> None:
        self._env.advance(action)
        self.place = np.asarray(action)

    def frame(self) -> np.ndarray:
        return self._env.draw()

    def succeeded(self) -> bool:
        away, turned = self._left()
        return away < _NEAR and turned < _TURNED

    def distance(self) -> float:
        """Of disc and T, and of the T's angle, each as a multiple of what counts as reached; their norm."""
        away, turned = self._left()
        return float(np.hypot(away / _NEAR, turned / _TURNED))

    def _left(self) -> tuple[float, float]:
        """Pixels, of disc and T as four numbers, and radians."""
        now, goal = self._env.state(), self._goal
        away = [now[body] - goal[body] for body in ("agent", "block")]
        turned = abs(now["angle"] - goal["angle"]) % (2 * np.pi)
        return float(np.linalg.norm(np.concatenate(away))), float(min(turned, 2 * np.pi - turned))

    def state(self) -> dict[str, Any]:
        return self._env.state()
