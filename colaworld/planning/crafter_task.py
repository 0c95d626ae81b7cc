"""Crafter with a goal: `reach` a place a few moves away, or `collect` the wood of a tree.

No way is shorter than the goal's (a breadth-first search over places and facings); a creature that steps into it makes it
longer. A goal frame is what the game shows at the end of that way, its creatures moved on. Not here: other resources.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor

from colaworld.config import ConfigError
from colaworld.envs.crafter import VISIBLE_ACTIONS, Crafter
from colaworld.planning.spaces import Discrete, Space

_WAYS = {1: (-1, 0), 2: (1, 0), 3: (0, -1), 4: (0, 1)}  # by action
_DO = 5
Where = tuple[tuple[int, int], tuple[int, int]]  # place and facing


class CrafterTask:
    """Crafter from a random place of its world. Frames of 7 x 9 cells show the map, of 9 x 9 the inventory too."""

    name = "crafter"
    shortest, block, place = True, 1, None

    def __init__(
        self,
        *,
        height: int,
        width: int,
        goal_offset: int = 4,
        task: Literal["reach", "collect"] = "reach",
    ) -> None:
        if task not in ("reach", "collect"):
            raise ConfigError(f"--task: crafter has reach and collect, got {task!r}")
        least = 2 if task == "collect" else 1
        if not least <= goal_offset <= 30:
            raise ConfigError(f"--goal-offset: expected {least} .. 30 steps, got {goal_offset}")
        view = {7: "map", 9: "full"}.get(height // max(width // 9, 1))
        if view is None or width % 9 or height % (width // 9):
            raise ConfigError(
                f"crafter: its frames are 7k x 9k or 9k x 9k px (height x width), and this run was trained on "
                f"{height}x{width}"
            )
        actions = VISIBLE_ACTIONS if task == "reach" else (*VISIBLE_ACTIONS, "do")
        self._env = Crafter(cell=width // 9, view=view, actions=actions, start="varied")  # type: ignore[arg-type]
        self.task, self.goal_offset, self.frame_size = task, goal_offset, (height, width)
        self.told = {"task": task, "view": view}
        self.action_spec = self._env.action_spec
        self.space: Space = Discrete(len(actions))

    def reset(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, 2])
        self._env.reset(seed)
        for _ in range(200):
            self._frame, self._wood = self._env.draw(), self.state()["inventory"]["wood"]
            ways = self._ways()
            for at in rng.permutation(len(ways)):
                goal = self._walked(*ways[at])
                if goal is not None:
                    return self._frame, goal
            self._env.move_player(rng)
        raise ConfigError(
            f"--goal-offset: in the world of seed {seed} no goal lies {self.goal_offset} steps from any of 200 places"
        )

    def steps(self, action: Tensor) -> Iterable[Any]:
        return [int(action[0])]

    def recorded(self, action: Tensor) -> Iterable[Any]:
        return [int(action)]

    def step(self, action: Any) -> None:
        self._frame, _ = self._env.step(action)

    def frame(self) -> np.ndarray:
        return self._frame

    def succeeded(self) -> bool:
        now = self._env.state()
        if self.task == "reach":
            return bool(now["position"] == self._target)
        return bool(now["inventory"]["wood"] > self._wood)

    def distance(self) -> float:
        """The fewest actions that reach it while creatures stay; of more than twice the goal's, that and one."""
        if self.succeeded():
            return 0.0
        front = [self._where()]
        ways, last = {front[0]: list[int]()}, int(self.task == "collect")  # the last action is `do`
        for made in range(2 * self.goal_offset + 1 - last):
            if any(self._reached(where) for where in front):
                return float(made + last)
            front = list(self._following(front, ways))
        return 2.0 * self.goal_offset + 1

    def state(self) -> dict[str, Any]:
        return self._env.state()

    def _where(self) -> Where:
        now = self._env.state()
        x, y = now["facing"]
        return now["position"], (int(x), int(y))

    def _reached(self, where: Where) -> bool:
        """Whether it is there; of a tree, before it."""
        return self._faces_tree(where) if self.task == "collect" else where[0] == self._target

    def _ways(self) -> list[tuple[list[int], tuple[int, int]]]:
        """A shortest way to each goal that is `goal_offset` steps away, and the place where it ends."""
        front = [self._where()]
        ways, seen = {front[0]: list[int]()}, set[tuple[int, int]]()
        for made in range(self.goal_offset + 1):
            if self.task == "collect":
                ahead = [where for where in front if self._faces_tree(where)]
                if made == self.goal_offset - 1 or ahead:  # in the second case a tree is nearer
                    right = made == self.goal_offset - 1
                    return [([*ways[where], _DO], where[0]) for where in ahead if right]
            elif made == self.goal_offset:
                return [(ways[where], where[0]) for where in front if where[0] not in seen]
            seen |= {place for place, _ in front}
            front = list(self._following(front, ways))
        raise AssertionError("the last round returns")

    def _following(self, front: list[Where], ways: dict[Where, list[int]]) -> Iterator[Where]:
        """Where one more move leads for the first time; its way joins `ways`."""
        for place, facing in front:
            for action, (dx, dy) in _WAYS.items():
                cell = (place[0] + dx, place[1] + dy)
                to = (cell if self._env.walkable(cell) else place, (dx, dy))
                if to not in ways:
                    ways[to] = [*ways[place, facing], action]
                    yield to

    def _faces_tree(self, where: Where) -> bool:
        (x, y), (dx, dy) = where
        return self._env.material((x + dx, y + dy)) == "tree"

    def _walked(self, way: list[int], place: tuple[int, int]) -> np.ndarray | None:
        """The goal frame at the end of a way to a place; None where a creature stands in it."""
        self._target = place
        ahead = copy.deepcopy(self)
        for action in way:
            ahead.step(action)
        arrived = ahead.state()["position"] == place and ahead.succeeded()
        return ahead.frame() if arrived else None
