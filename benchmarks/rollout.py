"""Generated frames a second, by denoising steps and batch.

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

from colaworld.models.world_model import WorldModel
from colaworld.recipes.base import RunConfig

from . import shapes
from .arms import ARMS, autocast
from .case import Call, Case, Provider, Wish
from .models import World, build
from .shapes import Shape

TESTS = ("tests/flow", "tests/models/test_world_model.py", "tests/ops")
NAMES = ("eager", "default")
# Largest relative difference from the eager video: each step feeds the next one's input.
BOUNDS = {"float32": 1e-3, "bfloat16": 1e-1, "float64": 1e-5}


def cases(wish: Wish) -> Iterator[Case]:
    config = shapes.run_config(wish.recipe, wish.overrides)

    @cache
    def model() -> WorldModel:
        height, width = shapes.frame_size(config)
        g = torch.Generator().manual_seed(0)
        frames = torch.rand(2, config.data.frames_per_clip, 3, height, width, generator=g)
        made = build("world_model", config, frames)
        assert isinstance(made, World)
        return made.model.to(wish.device)

    for shape in shapes.rollout(config):
        for dtype in wish.dtypes:
            yield _case(config, shape, dtype, wish.device, model)


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
        with ARMS[name].choice(), autocast(device, dtype):
            made = world().rollout(
                history,
                codes,
                generator=torch.Generator(device=device).manual_seed(0),
                sampler=sampler,
                frames=T + 1,
            )
        return made.frames

    def judge(name: str) -> str | None:
        gap = ((video(name).double() - expected()).norm() / expected().norm()).item()
        if gap <= BOUNDS[dtype]:
            return None
        return f"its video is off by {gap:.2e}, expected at most {BOUNDS[dtype]:.2e}"

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
        judge=judge,
        counts={"frames": B * T},
    )
