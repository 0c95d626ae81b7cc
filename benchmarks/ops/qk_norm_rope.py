"""qk_norm_rope: the prologue of attention, on queries and keys that stand in one packed tensor."""

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
    norm, sections = shape.options["norm"], shape.options["sections"]
    qkv = normal(g, B, L, 3, H, D)
    inputs: Inputs = {"q": qkv[:, :, 0], "k": qkv[:, :, 1], "norm": norm}
    inputs |= {"q_weight": None, "k_weight": None, "rope": None}
    if norm != "none":
        width = D if norm == "head" else H * D
        inputs["q_weight"] = 1 + 0.1 * normal(g, width)
        inputs["k_weight"] = 1 + 0.1 * normal(g, width)
    if shape.options["rope"]:
        inputs["rope"] = rope_tables(L, D, device=g.device)
    if sections is not None:  # a grid of frames, rows and columns, its positions in reading order
        side = max(1, round(L ** (1 / 3)))
        token = torch.arange(L, device=g.device)
        axes = (token // side**2, token // side % side, token % side)
        inputs |= {"position": torch.stack(axes, 1), "sections": sections}
    return inputs


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
