"""adaln: gate, residual, norm and modulation; beside ours what torch's own layer_norm makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld import ops

from .. import shapes
from ..case import Case, Skipped, Wish
from ..shapes import Shape
from .definition import Definition, Function, Inputs
from .definition import cases as cases_of

TESTS = ("tests/ops/test_adaln.py", "tests/csrc")
EPS = 1e-6  # the op's default


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, T, S, C = (shape.sizes[n] for n in "BTSC")
    inputs: Inputs = {name: torch.randn(B, T, S, C, generator=g) for name in ("x", "y")}
    inputs |= {n: 0.5 * torch.randn(B, T, C, generator=g) for n in ("gate", "shift", "scale")}
    return inputs


def call(inputs: Inputs) -> dict[str, Tensor]:
    x_out, out = ops.adaln(**inputs)
    return {"x_out": x_out, "out": out}


def layer_norm(shape: Shape, mode: str) -> Function:
    """As one writes it with torch's fused layer_norm, which has no gate and no modulation."""

    def function(inputs: Inputs) -> dict[str, Tensor]:
        gate, shift, scale = (inputs[n].unsqueeze(2) for n in ("gate", "shift", "scale"))
        x_out = inputs["x"] + gate * inputs["y"]
        normed = F.layer_norm(x_out, x_out.shape[-1:], eps=EPS)
        return {"x_out": x_out, "out": normed * (1 + scale) + shift}

    return function


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: x and y in, x_out and out out, about ten operations an element. Backward: two
    gradients, x_out and y in, dx and dy out, about twenty. Modulation rows are small beside it."""
    B, T, S, C = (shape.sizes[n] for n in "BTSC")
    n = B * T * S * C
    rows = B * T * C * 3
    if mode == "fwd":
        return (4 * n + rows) * itemsize, 10 * n
    return (10 * n + 3 * rows) * itemsize, 30 * n


DEFINITION = Definition(
    op="adaln",
    tests=TESTS,
    draw=draw,
    call=call,
    lead="x",
    probe=(1, 2, 4, 8),
    differentiable=("x", "y", "gate", "shift", "scale"),
    cost=cost,
    others={"layer_norm": layer_norm},
)


def cases(wish: Wish) -> Iterator[Case | Skipped]:
    config = shapes.run_config(wish.recipe, wish.overrides)
    yield from cases_of(DEFINITION, shapes.adaln(config), wish)
