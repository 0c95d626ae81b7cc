"""A decision of a planner: seconds, and model calls a second, at 50 and 200 candidates.

    plain        a plain loop in torch: reference ops, no cache, so each step and each denoising step sees
                 the whole window again; all candidates in one batch
    one-by-one   ours, with the history cached, one candidate after another
    shared       ours, as `colaworld plan` does it: all candidates in one batch that share the cached history

A decision reads the history, rolls out the candidates, prices them against a goal image and takes the best.
A model call is one step of one candidate. Every implementation is held to the costs of the plain one. Not
here: which planner finds what (tests/planning), rollouts as such (rollout.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor

from colaworld.planning.contracts import Objective, Seen, best
from colaworld.planning.costs import GoalDistance
from colaworld.planning.dynamics import WorldDynamics
from colaworld.runs.config import RunConfig

from . import models, shapes, timing
from .case import Call, Case, Request, Skipped, off
from .models import VARIANTS, autocast
from .rollout import BOUNDS, HORIZON, PLANNING_STEPS, Setup
from .shapes import Shape

GIVEN = 2  # frames of history, as in VP2 and by default of `colaworld plan`
SHORT = 2  # steps of a plan on a CPU: nano's window of four frames is full then
CANDIDATES = (50, 200)  # the paper's and VP2's own
MOST = 5  # samples where a call takes seconds
TESTS = ("tests/planning/test_dynamics.py", "tests/models/test_rollouts.py")
WAYS = {  # which ops, which cache, how many candidates at once (None: all)
    "plain": ("eager", "off", None),
    "one-by-one": ("default", "auto", 1),
    "shared": ("default", "auto", None),
}


def cases(request: Request) -> Iterator[Case | Skipped]:
    config = shapes.run_config(request.recipe, request.overrides)
    if "conditioner" not in config.parts():
        yield Skipped(f"decision/{request.recipe}", "a video model without actions plans nothing")
        return

    model = cache(partial(models.world_model, config, request.device))

    for shape in listed(config):
        for dtype in request.dtypes:
            yield decision(Setup(config, shape, dtype, request.device, model))


def listed(config: RunConfig) -> Iterator[Shape]:
    """n candidates of h steps behind c frames. Heavy ones, VP2's horizon among them, are for a GPU, or for
    a CPU that has the time."""
    name = shapes.family(config)
    for steps, kind, why in ((SHORT, "", "the window is full"), (HORIZON, ".vp2", "VP2's horizon")):
        for count in CANDIDATES:
            sizes = {"B": 1, "n": count, "c": GIVEN, "h": steps, "steps": PLANNING_STEPS}
            heavy = bool(kind) or count > min(CANDIDATES)
            yield Shape(f"{name}{kind}.n{count}", sizes, why, heavy=heavy)


def decision(setup: Setup) -> Case:
    """A call is a decision; its result are the costs of all candidates, [1, n]."""
    count, given, steps = setup.shape.of("nch")

    def prepared(name: str) -> Call:
        variant, caching, rows = WAYS[name]
        world = setup.world(guidance=1.0, cache=caching)
        dynamics = WorldDynamics(world)
        frames = setup.frames(1, given + 1)
        history, goal = frames[:, :given], frames[:, given]
        g = torch.Generator().manual_seed(2)
        shape = (1, count, steps, world.tokens)
        actions = torch.randint(world.codebook_size or 1, shape, generator=g).to(setup.device)

        def decide() -> Tensor:
            with autocast(setup.device, setup.dtype), VARIANTS[variant].choice():
                state = dynamics.begin(Seen(history, setup.noise()))
                cost = GoalDistance(goal, reads="frames", over="all")
                objective = Objective.of(dynamics, cost, state, rows=rows or count)
                costs = objective(actions)
                best(actions, costs)
            return costs

        return decide

    expected = cache(lambda: prepared("plain")().double())

    def verify(name: str) -> str | None:
        found = expected() if name == "plain" else prepared(name)()
        return off("cost", found, expected(), BOUNDS[setup.dtype])

    return Case.of(
        *("planning", "decision", setup.shape, f"{setup.dtype}/fwd", WAYS),
        lambda name: [prepared(name)],
        verify=verify,
        counts={"calls": count * steps},
        details=lambda name, p50: {"s_per_decision": timing.short(p50 / 1e3)},
        tests=TESTS,
        most=MOST,
        ours=True,
    )
