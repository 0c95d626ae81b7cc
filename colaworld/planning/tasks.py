"""Environments with goals: what the loop plays in. Point mass and own scene, whose fewest moves are known.

Not here: the simulators (envs), the loop (mpc.py), which plan is good (costs.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from colaworld.config import ConfigError
from colaworld.contracts import ActionSpec
from colaworld.envs.point_mass import PointMass
from colaworld.envs.scene import MOVES, Scene
from colaworld.planning.config import TASKS
from colaworld.planning.spaces import Continuous, Discrete, Space


class Task(Protocol):
    """An environment with a goal. It can be copied (`copy.deepcopy`), as the true simulator needs."""

    name: str
    goal_offset: int
    """Steps from the start to the goal."""
    shortest: bool
    """Whether no fewer steps reach it."""
    action_spec: ActionSpec
    """What is recorded of a step."""
    block: int
    """Steps of one planned action."""
    space: Space
    """The actions that planners choose from."""
    place: np.ndarray | None
    """Where recorded actions are places: the one it was last sent to. None: they are not."""
    frame_size: tuple[int, int]
    """Height and width of its frames."""
    told: dict[str, Any]
    """What else its protocol has to say."""

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A new episode, which depends on the seed alone: (first frame, goal frame), uint8 [H, W, 3]."""
        ...

    def steps(self, action: Tensor) -> Iterable[Any]:
        """What `step` takes, one after another, for an action [A] of `space`. Ask for the next when the one
        before was done: it may depend on where that led."""
        ...

    def recorded(self, action: Tensor) -> Iterable[Any]:
        """The same for a recorded action: a class [], or the numbers [block x A] of its steps."""
        ...

    def step(self, action: Any) -> None:
        """Act once."""
        ...

    def frame(self) -> np.ndarray:
        """What is seen now, uint8 [H, W, 3]."""
        ...

    def succeeded(self) -> bool:
        """Whether the goal is reached now."""
        ...

    def state(self) -> dict[str, Any]:
        """The exact state, for exact dynamics."""
        ...


@runtime_checkable
class Located(Protocol):
    """What a `Task` may have besides: it knows from its state how far the goal is."""

    def distance(self) -> float:
        """What is left to the goal, >= 0, in a unit of its own; lower is nearer."""
        ...


# One planned action [A] and the environment it is for -> what that is stepped with, one after another.
Act = Callable[[Tensor, Task], Iterable[Any]]


def own(action: Tensor, task: Task) -> Iterable[Any]:
    """An action of the environment's own space."""
    return task.steps(action)


def in_turn(action: Tensor, low: float, high: float, size: int) -> list[np.ndarray]:
    """Steps of `size` numbers each, within their bounds, of one action after another [k size]."""
    return list(action.detach().cpu().float().clamp(low, high).view(-1, size).numpy())


class SceneTask:
    """The own scene: bring the camera, or the square, to where a few moves would."""

    name = "scene"
    shortest, block, place = True, 1, None
    told: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, height: int, width: int, goal_offset: int = 3, **options: Any) -> None:
        self._env = Scene(height=height, width=width, **options)
        self.goal_offset, self.frame_size = goal_offset, (height, width)
        side = 64 if self._env.moves == "camera" else min(height, width)
        if goal_offset < 1 or 2 * goal_offset * self._env.speed >= side:
            raise ConfigError(
                f"--goal-offset: expected 1 .. {(side - 1) // (2 * self._env.speed)} moves, from where no "
                f"way round is shorter, got {goal_offset}"
            )
        self.action_spec = self._env.action_spec
        self.space: Space = Discrete(len(MOVES))

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        frame = self._frame = self._env.reset(seed)
        rng = np.random.default_rng([seed, 1])
        across = int(rng.integers(-self.goal_offset, self.goal_offset + 1))
        down = (self.goal_offset - abs(across)) * int(rng.choice((-1, 1)))
        state = self._env.state()
        self._part = "camera" if self._env.moves == "camera" else "square"
        self._size = np.array((64, 64) if self._part == "camera" else self.frame_size[::-1])
        self._goal = (state[self._part] + self._env.speed * np.array([across, down])) % self._size
        return frame, self._env.draw(**_drawn(state | {self._part: self._goal}))

    def steps(self, action: Tensor) -> Iterable[Any]:
        return [int(action[0])]

    def recorded(self, action: Tensor) -> Iterable[Any]:
        return [int(action)]

    def step(self, action: Any) -> None:
        self._frame = self._env.step(int(action))[0]

    def frame(self) -> np.ndarray:
        return self._frame

    def succeeded(self) -> bool:
        return self.distance() == 0

    def distance(self) -> float:
        """In moves; positions wrap."""
        way = np.abs(self._env.state()[self._part] - self._goal)
        return float(np.minimum(way, self._size - way).sum() / self._env.speed)

    def state(self) -> dict[str, Any]:
        return self._env.state()


