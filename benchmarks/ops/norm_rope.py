"""The prologues of attention: q and k projected apart and normed across heads, or packed with v."""

from __future__ import annotations

import torch

from colaworld import ops
from colaworld.models.layers.rope import rope_tables

from ..shapes import Shape
from .definition import Definition, Inputs, Outputs, normal

WIDE = ("q_weight", "k_weight", "rope")  # float32 where a model runs in bfloat16


def draw_apart(shape: Shape, g: torch.Generator) -> Inputs:
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


def draw_packed(shape: Shape, g: torch.Generator) -> Inputs:
    B, L, H, D = (shape.sizes[n] for n in "BLHD")
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
    B, L, H, D = (shape.sizes[n] for n in "BLHD")
    n = B * L * H * D
    if mode == "fwd":
        return 4 * n * itemsize, 20 * n
    return (6 + 2 * gradients) * n * itemsize, 60 * n


QK_NORM_ROPE = Definition(
    op="qk_norm_rope",
    tests=("tests/ops/test_qk_norm_rope.py", "tests/csrc"),
    draw=draw_apart,
    call=call_apart,
    lead="q",
    probe=(1, 4, 1, 8),
    differentiable=("q", "k", "q_weight", "k_weight"),
    cost=cost,
    wide=lambda _: WIDE,
)
QKV_NORM_ROPE = Definition(
    op="qkv_norm_rope",
    tests=("tests/ops/test_qkv_norm_rope.py", "tests/csrc"),
    draw=draw_packed,
    call=call_packed,
    lead="qkv",
    probe=(1, 4, 3, 1, 8),
    differentiable=("qkv", "q_weight", "k_weight"),
    cost=lambda *how: cost(*how, gradients=3),
    wide=lambda _: WIDE,
)
