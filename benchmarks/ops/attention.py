"""Attention: ours with norm and rotation against every backend by name, and torch's attention alone.

Of `st_attention` every baseline with a name of its own is compiled with norm and rotation inside, as a
model would run it; `sdpa:*` is the eager reference. `attention` is what a model could call in place of a
kernel of its own: q, k and v are views of one packed tensor, as a projection leaves them. The last two are
the prologues: q and k projected apart and normed across heads, or packed with v.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

from colaworld import ops
from colaworld.models.layers.rope import rope_tables
from colaworld.ops.attention_backends import attend

from ..case import Unavailable, require_compiler
from ..shapes import XL, XL_BATCH, XL_HEADS, Shape, clips, family, heads, idm_clips
from .definition import (
    Baseline,
    Definition,
    Function,
    Inputs,
    Outputs,
    available,
    compiled,
    forced,
    normal,
    pinned,
)

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
# Rows of ours around an attention by name: what the row is called, and `backend` of st_attention.
NAMED = {"cudnn": "cudnn", "flex": "flex", "flash-attn": "flash"}
NAMED |= {"flash-attn-3": "flash3", "flash-attn-4": "flash4"}

WIDE = ("q_weight", "k_weight", "rope")  # float32 where a model runs in bfloat16
_ROPE = {"rope": True}
_SPATIAL = {"axis": "spatial", "causal": False, "norm": True, "rope": False}
_TEMPORAL = {"axis": "temporal", "causal": True, "norm": True, "rope": True}
_GOAL = {"B": 4, "T": 8, "D": 32}


def shapes(config: Any) -> list[Shape]:
    """B, T, S, H, D; options axis, causal, norm, rope."""
    name, model = family(config), config.model
    sizes, temporal = clips(config) | heads(model.backbone), {"causal": model.backbone.causal}
    found = [
        Shape(f"{name}.spatial", sizes, "the generator, each frame", _SPATIAL),
        Shape(f"{name}.temporal", sizes, "the generator, over time", _TEMPORAL | temporal),
    ]
    if "idm" in config.parts():
        sizes = idm_clips(config) | heads(model.idm)
        found.append(Shape(f"{name}.idm.spatial", sizes, "the IDM, each frame", _SPATIAL))
        found.append(Shape(f"{name}.idm.temporal", sizes, "the IDM, over time", _TEMPORAL))
    if "conditioner" in config.parts():
        count = model.conditioner.heads
        sizes = clips(config) | {"S": 1, "H": count, "D": model.backbone.width // count}
        options = _TEMPORAL | {"norm": False}
        found.append(Shape(f"{name}.actions", sizes, "the action sequence", options))
    return found


def sequences(n: int, why: str, N: int = 0, **sizes: int) -> Shape:
    """N sequences of n tokens; by itself as many as make a training batch of STDiT3-XL."""
    sizes = {"N": N or math.prod(XL_BATCH.values()) // n, "n": n, **(sizes or XL_HEADS)}
    return Shape("{N}x{n}x{D}".format(**sizes), sizes, why)


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, T, S, H, D = shape.of("BTSHD")
    options = shape.options
    inputs: Inputs = {"qkv": normal(g, B, T, S, 3, H, D)}
    inputs |= {"axis": options["axis"], "causal": options["causal"]}
    for name in ("q_weight", "k_weight"):
        inputs[name] = 1 + 0.1 * normal(g, D) if options["norm"] else None
    length = T if options["axis"] == "temporal" else S
    inputs["rope"] = rope_tables(length, D, device=g.device) if options["rope"] else None
    return inputs


def call(inputs: Inputs) -> Outputs:
    return {"out": ops.st_attention(**inputs)}


def draw_alone(shape: Shape, g: torch.Generator) -> Inputs:
    packed = normal(g, *shape.of("Nn"), 3, *shape.of("HD"))
    return {name: x.transpose(1, 2) for name, x in zip("qkv", packed.unbind(2), strict=True)}


def call_alone(inputs: Inputs) -> Outputs:
    return {"out": F.scaled_dot_product_attention(*(inputs[name] for name in "qkv"))}


def held(name: str, function: Function, *, lead: str, compiles: bool = False) -> Baseline:
    """`function` with SDPA held to one backend, eager or compiled."""

    def baseline(shape: Shape, mode: str) -> Function:
        backend = SDPA[name]
        made = compiled(function, backend) if compiles else available(pinned(function, backend))

        def call(inputs: Inputs) -> Outputs:
            device = inputs[lead].device.type
            if device == "cpu" and name not in ("flash", "math"):
                raise Unavailable(f"SDPA has no {name} backend on a CPU")
            if compiles:
                require_compiler(device)
            return made(inputs)

        return forced("reference", call)

    return baseline


def named(backend: str) -> Baseline:
    """What `st_attention(backend=...)` runs, in one graph of torch.compile."""

    def baseline(shape: Shape, mode: str) -> Function:
        made = compiled(lambda inputs: {"out": ops.st_attention(**inputs, backend=backend)})

        def call(inputs: Inputs) -> Outputs:
            try:
                attend(backend, inputs["qkv"], inputs["q_weight"])
            except ops.BackendUnavailableError as error:
                raise Unavailable(str(error)) from None
            require_compiler(inputs["qkv"].device.type)
            return made(inputs)

        return call

    return baseline


def flex(shape: Shape, mode: str) -> Function:
    made = torch.compile(flex_attention, dynamic=False)

    def function(inputs: Inputs) -> Outputs:
        if inputs["q"].device.type == "cpu" and mode != "fwd":
            raise Unavailable("FlexAttention has no gradient on a CPU")
        return {"out": made(*(inputs[name] for name in "qkv"))}

    return function


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: qkv in, out out, two products. Backward reads qkv and the gradient, writes dqkv, and
    makes five products, one of them the scores again."""
    B, T, S, H, D = shape.of("BTSHD")
    L, count = (T, B * S) if shape.options["axis"] == "temporal" else (S, B * T)
    pairs = L * (L + 1) // 2 if shape.options["causal"] else L * L
    one, product = B * T * S * H * D * itemsize, 2 * count * H * pairs * D
    return (4 * one, 2 * product) if mode == "fwd" else (11 * one, 7 * product)


