"""qk_norm_rope: the prologue of attention where q, k and v are projected apart and normed across heads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colaworld import ops
from colaworld.models.layers.rope import rope_tables

from .. import shapes
from ..case import Case, Request, Skipped
from ..shapes import Shape
from .definition import Definition, Inputs, normal
from .definition import cases as cases_of

TESTS = ("tests/ops/test_qk_norm_rope.py", "tests/csrc")


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, L, H, D = (shape.sizes[n] for n in "BLHD")
    side = max(1, round(L ** (1 / 3)))  # a grid of frames, rows and columns, in reading order
    token = torch.arange(L, device=g.device)
    axes = (token // side**2, token // side % side, token % side)
    return {
        "q": normal(g, B, L, H, D),
        "k": normal(g, B, L, H, D),
        "norm": "across",
        "q_weight": 1 + 0.1 * normal(g, H * D),
        "k_weight": 1 + 0.1 * normal(g, H * D),
        "rope": rope_tables(L, D, device=g.device),
        "position": torch.stack(axes, 1),
        "sections": shape.options["sections"],
    }


def call(inputs: Inputs) -> dict[str, Tensor]:
    q, k = ops.qk_norm_rope(**inputs)
    return {"q": q, "k": k}


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: q and k in and out, about ten operations an element. Backward: q, k and two gradients
    in, two out, about twenty."""
    B, L, H, D = (shape.sizes[n] for n in "BLHD")
    n = B * L * H * D
    if mode == "fwd":
        return 4 * n * itemsize, 20 * n
    return 10 * n * itemsize, 60 * n


DEFINITION = Definition(
    op="qk_norm_rope",
    tests=TESTS,
    draw=draw,
    call=call,
    lead="q",
    probe=(1, 4, 1, 8),
    differentiable=("q", "k", "q_weight", "k_weight"),
    cost=cost,
    wide=lambda _: ("q_weight", "k_weight", "rope"),  # as a model in bfloat16 hands them over
)


def cases(request: Request) -> Iterator[Case | Skipped]:
    config = shapes.run_config(request.recipe, request.overrides)
    yield from cases_of(DEFINITION, shapes.qk_norm_rope(config), request)
