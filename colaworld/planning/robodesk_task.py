"""The seven tasks of VP2 on RoboDesk, each with a goal image (Tian et al. 2023, arXiv 2304.13723).

A scripted hand carries the task out: the start is where it was `goal_offset` steps before it was done, or the start of its
episode; the goal is what it led to. What it does not bring about in 30 steps (the drawer, and a few others) is put
where it counts as done, while the hand stays. A task is done by the thresholds of envs/robodesk_tasks.py, with VP2's
mended off-the-table ones. VP2's own starts and goals are a file of recorded episodes, which these are not.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from torch import Tensor

from colaworld.config import ConfigError
from colaworld.envs.robodesk import ACTION_REPEAT, RoboDesk
from colaworld.envs.robodesk_tasks import TASKS, Hand, success, thing
from colaworld.planning.spaces import Continuous, Space
from colaworld.planning.tasks import in_turn

_SCRIPT = 30  # steps the hand has
_DONE: dict[str, tuple[Any, float]] = {
    "open_drawer": ("drawer", -0.22),
    "open_slide": ("slide", 0.58),
}  # a little past the threshold


@functools.cache
def _desk(size: int, quality: Literal["paper", "fast"]) -> RoboDesk:
    """One for all episodes of a process, each of which copies it: it holds a GL context."""
    return RoboDesk(size=size, quality=quality)


class RoboDeskTask:
    """RoboDesk and one of VP2's tasks. Frames are square."""

    name = "robodesk"
    shortest, place = False, None

    def __init__(
        self,
        *,
        height: int,
        width: int,
        goal_offset: int = 10,
        block: int = 1,
        task: str = "push_red",
        quality: Literal["paper", "fast"] = "fast",
    ) -> None:
        if height != width:
            raise ConfigError(
                f"robodesk: its frames are square; expected a run of such, got {height}x{width}"
            )
        if task not in TASKS:
            raise ConfigError(f"--task: robodesk has {', '.join(TASKS)}, got {task!r}")
        self._env = _desk(height, quality)
        self.task, self.goal_offset, self.block = task, goal_offset, block
        self.told = {"task": task, "quality": quality, "control_steps": ACTION_REPEAT}
        self.frame_size, self.action_spec = (height, width), self._env.action_spec
        self.space: Space = Continuous((-1.0,) * 5 * block, (1.0,) * 5 * block)

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        script = _desk(self._env.size, self._env.quality)
        hand, passed = Hand(self.task), list[RoboDesk]()
        for again in range(20):
            script.reset(
                seed if not again else int(np.random.default_rng([seed, again]).integers(2**31))
            )
            hand, passed = Hand(self.task), [copy.deepcopy(script)]
            while not success(self.task, script.state()) and len(passed) <= _SCRIPT:
                script.advance(hand.act(script.state()))
                passed.append(copy.deepcopy(script))
            if not success(self.task, script.state()) and self.task in _DONE:
                script.put(*_DONE[self.task])
            if success(self.task, script.state()):
                break
        else:
            raise RuntimeError(f"robodesk: the script did not carry out {self.task} in 20 episodes")
        self._env = passed[max(0, len(passed) - 1 - self.goal_offset)]
        self._start, self._goal = (thing(self.task, one.state())[0] for one in (self._env, script))
        return self.frame(), script.draw()

    def steps(self, action: Tensor) -> Iterable[Any]:
        return in_turn(action, -1, 1, 5)

    recorded = steps

    def step(self, action: Any) -> None:
        self._env.advance(action)

    def frame(self) -> np.ndarray:
        return self._env.draw()

    def succeeded(self) -> bool:
        return success(self.task, self._env.state())

    def distance(self) -> float:
        """The share of its way that the thing of the task has before it, and metres from the hand to it."""
        state = self._env.state()
        now, place = thing(self.task, state)
        left, whole = (float(np.linalg.norm(one - self._goal)) for one in (now, self._start))
        return left / max(whole, 1e-9) + float(np.linalg.norm(state["hand"] - place))

    def state(self) -> dict[str, Any]:
        return self._env.state()
