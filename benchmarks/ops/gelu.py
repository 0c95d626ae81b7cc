"""gelu: the activation of an MLP; beside ours torch's own, which is the reference, and its formula in single steps."""

from __future__ import annotations

from typing import Any

import torch

from colaworld import ops

from ..shapes import XL, XL_BATCH, XL_WIDTH, Shape, clips, family, idm_clips
from .definition import Definition, Function, Inputs, Outputs, normal


def shapes(config: Any) -> list[Shape]:
    """B, T, S, C; C is that between the two layers of an MLP."""
    name, model = family(config), config.model
    inner = int(model.backbone.width * getattr(model.backbone, "mlp_ratio", 4))
    found = [Shape(f"{name}.mlp", clips(config) | {"C": inner}, "a block of the video model")]
    if "idm" in config.parts():
        inner = int(model.idm.width * model.idm.mlp_ratio)
        found.append(
            Shape(f"{name}.idm.mlp", idm_clips(config) | {"C": inner}, "a block of the IDM")
        )
    return found


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    return {"x": normal(g, *shape.of("BTSC"))}


def call(inputs: Inputs) -> Outputs:
    return {"y": ops.gelu(**inputs)}


def by_parts(shape: Shape, mode: str) -> Function:
    """Its formula, written down with torch's tanh."""

    def function(inputs: Inputs) -> Outputs:
        x = inputs["x"]
        return {"y": 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))}

    return function


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: x in, y out, about thirty operations an element. Backward: the gradient and x in, that of x out."""
    B, T, S, C = shape.of("BTSC")
    n = B * T * S * C
    return ((2 if mode == "fwd" else 5) * n * itemsize, (30 if mode == "fwd" else 70) * n)


GELU = Definition(
    op="gelu",
    tests=("tests/ops/test_gelu.py", "tests/csrc"),
    draw=draw,
    call=call,
    lead="x",
    tiny=Shape("tiny", {"B": 1, "T": 2, "S": 3, "C": 5}, "an example"),
    differentiable=("x",),
    cost=cost,
    baselines={"by_parts": by_parts},
    shapes=shapes,
    named=(
        Shape("stdit3-xl.mlp", XL | {"C": 4 * XL_WIDTH}, "memory-bound"),
        Shape("stdit3-xl.b8.mlp", XL_BATCH | {"C": 4 * XL_WIDTH}, "memory-bound", heavy=True),
    ),
)
