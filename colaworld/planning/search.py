"""One call for every planner: translates actions where a planner searches those of the other kind.

Not here: the planners, the loop (mpc.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from colaworld.planning.config import PLANNERS, PlannerConfig
from colaworld.planning.contracts import Objective, Plan, Start
from colaworld.planning.prior import CodeBigram
from colaworld.planning.spaces import Continuous, Discrete, Grid, Scores, Space


def search(
    objective: Objective,
    space: Space,
    config: PlannerConfig,
    *,
    horizon: int,
    batch: int,
    generator: torch.Generator,
    start: Start | None = None,
    prior: CodeBigram | None = None,
) -> Plan:
    """A plan of `horizon` actions of `space` for each of `batch` environments.

    Args:
        objective: what actions [B, n, h, A] cost.
        config: which planner; `register_planner` makes more known.
        generator: of all that is drawn, on the device of the actions. Equal states give equal plans.
        start: where to begin, see `Plan.after`.
        prior: of codes; for planners of discrete actions.

    Raises:
        ValueError: a prior that the planner cannot use, a start that does not fit.
        BudgetError: the objective's budget holds no round.
    """
    entry = PLANNERS[config.kind]
    start = start or Start()
    for argument, count in (("horizon", horizon), ("batch", batch)):
        if count < 1:
            raise ValueError(f"search: {argument}: expected 1 or more, got {count}")
    _check_start(start, space, batch, horizon)
    if prior is not None:
        _check_prior(prior, space, config.kind)
    options = {"horizon": horizon, "batch": batch, "generator": generator}
    translated: Grid | Scores
    if entry.plans == "discrete" and isinstance(space, Continuous):
        translated = Grid(space, getattr(config, "bins", 5))
    elif entry.plans == "continuous" and isinstance(space, Discrete):
        translated = Scores(space)
    else:
        return entry.plan(objective, space, config, start=start, prior=prior, **options)
    inner = _Translated(objective, translated)
    begun = _mapped(start, translated)
    plan = entry.plan(inner, translated.space, config, start=begun, prior=None, **options)
    kept = None if plan.kept is None else translated.out(plan.kept)
    return replace(plan, actions=translated.out(plan.actions), kept=kept)


def _check_start(start: Start, space: Space, batch: int, horizon: int) -> None:
    """ValueError unless it is of these environments, no longer than a plan, and of actions of the space."""
    for name, lead in (
        ("actions", (batch, f"0 .. {horizon}")),
        ("kept", (batch, "m", f"0 .. {horizon}")),
        ("last", (batch,)),
    ):
        given = getattr(start, name)
        if given is None:
            continue
        space.check(given, f"start.{name}")
        fits = given.ndim == len(lead) + 1 and given.shape[0] == batch
        if not fits or (name != "last" and given.shape[-2] > horizon):
            wanted = ", ".join(map(str, (*lead, space.width)))
            raise ValueError(f"start.{name}: expected [{wanted}], got {list(given.shape)}")


def _check_prior(prior: CodeBigram, space: Space, kind: str) -> None:
    """ValueError unless the planner draws codes, and the prior is of them."""
    plans = PLANNERS[kind].plans
    if not isinstance(space, Discrete) or plans == "continuous":
        raise ValueError(
            f"prior: {kind} plans {plans} actions here, and a data prior is of codes; use "
            "shooting, categorical or beam over codes, or leave it out"
        )
    if tuple(prior.first.shape) != (space.tokens, space.size):
        tokens, size = prior.first.shape
        raise ValueError(
            f"prior: it is of {size} codes in {tokens} token{'s' * (tokens > 1)}, and those planned are "
            f"{space.size} in {space.tokens}"
        )


class _Translated(Objective):
    """An objective of other actions; calls are counted by the one inside."""

    def __init__(self, inner: Objective, translated: Grid | Scores) -> None:
        self._inner, self._translated = inner, translated

    @property
    def calls(self) -> int:  # type: ignore[override]
        return self._inner.calls

    @property
    def stride(self) -> int:  # type: ignore[override]
        return self._inner.stride

    @property
    def budget(self) -> int | None:  # type: ignore[override]
        return self._inner.budget

    def __call__(self, actions: Tensor) -> Tensor:
        return self._inner(self._translated.out(actions))


def _mapped(start: Start, translated: Grid | Scores) -> Start:
    into: Any = translated.into
    return Start(
        None if start.actions is None else into(start.actions),
        None if start.kept is None else into(start.kept),
        None if start.last is None else into(start.last),
    )
