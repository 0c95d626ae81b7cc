"""What a plan costs: the distance of what it leads to from a goal, and what its actions cost themselves.

Distances are squared errors summed over all numbers of an image, latent or feature, as in VP2 (Tian et
al. 2023, arXiv 2304.13723); `reduce="mean"` averages them. `over` says which steps count:

    "last"   the last one: be there at the end
    "all"    the sum over all: be there early (VP2)
    "best"   the nearest one: pass by

Not here: what is learnt of success and value (goal_head.py), encoders (encoders.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from colaworld.planning.config import Over
from colaworld.planning.contracts import Cost, Reads

Reduce = Literal["sum", "mean"]


class GoalDistance:
    """Squared distance from a goal, of frames, latents or states.

    Args:
        goal: [B, ...], one of each environment: a frame [B, 3, H, W] in [0, 1], a latent [B, C, h, w], a
            state [B, D].
        reads: which of them it is.
        over: which steps count.
        reduce: sum or mean over the numbers of a step.
        encoder: maps [rows, ...] of what is read to features [rows, ...]; the distance is between those.
            It is called without gradients, on the goal once.
        rows: how many the encoder is given at once.
    """

    def __init__(
        self,
        goal: Tensor,
        *,
        reads: Reads,
        over: Over = "last",
        reduce: Reduce = "sum",
        encoder: Callable[[Tensor], Tensor] | None = None,
        rows: int = 256,
    ) -> None:
        if over not in ("last", "all", "best") or reduce not in ("sum", "mean"):
            raise ValueError(
                f"cost: expected over 'last', 'all' or 'best' and reduce 'sum' or 'mean', got {over!r} and "
                f"{reduce!r}"
            )
        self.reads, self.over, self.reduce = reads, over, reduce
        self._encoder, self._rows = encoder, rows
        self.goal = self._features(goal)  # [B, ...]

    def __call__(self, imagined: Tensor, actions: Tensor) -> Tensor:
        """Raises ValueError where what is imagined has not the shape of the goal."""
        if self.over == "last":
            imagined = imagined[:, :, -1:]
        B, n, T = imagined.shape[:3]
        seen = self._features(imagined.flatten(0, 2)).unflatten(0, (B, n, T))
        if seen.shape[0] != self.goal.shape[0] or seen.shape[3:] != self.goal.shape[1:]:
            raise ValueError(
                f"cost: expected {self.reads} [{self.goal.shape[0]}, n, T, "
                f"{', '.join(map(str, self.goal.shape[1:]))}] as the goal's, got {list(seen.shape)}"
            )
        error = (seen - self.goal[:, None, None]).square().flatten(3)
        each = error.sum(-1) if self.reduce == "sum" else error.mean(-1)  # [B, n, T]
        return over_steps(each, self.over)

    def _features(self, read: Tensor) -> Tensor:
        if self._encoder is None:
            return read
        with torch.no_grad():
            return torch.cat([self._encoder(part) for part in read.split(self._rows)])


class TrueDistance:
    """`scale` times the squared distances that the true simulator tells (`exact.SimulatorDynamics`)."""

    reads: Reads = "distances"

    def __init__(self, *, scale: float = 1.0, over: Over = "last") -> None:
        self.scale, self.over = scale, over

    def __call__(self, imagined: Tensor, actions: Tensor) -> Tensor:
        """imagined: [B, n, T]."""
        if self.over == "last":
            imagined = imagined[:, :, -1:]
        return over_steps(self.scale * imagined.square(), self.over)


def over_steps(each: Tensor, over: Over) -> Tensor:
    """[B, n] of the costs [B, n, T] of steps; of "last" only the last one is given."""
    return each.amin(-1) if over == "best" else each.sum(-1)


class ActionPenalty:
    """What actions cost: squares of continuous ones from `idle`, a count of discrete ones that are not it."""

    reads: Reads = "nothing"

    def __init__(self, idle: Sequence[float] | Sequence[int] = (0,)) -> None:
        self.idle = torch.as_tensor(idle)

    def __call__(self, imagined: Tensor, actions: Tensor) -> Tensor:
        moved = actions - self.idle.to(actions)
        if actions.is_floating_point():
            return moved.square().sum(dim=(-1, -2))
        return moved.ne(0).any(-1).float().sum(-1)


class WeightedSum:
    """The sum of several costs, each with its weight: WeightedSum((1.0, goal), (0.01, ActionPenalty()))."""

    def __init__(self, *parts: tuple[float, Cost]) -> None:
        read = {cost.reads for _, cost in parts} - {"nothing"}
        if not parts or len(read) > 1:
            raise ValueError(
                f"cost: expected one or more that read the same, got {sorted(read) or 'none'}"
            )
        self.parts = parts
        self.reads: Reads = next(iter(read), "nothing")

    def __call__(self, imagined: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([weight * cost(imagined, actions) for weight, cost in self.parts]).sum(0)
