"""Dynamics that are known: the point mass in closed form, the true simulator, and "nothing happens".

The last two bound what a world can reach: a planner in the true simulator from above, one that believes
the last frame stays from below. Not here: a learned world (dynamics.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colaworld.planning.contracts import Reads, Seen


class PointMassDynamics:
    """`envs.point_mass` in torch: states (x, y, vx, vy) of all candidates at once."""

    gives: Reads = "states"

    def __init__(self, *, step: float = 0.02) -> None:
        self.step = step

    def begin(self, seen: Seen) -> Tensor:
        """[B, 4] of the tasks' states."""
        rows = [[*(s := task.state())["position"], *s["velocity"]] for task in seen.tasks]
        return torch.tensor(np.array(rows), dtype=torch.float32)

    def roll(self, state: Tensor, actions: Tensor) -> Tensor:
        """actions [B, n, h, 2] -> [B, n, h, 4]."""
        velocity = state[:, None, None, 2:] + self.step * actions.cumsum(2)
        position = state[:, None, None, :2] + velocity.cumsum(2)
        return torch.cat([position, velocity], dim=-1)

    def imagine(self, state: Tensor, actions: Tensor) -> Tensor | None:
        return None


class SimulatorDynamics:
    """The true simulator: each candidate, actions of `Task.space`, is played in a copy of the environment
    (the oracle).

    Args:
        device: of the frames it gives.
        last: draw the frame after the last action alone, where a cost reads no other.
        repeat: times that the environment repeats each step (`MPCConfig.action_repeat`).
    """

    gives: Reads = "frames"

    def __init__(
        self, *, device: torch.device | str = "cpu", last: bool = False, repeat: int = 1
    ) -> None:
        self.device, self.last, self.repeat = device, last, repeat

    def begin(self, seen: Seen) -> Sequence[Any]:
        return [copy.deepcopy(task) for task in seen.tasks]

    def roll(self, state: Sequence[Any], actions: Tensor) -> Tensor:
        """actions [B, n, h, A] -> frames [B, n, T, 3, H, W], T = 1 with `last`, else h."""
        return self._roll(state, actions, last=self.last)

    def imagine(self, state: Sequence[Any], actions: Tensor) -> Tensor | None:
        return self._roll(state, actions[:, None], last=False)[:, 0]

    def _roll(self, state: Sequence[Any], actions: Tensor, *, last: bool) -> Tensor:
        films = []
        for task, candidates in zip(state, actions.cpu(), strict=True):
            for candidate in candidates:
                played, frames = copy.deepcopy(task), []
                for number, action in enumerate(candidate, 1):
                    for one in played.steps(action):
                        for _ in range(self.repeat):
                            played.step(one)
                    if not last or number == len(candidate):
                        frames.append(played.frame())
                films.append(np.stack(frames))
        made = torch.from_numpy(np.stack(films)).to(self.device).movedim(-1, -3).float() / 255
        return made.unflatten(0, actions.shape[:2])


class CopyDynamics:
    """The current frame stays, whatever is done: every plan costs the same."""

    gives: Reads = "frames"

    def begin(self, seen: Seen) -> Tensor:
        return seen.frames[:, -1]

    def roll(self, state: Tensor, actions: Tensor) -> Tensor:
        """actions [B, n, h, A] -> frames [B, n, h, 3, H, W]."""
        B, n, h = actions.shape[:3]
        return state[:, None, None].expand(B, n, h, -1, -1, -1)

    def imagine(self, state: Tensor, actions: Tensor) -> Tensor | None:
        return self.roll(state, actions[:, None])[:, 0]
