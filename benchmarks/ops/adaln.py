"""adaln: gate, residual, norm and modulation; beside ours what torch's own layer_norm makes of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from colaworld import ops

from ..case import Unavailable
from ..shapes import XL, XL_BATCH, XL_WIDTH, Shape, clips, family, idm_clips
from .definition import Definition, Function, Inputs, Outputs, normal

_STREAM = ("x", "gate", "shift", "scale")  # in float32 under autocast


def shapes(config: Any) -> list[Shape]:
    """B, T, S, C."""
    name, model = family(config), config.model
    size = clips(config) | {"C": model.backbone.width}
    found = [Shape(f"{name}.block", size, "a block of the video model")]
    if "idm" in config.parts():
        inner = idm_clips(config) | {"C": model.idm.width}
        found.append(Shape(f"{name}.idm.block", inner, "a block of the IDM"))
    return found


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, T, S, C = shape.of("BTSC")
    inputs: Inputs = {name: normal(g, B, T, S, C) for name in ("x", "y")}
    return inputs | {n: 0.5 * normal(g, B, T, C) for n in ("gate", "shift", "scale")}


def call(inputs: Inputs) -> Outputs:
    # Under autocast the stream x and the modulation are float32; the next layer takes `out` as y is.
    x_out, out = ops.adaln(**inputs, out_dtype=inputs["y"].dtype)
    return {"x_out": x_out, "out": out}


def layer_norm(shape: Shape, mode: str) -> Function:
    """As one writes it with torch's fused layer_norm, which has no gate and no modulation."""
    if shape.options.get("autocast"):
        raise Unavailable("it takes one dtype for all")

    def function(inputs: Inputs) -> Outputs:
        gate, shift, scale = (inputs[n].unsqueeze(2) for n in ("gate", "shift", "scale"))
        x_out = inputs["x"] + gate * inputs["y"]
        normed = F.layer_norm(x_out, x_out.shape[-1:], eps=1e-6)  # the op's default
        return {"x_out": x_out, "out": normed * (1 + scale) + shift}

    return function


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: x and y in, x_out and out out, about ten operations an element. Backward: two
    gradients, x_out and y in, dx and dy out, about twenty. Modulation rows are small beside it."""
    B, T, S, C = shape.of("BTSC")
    n, rows = B * T * S * C, B * T * C * 3 * itemsize
    x = itemsize  # bytes of a number of x, x_out and their gradients
    if shape.options.get("autocast"):
        x, rows = 4, 0
    forward = (2 * x + 2 * itemsize) * n + rows
    if mode == "fwd":
        return forward, 10 * n
    return forward + (3 * x + 3 * itemsize) * n + 2 * rows, 30 * n


ADALN = Definition(
    op="adaln",
    tests=("tests/ops/test_adaln.py", "tests/csrc"),
    draw=draw,
    call=call,
    lead="x",
    tiny=Shape("tiny", {"B": 1, "T": 2, "S": 3, "C": 5}, "an example"),
    differentiable=("x", "y", "gate", "shift", "scale"),
    cost=cost,
    baselines={"layer_norm": layer_norm},
    wide=lambda s: _STREAM if s.options.get("autocast") else (),
    shapes=shapes,
    named=(
        Shape("goal.block", {"B": 4, "T": 8, "S": 64, "C": 128}, "a goal"),
        Shape("stdit3-xl.block", XL | {"C": XL_WIDTH}, "memory-bound"),
        Shape("stdit3-xl.b8.block", XL_BATCH | {"C": XL_WIDTH}, "memory-bound", heavy=True),
        # As training in bfloat16 calls it: x and modulation in float32, y in bfloat16.
        Shape(
            "stdit3-xl.b8.autocast",
            XL_BATCH | {"C": XL_WIDTH},
            "training",
            {"autocast": True},
            True,
        ),
    ),
)
