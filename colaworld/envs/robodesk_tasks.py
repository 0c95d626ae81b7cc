"""The seven tasks of VP2 on RoboDesk: when each is solved, and a scripted hand that often solves it.

Not here: the simulator. Everything follows from `RoboDesk.state()`: metres in the world's frame, x to the right, y away
from the arm's base, z up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

BLOCKS = ("flat_block", "upright_block", "ball")
COLOURS = ("red", "green", "blue")
TASKS = (
    *(f"push_{colour}" for colour in COLOURS),
    *("open_slide", "open_drawer", "flat_block_off_table", "upright_block_off_table"),
)
_OFF = TASKS[-2:]


def success(task: str, state: Mapping[str, Any]) -> bool:
    """Whether a state solves the task, by the thresholds of robodesk 1.0.0 (`reward="success"`).

    Off the table counts only while the other two blocks are within 1 cm of where they stood at `reset`. The
    package compares them with a view of the present, so that it always holds there; VP2 mends it as we do.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if task.startswith("push_"):
        return bool(state["lights"][task.removeprefix("push_")] < -0.00453)
    if task == "open_slide":
        return bool(state["slide"] > 0.55)
    if task == "open_drawer":
        return bool(state["drawer"] < -0.2)
    block = task.removesuffix("_off_table")
    moved = {
        b: np.linalg.norm(state["blocks"][b] - state["start"][b]) for b in BLOCKS if b != block
    }
    return bool(state["blocks"][block][2] < 0.6 and max(moved.values()) < 0.01)


def thing(task: str, state: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What a task is about: its state [D], metres, and the place [3] where a hand finds it."""
    if task.startswith("push_"):
        colour = task.removeprefix("push_")
        return np.array([state["lights"][colour]]), state["buttons"][colour]
    if task in ("open_slide", "open_drawer"):
        name = task.removeprefix("open_")
        return np.array([state[name]]), state[f"{name}_handle"]
    place = state["blocks"][task.removesuffix("_off_table")]
    return place, place


class Hand:
    """Carries one task out, step by step, from the state and how far it has come.

    It rises above the table, goes to a place beside the thing, and from there on through it.
    """

    def __init__(self, task: str) -> None:
        self.task, self._stage = task, 0

    def act(self, state: Mapping[str, Any]) -> np.ndarray:
        """(x, y, z, wrist, gripper) in [-1, 1]."""
        hand = state["hand"]
        rise = np.array([hand[0], min(hand[1], 0.5), 0.93])
        path = [rise, *self._path(state)]
        while self._stage < len(path) - 1 and np.abs(path[self._stage] - hand).max() < 0.03:
            self._stage += 1
        if self.task in _OFF and self._stage == 3 and hand[0] > path[3][0] - 0.12:
            self._stage = 1  # it has passed the block: once more from behind
        reach = 10.0 * (path[self._stage] - hand)
        reach /= max(1.0, float(np.abs(reach).max()))
        return np.array([*reach, 0.0, -1.0])

    def _path(self, state: Mapping[str, Any]) -> list[np.ndarray]:
        place = thing(self.task, state)[1]
        if self.task.startswith("push_"):
            return _beside(place, (0, 0, 0.15), (0, 0, 0.02))
        if self.task == "open_slide":
            return _beside(place, (-0.12, -0.15, 0.02), (-0.1, -0.02, 0), (0.1, 0, 0))
        if self.task == "open_drawer":
            return _beside(place, (0, 0.02, 0.2), (0, 0.02, -0.02), (0, -0.1, -0.03))
        x, y, _ = place
        low = 0.805  # the fingers end 4 cm below the hand, and the table at 0.76
        return _beside((x, y, low), (-0.15, 0, 0.145), (-0.13, 0, 0), (0.15, 0, 0))


def _beside(place: Any, *offsets: tuple[float, float, float]) -> list[np.ndarray]:
    return [np.add(place, offset) for offset in offsets]
