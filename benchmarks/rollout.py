"""Generated frames a second, by denoising steps and batch; what caching and sharing save.

    rollout      whole videos, by the ops' implementations
    next_frame   one more frame behind some: recomputed (no cache), exact and keep
                 (flow/rollout.py says what they run)
    candidates   many ways on from one history: alone (one rollout after another), in one batch
                 with the history repeated, and sharing it

Not here: how good the frames are (colaworld/evaluation). Compilation is left out: a rollout's window
grows with every frame, and each length would be a graph of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from colaworld.models.world import World
from colaworld.models.world_model import WorldModel
from colaworld.runs.config import RunConfig

from . import models, shapes
from .case import Call, Case, Request, off
from .models import VARIANTS, autocast
from .shapes import Shape

_MODELS = ("tests/models/test_world_model.py", "tests/models/test_rollouts.py")
CACHES = {
    "recomputed": {"cache": "off"},
    "exact": {"cache": "on", "on_slide": "exact"},
    "keep": {"cache": "on", "on_slide": "keep"},
}
# Largest relative difference from the baseline's video: each step feeds the next one's input.
BOUNDS = {"float32": 1e-3, "bfloat16": 1e-1, "float64": 1e-5}
PLANNING_STEPS, PAPER_STEPS = 3, 10  # denoising steps in the paper: when planning, and otherwise
WINDOW = 16  # the latent frames that STDiT3's kernels are planned for
CANDIDATES, HORIZON = 64, 10  # as in VP2, behind 2 given frames


def cases(request: Request) -> Iterator[Case]:
    config = shapes.run_config(request.recipe, request.overrides)

    model = cache(partial(models.world_model, config, request.device))

    for make, shape in listed(config):
        for dtype in request.dtypes:
            yield make(Setup(config, shape, dtype, request.device, model))


def listed(config: RunConfig) -> Iterator[tuple[Callable[[Setup], Case], Shape]]:
    """What is timed at which sizes: T frames are generated, h are given, W are seen at once."""
    name, window = shapes.family(config), config.model.window
    for steps in sorted({PLANNING_STEPS, config.sampler.steps, PAPER_STEPS}):
        for batch in sorted({1, config.training.batch_size}):
            sizes = {"B": batch, "T": config.evaluation.horizon, "steps": steps}
            yield whole, Shape(f"{name}.steps{steps}.batch{batch}", sizes, "alone and in a batch")
    for held in (2, 4, 8, WINDOW - 1, WINDOW):
        sizes = {"B": 1, "h": held, "W": WINDOW, "steps": PLANNING_STEPS}
        why = "the window has slid" if held >= WINDOW else "the window fills up"
        yield next_frame, Shape(f"{name}.behind{held}", sizes, why)
    sizes = {"B": 1, "n": CANDIDATES, "h": 2, "T": HORIZON, "steps": PLANNING_STEPS}
    if "conditioner" in config.parts():
        slides, fits = sizes | {"W": window}, sizes | {"W": 2 + HORIZON}
        yield candidates, Shape(f"{name}.slides", slides, "as trained", heavy=True)
        yield candidates, Shape(f"{name}.fits", fits, "the window holds it all", heavy=True)


class Setup:
    """A world and its inputs at one shape, in one dtype."""

    def __init__(self, config: RunConfig, shape: Shape, dtype: str, device: str, made: Any) -> None:
        self.config, self.shape, self.dtype, self.device = config, shape, dtype, device
        self.number = torch.float64 if dtype == "float64" else torch.float32
        self.conditioned, self.made = "conditioner" in config.parts(), made

    @cached_property
    def model(self) -> WorldModel:
        model = copy.deepcopy(self.made()).to(self.number)
        if "W" in self.shape.sizes:
            model.config = replace(model.config, window=self.shape.sizes["W"])
        return model

    def world(self, **sampler: object) -> World:
        steps = self.shape.sizes["steps"]
        return World(self.model, replace(self.config.sampler, steps=steps, **sampler))

    def frames(self, batch: int, count: int) -> Tensor:
        g = torch.Generator().manual_seed(0)
        size = (batch, count, 3, *shapes.frame_size(self.config))
        return torch.rand(size, generator=g).to(self.device, self.number)

    def codes(self, *lead: int) -> Tensor:
        """Latent actions [*lead, N, d]; of no meaning where a recipe has no actions."""
        idm = self.config.model.idm
        size = (idm.tokens, idm.dim) if self.conditioned else (1, 1)
        g = torch.Generator().manual_seed(1)
        return torch.randn(*lead, *size, generator=g).to(self.device, self.number)

    def noise(self) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(0)

    def case(
        self, op: str, impls: Sequence[str], call: Any, *, frames: int, others: Sequence[str] = ()
    ) -> Case:
        """The first of `impls` is what the rest are held to; `others` make another video."""

        def prepared(name: str) -> Call:
            with autocast(self.device, self.dtype):
                made = call(name)

            def run() -> Tensor:
                with autocast(self.device, self.dtype):
                    return made()

            return run

        expected = cache(lambda: prepared(impls[0])().double())

        def verify(name: str) -> str | None:
            found = expected() if name in others else prepared(name)()
            return off("it", found, expected(), BOUNDS[self.dtype])

        more = {"counts": {"frames": frames}, "tests": ("tests/flow", *_MODELS, "tests/ops")}
        ways = (impls, lambda name: [prepared(name)])
        how = f"{self.dtype}/fwd"
        return Case.of("rollout", op, self.shape, how, *ways, verify=verify, **more)


def whole(setup: Setup) -> Case:
    """A call is a whole rollout of T frames from one given."""
    B, T = setup.shape.of("BT")

    @cache
    def inputs() -> tuple[Tensor, Tensor | None]:
        return setup.frames(B, 1), setup.codes(B, T) if setup.conditioned else None

    def call(name: str) -> Call:
        def video() -> Tensor:
            with VARIANTS[name].choice():
                world = setup.world()
                return world.rollout(*inputs(), generator=setup.noise(), frames=T + 1).frames

        return video

    return setup.case("rollout", ("eager", "default"), call, frames=B * T)


def next_frame(setup: Setup) -> Case:
    """A call is one `RolloutState.advance`, each from the same state."""
    held, window = setup.shape.of("hW")

    def call(name: str) -> Call:
        codes = setup.codes(1, held)
        given = {"codes": codes[:, : held - 2], "conditioned": setup.conditioned}
        world = setup.world(**CACHES[name])
        state = world.begin(setup.frames(1, held - 1), generator=setup.noise(), **given)
        state.advance(codes[:, held - 2 : held - 1])  # frame `held`: made, not yet cached
        return lambda: state.fork().advance(codes[:, held - 1 :])

    others = ("keep",) if held >= window else ()  # another video by its definition
    return setup.case("next_frame", tuple(CACHES), call, frames=1, others=others)


def candidates(setup: Setup) -> Case:
    """A call is all n rollouts of T frames from one history of h frames."""
    count, given, frames = setup.shape.of("nhT")

    @cache
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        codes = setup.codes(1, given - 1 + count * frames)
        past, ahead = codes.split([given - 1, count * frames], dim=1)
        return setup.frames(1, given), past, ahead.unflatten(1, (count, frames))

    def call(name: str) -> Call:
        def video() -> Tensor:
            history, past, codes = inputs()
            world, noise = setup.world(guidance=1.0), {"generator": setup.noise()}
            if name == "shared":
                return world.rollout_candidates(history, codes, context_codes=past, **noise)[0]
            each = torch.cat([past.expand(count, -1, -1, -1), codes[0]], dim=1)
            made = []
            for part in each.split(1 if name == "alone" else count):
                start = history.expand(len(part), -1, -1, -1, -1)
                made.append(world.rollout(start, part, generator=setup.noise()).generated)
            return torch.cat(made)

        return video

    # Every row of a batch draws noise of its own.
    impls = ("alone", "batch", "shared")
    return setup.case("candidates", impls, call, frames=count * frames, others=("batch",))
