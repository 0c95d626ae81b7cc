"""The prologues of attention: q and k projected apart and normed across heads, or packed with v."""

from __future__ import annotations

import math
from typing import Any

import torch

from colaworld import ops
from colaworld.models.layers.rope import rope_tables

from ..shapes import XL_HEADS, Shape, clips, family, heads
from .definition import Definition, Inputs, Outputs, normal

WIDE = ("q_weight", "k_weight", "rope")  # float32 where a model runs in bfloat16
_ROPE = {"rope": True}


def shapes(config: Any) -> list[Shape]:
    """B sequences, L tokens, H, D; option rope."""
    size = clips(config)
    sizes = {"B": size["B"] * size["T"], "L": size["S"], **heads(config.model.backbone)}
    why = "ahead of a library's attention"
    return [Shape(f"{family(config)}.spatial", sizes, why, {"rope": False})]


def draw_apart(shape: Shape, g: torch.Generator) -> Inputs:
    B, L, H, D = shape.of("BLHD")
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


def draw_packed(shape: Shape, g: torch.Generator) -> Inputs:
    B, L, H, D = shape.of("BLHD")
    return {
        "qkv": normal(g, B, L, 3, H, D),
        "q_weight": 1 + 0.1 * normal(g, D),
        "k_weight": 1 + 0.1 * normal(g, D),
        "rope": rope_tables(L, D, device=g.device) if shape.options["rope"] else None,
    }


def call_apart(inputs: Inputs) -> Outputs:
    return dict(zip("qk", ops.qk_norm_rope(**inputs), strict=True))


def call_packed(inputs: Inputs) -> Outputs:
    return dict(zip("qkv", ops.qkv_norm_rope(**inputs), strict=True))


def cost(shape: Shape, mode: str, itemsize: int, *, gradients: int = 2) -> tuple[int, int]:
    """Forward: q and k in and out, about ten operations an element. Backward: q, k and the `gradients`
    of q, k (and v) in, as many out, about twenty."""
    n = math.prod(shape.of("BLHD"))
    if mode == "fwd":
        return 4 * n * itemsize, 20 * n
    return (6 + 2 * gradients) * n * itemsize, 60 * n


QK_NORM_ROPE = Definition(
    op="qk_norm_rope",
    tests=("tests/ops/test_qk_norm_rope.py", "tests/csrc"),
    draw=draw_apart,
    call=call_apart,
    lead="q",
    tiny=Shape("tiny", {"B": 1, "L": 3, "H": 2, "D": 4}, "an example", {"sections": (1, 1, 0)}),
    differentiable=("q", "k", "q_weight", "k_weight"),
    cost=cost,
    wide=lambda _: WIDE,
    shapes=lambda config: [],
    # Wan2.1 1.3B: 12 heads of 128, a norm over all 1536 channels, and positions in time, height and
    # width that take 44, 42 and 42 channels of a head: 22, 21 and 21 pairs.
    named=(
        Shape(
            "wan-1.3b",
            {"B": 4, "L": 1024, "H": 12, "D": 128},
            "norm across heads, positions in three axes",
            {"sections": (22, 21, 21)},
        ),
    ),
)
QKV_NORM_ROPE = Definition(
    op="qkv_norm_rope",
    tests=("tests/ops/test_qkv_norm_rope.py", "tests/csrc"),
    draw=draw_packed,
    call=call_packed,
    lead="qkv",
    tiny=Shape("tiny", {"B": 1, "L": 3, "H": 2, "D": 4}, "an example", _ROPE),
    differentiable=("qkv", "q_weight", "k_weight"),
    cost=lambda *how: cost(*how, gradients=3),
    wide=lambda _: WIDE,
    shapes=shapes,
    named=(
        Shape("stdit3-xl.spatial", {"B": 16, "L": 256, **XL_HEADS}, "with rotation", _ROPE),
        Shape("stdit3-xl.b8.spatial", {"B": 128, "L": 256, **XL_HEADS}, "memory", _ROPE, True),
    ),
)
