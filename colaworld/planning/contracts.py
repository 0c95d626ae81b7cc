"""What planning is asked with and answers with: dynamics, cost, an objective, a plan. Knows no model.

    seen --Dynamics.begin--> state --roll(actions)--> what is imagined --Cost--> numbers --planner--> Plan

Shape legend: B environments, n candidates, h actions of a plan, A what one action holds: numbers of a
continuous one, tokens of a discrete one (int64). Not here: any dynamics, cost or planner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Reads = Literal["frames", "latents", "states", "distances", "nothing"]


@dataclass(frozen=True)
class Seen:
    """What there is to plan from, of B environments."""

    frames: Tensor
    """[B, c, 3, H, W] floats in [0, 1]: the last c real frames, the current one last."""
    generator: torch.Generator
    """Of whatever is random inside the dynamics."""
    tasks: Sequence[Any] = ()
    """The environments themselves (`tasks.Task`), for the true simulator alone."""


class Dynamics(Protocol):
    """What happens under actions: a world, an exact simulator, or your own."""

    gives: Reads
    """What `roll` returns."""

    def begin(self, seen: Seen) -> Any:
        """A state of B rows to roll on from, as often as one likes."""
        ...

    def roll(self, state: Any, actions: Tensor) -> Tensor:
        """actions [B, n, h, A] -> [B, n, T, ...]: frames [.., 3, H, W] in [0, 1], latents [.., C, h', w'],
        states [.., D] or distances from the goal [..], T of them, the last one after all h actions. The state stays as it is."""
        ...

    def imagine(self, state: Any, actions: Tensor) -> Tensor | None:
        """The frames [B, h, 3, H, W] under actions [B, h, A], for people to see; None: there are none."""
        ...


class Cost(Protocol):
    """How far from what is wanted; lower is better."""

    reads: Reads
    """What it must be given: what the dynamics gives, or "nothing" where actions alone count."""

    def __call__(self, imagined: Tensor, actions: Tensor) -> Tensor:
        """imagined [B, n, T, ...] and actions [B, n, h, A] -> [B, n]."""
        ...


class BudgetError(ValueError):
    """A budget in model calls that does not hold one round of a planner."""


class Objective:
    """What a planner minimises, with its model calls counted.

    Args:
        cost: actions [B, n, h, A] -> [B, n].
        budget: model calls for each environment, None: without end. A call is one step of one
            candidate; a planner makes no round that would exceed it.
        stride: h is a multiple of it, as a dynamics has it that makes several frames at once.
    """

    def __init__(
        self, cost: Callable[[Tensor], Tensor], *, budget: int | None = None, stride: int = 1
    ) -> None:
        self._cost, self.budget, self.calls = cost, budget, 0
        self.stride = stride

    @classmethod
    def of(
        cls,
        dynamics: Dynamics,
        cost: Cost,
        state: Any,
        *,
        budget: int | None = None,
        rows: int = 256,
    ) -> Objective:
        """The cost of what the dynamics imagines from a state.

        `rows`: candidates, over all environments, that are rolled out and held at once. A dynamics that makes
        several frames at once says so: `stride`, an attribute that others lack.
        Raises ValueError where the cost reads what the dynamics does not give.
        """
        if cost.reads not in ("nothing", dynamics.gives):
            raise ValueError(
                f"cost: it reads {cost.reads}, and these dynamics give {dynamics.gives}; choose both alike"
            )

        def priced(actions: Tensor) -> Tensor:
            parts = actions.split(max(1, rows // len(actions)), dim=1)
            return torch.cat([cost(dynamics.roll(state, part), part) for part in parts], dim=1)

        return cls(priced, budget=budget, stride=getattr(dynamics, "stride", 1))

    def affords(self, calls: int) -> bool:
        """Whether so many more fit into the budget."""
        return self.budget is None or self.calls + calls <= self.budget

    def require(self, calls: int, what: str) -> None:
        """BudgetError unless so many more fit."""
        if not self.affords(calls):
            raise BudgetError(
                f"mpc.calls: {what} needs {calls} model calls, {(self.budget or 0) - self.calls} are left of "
                f"{self.budget}; allow more, or plan with fewer candidates or a shorter horizon"
            )

    @torch.no_grad()
    def __call__(self, actions: Tensor) -> Tensor:
        """[B, n] of actions [B, n, h, A]. Raises ValueError on costs of another shape, or not finite."""
        B, n, h = actions.shape[:3]
        self.calls += n * h
        cost = self._cost(actions)
        if cost.shape != (B, n):
            raise ValueError(f"cost: expected [{B}, {n}], one a candidate, got {list(cost.shape)}")
        if not cost.isfinite().all():
            raise ValueError("cost: expected finite numbers, got infinite ones or NaN")
        return cost


@dataclass(frozen=True)
class Start:
    """What is known before a plan is made, of B environments; each is None where it is not."""

    actions: Tensor | None = None
    """[B, s, A]: how the plan may begin, s <= h; the rest is filled as each planner does."""
    kept: Tensor | None = None
    """[B, m, s, A]: further beginnings."""
    last: Tensor | None = None
    """[B, A]: the action carried out last, which a data prior goes on from."""


@dataclass(frozen=True)
class Plan:
    """What a planner chose for B environments."""

    actions: Tensor  # [B, h, A]
    cost: Tensor  # [B] of these actions
    calls: int  # model calls for each environment
    lowest: Tensor  # [B, rounds] lowest cost of any candidate of each round
    kept: Tensor | None = None  # [B, m, h, A] good candidates beside it

    def after(self, steps: int) -> Start:
        """Where the next plan begins when `steps` actions of this one have been carried out.

        Raises ValueError on none, and on more than there are.
        """
        if not 1 <= steps <= self.actions.shape[1]:
            raise ValueError(
                f"Plan.after: steps: expected 1 .. {self.actions.shape[1]}, got {steps}"
            )
        kept = None if self.kept is None else self.kept[:, :, steps:]
        return Start(self.actions[:, steps:], kept, self.actions[:, steps - 1])

    def rows(self, chosen: Tensor) -> Plan:
        """That of some of the environments, by number [B']."""
        kept = None if self.kept is None else self.kept[chosen]
        return Plan(self.actions[chosen], self.cost[chosen], self.calls, self.lowest[chosen], kept)


def best(candidates: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Of candidates [B, n, h, A] with costs [B, n] those with the lowest: [B, h, A] and [B]."""
    lowest, index = cost.min(dim=1)
    return candidates[torch.arange(len(cost), device=cost.device), index], lowest


def elites(candidates: Tensor, cost: Tensor, count: int) -> Tensor:
    """The `count` candidates of the lowest costs, best first: [B, count, h, A]. Ties: the first."""
    order = cost.argsort(dim=1, stable=True)[:, :count]
    return candidates[torch.arange(len(cost), device=cost.device)[:, None], order]


def cheaper(held: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of two sequences [B, h, A] with costs [B] the cheaper one of each row; alike: the first."""
    wins = found[1] < held[1]
    return torch.where(wins[:, None, None], found[0], held[0]), torch.where(wins, found[1], held[1])
