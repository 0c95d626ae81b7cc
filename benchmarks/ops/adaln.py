"""adaln: gate, residual, norm and modulation; beside ours what torch's own layer_norm makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld import ops

from .. import shapes
from ..case import Case, Request, Skipped, Unavailable
from ..shapes import Shape
from .definition import Definition, Function, Inputs, normal
from .definition import cases as cases_of

TESTS = ("tests/ops/test_adaln.py", "tests/csrc")
EPS = 1e-6  # the op's default


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, T, S, C = (shape.sizes[n] for n in "BTSC")
    inputs: Inputs = {name: normal(g, B, T, S, C) for name in ("x", "y")}
    inputs |= {n: 0.5 * normal(g, B, T, C) for n in ("gate", "shift", "scale")}
    return inputs


def call(inputs: Inputs) -> dict[str, Tensor]:
    # Under autocast the stream x and the modulation are float32; the next layer takes `out` as y is.
    x_out, out = ops.adaln(**inputs, out_dtype=inputs["y"].dtype)
    return {"x_out": x_out, "out": out}


def layer_norm(shape: Shape, mode: str) -> Function:
    """As one writes it with torch's fused layer_norm, which has no gate and no modulation."""
    if shape.options.get("autocast"):
        raise Unavailable("it takes one dtype for all")

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
    if shape.options.get("autocast"):  # 4 bytes a number of x, x_out and their gradients
        forward = (2 * 4 + 2 * itemsize) * n
        return (
            (forward, 10 * n) if mode == "fwd" else (forward + (3 * 4 + 3 * itemsize) * n, 30 * n)
        )
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
    wide=lambda s: ("x", "gate", "shift", "scale") if s.options.get("autocast") else (),
)


def cases(request: Request) -> Iterator[Case | Skipped]:
    config = shapes.run_config(request.recipe, request.overrides)
    yield from cases_of(DEFINITION, shapes.adaln(config), request)
