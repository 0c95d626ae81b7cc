"""qk_norm_rope: the prologue of attention, on queries and keys that stand in one packed tensor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colaworld import ops
from colaworld.models.layers.rope import rope_tables

from .. import shapes
from ..case import Case, Skipped, Wish
from ..shapes import Shape
from .definition import Definition, Inputs
from .definition import cases as cases_of

TESTS = ("tests/ops/test_qk_norm_rope.py", "tests/csrc")


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, L, H, D = (shape.sizes[n] for n in "BLHD")
    norm, sections = shape.options["norm"], shape.options["sections"]
    qkv = torch.randn(B, L, 3, H, D, generator=g)
    inputs: Inputs = {"q": qkv[:, :, 0], "k": qkv[:, :, 1], "norm": norm}
    inputs |= {"q_weight": None, "k_weight": None, "rope": None}
    if norm != "none":
        width = D if norm == "head" else H * D
        inputs["q_weight"] = 1 + 0.1 * torch.randn(width, generator=g)
        inputs["k_weight"] = 1 + 0.1 * torch.randn(width, generator=g)
    if shape.options["rope"]:
        inputs["rope"] = rope_tables(L, D)
    if sections is not None:  # a grid of frames, rows and columns, its positions in reading order
        side = max(1, round(L ** (1 / 3)))
        token = torch.arange(L)
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
)


def cases(wish: Wish) -> Iterator[Case | Skipped]:
    config = shapes.run_config(wish.recipe, wish.overrides)
    yield from cases_of(DEFINITION, shapes.qk_norm_rope(config), wish)
