"""Generated frames a second, by denoising steps and batch; what remembering and sharing save.

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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from colaworld.models.world import World
from colaworld.models.world_model import WorldModel
from colaworld.runs.config import RunConfig

from . import shapes
from .case import Call, Case, Provider, Request
from .models import Whole, build
from .shapes import Shape
from .variants import VARIANTS, autocast

TESTS = (
    "tests/flow",
    "tests/models/test_world_model.py",
    "tests/models/test_rollouts.py",
    "tests/ops",
)
NAMES = ("eager", "default")
# Largest relative difference from the eager video: each step feeds the next one's input.
BOUNDS = {"float32": 1e-3, "bfloat16": 1e-1, "float64": 1e-5}


def cases(request: Request) -> Iterator[Case]:
    config = shapes.run_config(request.recipe, request.overrides)

    @cache
    def model() -> WorldModel:
        height, width = shapes.frame_size(config)
        g = torch.Generator().manual_seed(0)
        frames = torch.rand(2, config.data.frames_per_clip, 3, height, width, generator=g)
        made = build("world_model", config, frames)
        assert isinstance(made, Whole)
        return made.model.to(request.device)

    for makes, listed in (
        (_case, shapes.rollout(config)),
        (_next_frame, shapes.next_frame(config)),
        (_candidates, shapes.candidates(config)),
    ):
        for shape in listed:
            for dtype in request.dtypes:
                if makes is not _candidates or "conditioner" in config.parts():
                    yield makes(config, shape, dtype, request.device, model)


def _case(config: RunConfig, shape: Shape, dtype: str, device: str, model) -> Case:
    B, T = shape.sizes["B"], shape.sizes["T"]
    sampler = replace(config.sampler, steps=shape.sizes["steps"])
    wide = torch.float64 if dtype == "float64" else torch.float32

    @cache
    def world() -> WorldModel:
        return copy.deepcopy(model()).to(wide)

    expected = cache(lambda: video("eager").double())

    @cache
    def inputs() -> tuple[Tensor, Tensor | None]:
        g = torch.Generator().manual_seed(0)
        height, width = shapes.frame_size(config)
        history = torch.rand(B, 1, 3, height, width, generator=g).to(device, wide)
        if "conditioner" not in config.parts():
            return history, None
        codes = torch.randn(B, T, config.model.idm.tokens, config.model.idm.dim, generator=g)
        return history, codes.to(device, wide)

    def video(name: str) -> Tensor:
        history, codes = inputs()
        with VARIANTS[name].choice(), autocast(device, dtype):
            made = World(world(), sampler).rollout(
                history,
                codes,
                generator=torch.Generator(device=device).manual_seed(0),
                frames=T + 1,
            )
        return made.frames

    def verify(name: str) -> str | None:
        return _gap(video(name), expected(), dtype)

    def provider(name: str) -> Provider:
        def calls() -> Sequence[Call]:
            return [lambda: video(name)]

        return calls

    return Case(
        suite="rollout",
        op="rollout",
        shape=shape.name,
        sizes=shape.sizes,
        dtype=dtype,
        mode="fwd",
        providers={name: provider(name) for name in NAMES},
        tests=TESTS,
        verify=verify,
        counts={"frames": B * T},
    )


def _in_window(model: WorldModel, window: int, dtype: torch.dtype) -> WorldModel:
    """The same weights, seeing `window` frames at once."""
    made = copy.deepcopy(model).to(dtype)
    made.config = replace(made.config, window=window)
    return made


def _wide(dtype: str) -> torch.dtype:
    return torch.float64 if dtype == "float64" else torch.float32


def _drawn(config: RunConfig, *shape: int, device: str, dtype: str) -> Tensor:
    """Latent actions [*shape, N, d]; zeros without tokens where a recipe has no actions."""
    g = torch.Generator().manual_seed(1)
    sizes = (1, 1)
    if "conditioner" in config.parts():
        sizes = (config.model.idm.tokens, config.model.idm.dim)
    return torch.randn(*shape, *sizes, generator=g).to(device, _wide(dtype))


REMEMBERING = {
    "recomputed": {"cache": "off"},
    "exact": {"cache": "on", "slide": "exact"},
    "keep": {"cache": "on", "slide": "keep"},
}


def _next_frame(config: RunConfig, shape: Shape, dtype: str, device: str, model) -> Case:
    """A call is one `RolloutState.advance`, each from the same state."""
    held, window = shape.sizes["h"], shape.sizes["W"]
    conditioned = "conditioner" in config.parts()

    @cache
    def world() -> WorldModel:
        return _in_window(model(), window, _wide(dtype))

    def step(name: str) -> Call:
        sampler = replace(config.sampler, steps=shape.sizes["steps"], **REMEMBERING[name])
        g = torch.Generator(device=device).manual_seed(0)
        height, width = shapes.frame_size(config)
        size = (1, held - 1, 3, height, width)
        frames = torch.rand(size, generator=g, device=device, dtype=_wide(dtype))
        codes = _drawn(config, 1, held, device=device, dtype=dtype)
        given = {"codes": codes[:, : held - 2], "conditioned": conditioned}
        with autocast(device, dtype):
            state = World(world(), sampler).begin(frames, generator=g, **given)
            state.advance(codes[:, held - 2 : held - 1])  # frame `held`: made, not yet cached

        def call() -> Tensor:
            with autocast(device, dtype):
                return state.fork().advance(codes[:, held - 1 :])

        return call

    expected = cache(lambda: step("recomputed")().double())

    def verify(name: str) -> str | None:
        if name == "keep" and held >= window:
            return None  # is another video by its definition
        return _gap(step(name)(), expected(), dtype)

    return Case(
        suite="rollout",
        op="next_frame",
        shape=shape.name,
        sizes=shape.sizes,
        dtype=dtype,
        mode="fwd",
        providers={name: lambda name=name: [step(name)] for name in REMEMBERING},
        tests=TESTS,
        verify=verify,
        counts={"frames": 1},
    )


def _candidates(config: RunConfig, shape: Shape, dtype: str, device: str, model) -> Case:
    count, given, frames = (shape.sizes[name] for name in ("n", "h", "T"))
    sampler = replace(config.sampler, steps=shape.sizes["steps"], guidance=1.0)

    @cache
    def world() -> WorldModel:
        return _in_window(model(), shape.sizes["W"], _wide(dtype))

    @cache
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(0)
        height, width = shapes.frame_size(config)
        history = torch.rand(1, given, 3, height, width, generator=g).to(device, _wide(dtype))
        past = _drawn(config, 1, given - 1, device=device, dtype=dtype)
        return history, past, _drawn(config, 1, count, frames, device=device, dtype=dtype)

    def video(name: str) -> Tensor:
        history, past, codes = inputs()
        whole = torch.cat([past.expand(count, -1, -1, -1), codes[0]], dim=1)

        def rolled(history: Tensor, codes: Tensor) -> Tensor:
            g = torch.Generator(device=device).manual_seed(0)
            return World(world(), sampler).rollout(history, codes, generator=g).generated

        with autocast(device, dtype):
            if name == "alone":
                return torch.cat([rolled(history, codes) for codes in whole.split(1)])
            if name == "batch":
                return rolled(history.expand(count, -1, -1, -1, -1), whole)
            g = torch.Generator(device=device).manual_seed(0)
            return World(world(), sampler).rollout_candidates(
                history, codes, context_codes=past, generator=g
            )[0]

    expected = cache(lambda: video("alone").double())

    def verify(name: str) -> str | None:
        if name == "batch":
            return None  # every row draws noise of its own there: other videos
        return _gap(video(name), expected(), dtype)

    return Case(
        suite="rollout",
        op="candidates",
        shape=shape.name,
        sizes=shape.sizes,
        dtype=dtype,
        mode="fwd",
        providers={
            name: lambda name=name: [lambda: video(name)] for name in ("alone", "batch", "shared")
        },
        tests=TESTS,
        verify=verify,
        counts={"frames": count * frames},
        heavy=shape.heavy,
    )


def _gap(made: Tensor, expected: Tensor, dtype: str) -> str | None:
    gap = ((made.double() - expected).norm() / expected.norm()).item()
    if gap <= BOUNDS[dtype]:
        return None
    return f"it is off by {gap:.2e}, expected at most {BOUNDS[dtype]:.2e}"
