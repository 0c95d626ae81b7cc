"""qkv_norm_rope: the prologue of attention on a packed projection, with one gradient for all of it."""

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

TESTS = ("tests/ops/test_qkv_norm_rope.py", "tests/csrc")


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, L, H, D = (shape.sizes[n] for n in "BLHD")
    return {
        "qkv": normal(g, B, L, 3, H, D),
        "q_weight": 1 + 0.1 * normal(g, D),
        "k_weight": 1 + 0.1 * normal(g, D),
        "rope": rope_tables(L, D, device=g.device) if shape.options["rope"] else None,
    }


def call(inputs: Inputs) -> dict[str, Tensor]:
    q, k, v = ops.qkv_norm_rope(**inputs)
    return {"q": q, "k": k, "v": v}


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: q and k in and out, about ten operations an element. Backward: q, k and three
    gradients in, the three parts of one out, about twenty."""
    n = shape.sizes["B"] * shape.sizes["L"] * shape.sizes["H"] * shape.sizes["D"]
    if mode == "fwd":
        return 4 * n * itemsize, 20 * n
    return 12 * n * itemsize, 60 * n


DEFINITION = Definition(
    op="qkv_norm_rope",
    tests=TESTS,
    draw=draw,
    call=call,
    lead="qkv",
    probe=(1, 4, 3, 1, 8),
    differentiable=("qkv", "q_weight", "k_weight"),
    cost=cost,
    wide=lambda _: ("q_weight", "k_weight", "rope"),  # as a model in bfloat16 hands them over
)


def cases(request: Request) -> Iterator[Case | Skipped]:
    config = shapes.run_config(request.recipe, request.overrides)
    yield from cases_of(DEFINITION, shapes.qkv_norm_rope(config), request)
