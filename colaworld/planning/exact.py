"""Dynamics that are known: the point mass in closed form, the true simulator, and "nothing happens".

The last two bound what a world can reach: a planner in the true simulator from above, one that believes
the last frame stays from below. Not here: a learned world (dynamics.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from colaworld.planning.contracts import Reads, Seen
from colaworld.planning.tasks import Act, own


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
    """The true simulator: each candidate is played in a copy of the environment (the oracle).

    Args:
        device: of what it gives.
        last: read what there is after the last action alone, where a cost reads no other.
        repeat: times that the environment repeats each step (`MPCConfig.action_repeat`).
        act: what the environment does of a planned action; `own`: actions are those of `Task.space`.
        gives: "distances": how far the state is from the goal, nothing once it is reached; of tasks that tell it
            (`tasks.Located`).
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        last: bool = False,
        repeat: int = 1,
        act: Act = own,
        gives: Literal["frames", "distances"] = "frames",
    ) -> None:
        self.device, self.last, self.repeat, self.act = device, last, repeat, act
        self.gives: Reads = gives

    def begin(self, seen: Seen) -> Sequence[Any]:
        return [copy.deepcopy(task) for task in seen.tasks]

    def roll(self, state: Sequence[Any], actions: Tensor) -> Tensor:
        """actions [B, n, h, A] -> frames [B, n, T, 3, H, W] or distances [B, n, T], T = 1 with `last`, else h."""
        if self.gives == "frames":
            return self._film(state, actions, last=self.last)
        left = [
            [
                [0.0 if reached else now.distance() for now, reached in self._played(task, one)]
                for one in candidates
            ]
            for task, candidates in zip(state, actions.cpu(), strict=True)
        ]
        made = torch.tensor(left, device=self.device)
        return made[:, :, -1:] if self.last else made

    def imagine(self, state: Sequence[Any], actions: Tensor) -> Tensor | None:
        return self._film(state, actions[:, None], last=False)[:, 0]

    def _film(self, state: Sequence[Any], actions: Tensor, *, last: bool) -> Tensor:
        films = [
            np.stack(
                [
                    now.frame()
                    for number, (now, _) in enumerate(self._played(task, candidate), 1)
                    if not last or number == len(candidate)
                ]
            )
            for task, candidates in zip(state, actions.cpu(), strict=True)
            for candidate in candidates
        ]
        made = torch.from_numpy(np.stack(films)).to(self.device).movedim(-1, -3).float() / 255
        return made.unflatten(0, actions.shape[:2])

    def _played(self, task: Any, candidate: Tensor) -> Iterator[tuple[Any, bool]]:
        """A copy after each action, and whether it has reached the goal by then, where that is asked."""
        now, reached = copy.deepcopy(task), False
        for action in candidate:
            for one in self.act(action, now):
                for _ in range(self.repeat):
                    now.step(one)
                    reached = reached or (self.gives == "distances" and now.succeeded())
            yield now, reached


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