def _drawn(state: dict[str, Any]) -> dict[str, Any]:
    return {"camera": state["camera"], "position": state["square"]}


class PointMassTask:
    """The point mass: pass within `tolerance` of where `goal_offset` random pushes of one direction lead."""

    name = "point-mass"
    shortest, place = True, None
    told: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        *,
        height: int,
        width: int,
        goal_offset: int = 4,
        block: int = 1,
        tolerance: float = 0.03,
        **options: Any,
    ) -> None:
        self._env = PointMass(height=height, width=width, **options)
        self.goal_offset, self.frame_size = goal_offset, (height, width)
        reach = self._env.acceleration * goal_offset * (goal_offset + 1) / 2
        if reach > 0.45 or self._env.acceleration * goal_offset <= tolerance:
            raise ConfigError(
                f"--goal-offset: {goal_offset} full pushes lead {reach:.2f} widths of the picture away; "
                f"expected at most 0.45, and a last one of more than the tolerance of {tolerance:g}"
            )
        self.tolerance, self._reach = tolerance, reach
        self.action_spec = self._env.action_spec
        self.block = block
        self.space: Space = Continuous((-1.0,) * 2 * block, (1.0,) * 2 * block)

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        frame = self._frame = self._env.reset(seed)
        start = self._env.position
        rng = np.random.default_rng([seed, 1])
        # A full push along one axis and any along the other: no fewer steps reach it.
        way = np.array([rng.choice((-1.0, 1.0)), rng.uniform(-1, 1)])
        way = way if rng.integers(2) else way[::-1]
        inside = np.where(
            (start + self._reach * way > 0.05) & (start + self._reach * way < 0.95), 1, -1
        )
        self.goal = start + self._reach * way * inside
        return frame, self._env.draw(self.goal)

    def steps(self, action: Tensor) -> Iterable[Any]:
        return in_turn(action, -1, 1, 2)

    recorded = steps

    def step(self, action: Any) -> None:
        self._frame = self._env.step(np.asarray(action, np.float32))[0]

    def frame(self) -> np.ndarray:
        return self._frame

    def succeeded(self) -> bool:
        return self.distance() <= self.tolerance

    def distance(self) -> float:
        """In widths of the picture, which wraps."""
        return float(np.linalg.norm((self._env.position - self.goal + 0.5) % 1 - 0.5))

    def state(self) -> dict[str, Any]:
        return self._env.state()


def make_task(name: str, *, height: int, width: int, **options: Any) -> Task:
    """The task called `name` with frames of this size.

    Raises ConfigError on a name that nobody registered, an option that it does not have, a goal that cannot
    be set, and a task whose frames come out in another size.
    """
    try:
        task: Task = TASKS[name](height=height, width=width, **options)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in options:
            raise
        raise ConfigError(
            f"--{unknown[1].replace('_', '-')}: {name} has none; leave it out"
        ) from None
    shape = task.reset(0)[0].shape[:2]
    if shape != (height, width):
        raise ConfigError(
            f"{name}: it renders {shape[0]}x{shape[1]} px (height x width), and this run was trained on "
            f"{height}x{width}; plan with a run of that size"
        )
    return task