def cost_alone(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """The same; the gradient's three parts are tensors of their own."""
    N, n, H, D = shape.of("NnHD")
    one, product = N * n * H * D * itemsize, 2 * N * H * n * n * D
    return (4 * one, 2 * product) if mode == "fwd" else (12 * one, 7 * product)


ST_ATTENTION = Definition(
    op="st_attention",
    tests=(
        *(f"tests/ops/test_st_attention{part}.py" for part in ("", "_cpu", "_op")),
        "tests/csrc",
    ),
    draw=draw,
    call=call,
    lead="qkv",
    tiny=Shape("tiny", {"B": 1, "T": 3, "S": 2, "H": 2, "D": 4}, "an example", _TEMPORAL),
    differentiable=("qkv", "q_weight", "k_weight"),
    cost=cost,
    baselines={
        **{f"sdpa:{name}": held(name, call, lead="qkv") for name in SDPA},
        **{f"compile:{n}": held(n, call, lead="qkv", compiles=True) for n in ("flash", "cudnn")},
        **{name: named(backend) for name, backend in NAMED.items()},
    },
    axis=lambda shape: shape.options["axis"],
    wide=lambda _: WIDE,
    shapes=shapes,
    named=(
        Shape("goal.temporal", _GOAL | {"S": 64, "H": 4}, "a goal", _TEMPORAL),
        Shape("goal.spatial", _GOAL | {"S": 256, "H": 3}, "a goal", _SPATIAL),
        Shape("stdit3-xl.temporal", XL | XL_HEADS, "head dimension 72", _TEMPORAL),
        Shape("stdit3-xl.spatial", XL | XL_HEADS, "head dimension 72", _SPATIAL),
        Shape("stdit3-xl.b8.temporal", XL_BATCH | XL_HEADS, "memory-bound", _TEMPORAL, True),
        Shape("stdit3-xl.b8.spatial", XL_BATCH | XL_HEADS, "compute-bound", _SPATIAL, True),
    ),
)
ATTENTION = Definition(
    op="attention",
    draw=draw_alone,
    call=call_alone,
    lead="q",
    tiny=Shape("tiny", {"N": 1, "n": 2, "H": 1, "D": 8}, "an example"),
    differentiable=("q", "k", "v"),
    cost=cost_alone,
    baselines={**{f"sdpa:{n}": held(n, call_alone, lead="q") for n in SDPA}, "flex": flex},
    calls=(),
    named=(  # of no recipe: `python -m benchmarks.gpu rest`
        sequences(16, "STDiT3-XL over time: 16 rows where a kernel's tile has 64 or 128"),
        sequences(256, "STDiT3-XL within a frame of 256 px"),
        sequences(1024, "STDiT3-XL within a frame of 512 px"),
        sequences(1280, "Wan 2.1 1.3B: all tokens of a short clip", N=16, H=12, D=128),
    ),
)

# --- norm and rotation ahead of a library's attention ----------------------------------------------


def packed_shapes(config: Any) -> list[Shape]:
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


def prologue_cost(shape: Shape, mode: str, itemsize: int, *, gradients: int = 2) -> tuple[int, int]:
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
    cost=prologue_cost,
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
    cost=lambda *how: prologue_cost(*how, gradients=3),
    wide=lambda _: WIDE,
    shapes=packed_shapes,
    named=(
        Shape("stdit3-xl.spatial", {"B": 16, "L": 256, **XL_HEADS}, "with rotation", _ROPE),
        Shape("stdit3-xl.b8.spatial", {"B": 128, "L": 256, **XL_HEADS}, "memory", _ROPE, True),
    ),
)
