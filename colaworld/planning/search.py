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
        ValueError: a prior that the planner cannot use, a start of other actions.
        BudgetError: the objective's budget holds no round.
    """
    entry = PLANNERS[config.kind]
    start = start or Start()
    for name in ("actions", "kept", "last"):
        given = getattr(start, name)
        if given is not None:
            space.check(given, f"start.{name}")
    if prior is not None and not (isinstance(space, Discrete) and entry.plans != "continuous"):
        raise ValueError(
            f"prior: {config.kind} plans {entry.plans} actions here, and a data prior is of codes; use "
            "shooting, categorical or beam over codes, or leave it out"
        )
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


class _Translated(Objective):
    """An objective of other actions; calls are counted by the one inside."""

    def __init__(self, inner: Objective, translated: Grid | Scores) -> None:
        self._inner, self._translated = inner, translated

    @property
    def calls(self) -> int:  # type: ignore[override]
        return self._inner.calls

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
