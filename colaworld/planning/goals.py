"""Starts and goals of episodes: made once, whoever plays them.

    goals = Goals(task, seeds);  goals.begin(seed) -> Begun

Not here: the file they are kept in (goals_file.py), the environments.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from colaworld.planning.tasks import Task


class Begun(NamedTuple):
    """An environment at the start of an episode."""

    task: Task
    frame: np.ndarray  # [H, W, 3] uint8, of the start
    goal: np.ndarray  # the same of the goal


def begin(task: Task, seed: int) -> Begun:
    """A new episode of `task`."""
    return Begun(task, *task.reset(seed))


class Goals:
    """The episodes of some seeds. Each is made when it is first asked for, and copied for whoever plays it.

    Args:
        task: the environment, of which every episode gets a copy.
        seeds: of the episodes.
    """

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        self._task, self.seeds = task, tuple(seeds)
        self._begun: dict[int, Begun] = {}

    def begin(self, seed: int) -> Begun:
        """The episode of a seed, to be played."""
        if seed not in self._begun:
            self._begun[seed] = begin(copy.deepcopy(self._task), seed)
        one = self._begun[seed]
        return one._replace(task=copy.deepcopy(one.task))

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """First frames and goal frames of all, uint8 [n, H, W, 3]."""
        all_begun = [self.begin(seed) for seed in self.seeds]
        return np.stack([one.frame for one in all_begun]), np.stack([one.goal for one in all_begun])

    @property
    def hash(self) -> str:
        """As `hash_of` gives it."""
        return hash_of(np.asarray(self.seeds, np.int64), *self.frames())


def hash_of(seeds: np.ndarray, first: np.ndarray, goals: np.ndarray) -> str:
    """16 hex digits over seeds [n], first frames and goal frames [n, H, W, 3]."""
    said = hashlib.sha256(seeds.tobytes())
    said.update(np.array(first.shape, np.int64).tobytes())
    said.update(first.tobytes())
    said.update(goals.tobytes())
    return said.hexdigest()[:16]
