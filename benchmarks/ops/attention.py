"""Torch's attention by backend, and FlexAttention, at the sequences of our models.

What a model could call in place of a kernel of its own, without norm and rotation: q, k and v are
views of one packed tensor, as a projection leaves them. Not here: ours (st_attention.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from ..case import Unavailable
from ..shapes import Shape
from .definition import Definition, Function, Inputs, available, normal
from .st_attention import BACKENDS, on_this_device


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    N, n, H, D = (shape.sizes[name] for name in ("N", "n", "H", "D"))
    packed = normal(g, N, n, 3, H, D)
    return {name: x.transpose(1, 2) for name, x in zip("qkv", packed.unbind(2), strict=True)}


def call(inputs: Inputs) -> dict[str, Tensor]:
    return {"out": F.scaled_dot_product_attention(*(inputs[name] for name in "qkv"))}


def eager(name: str) -> Callable[[Shape, str], Function]:
    def function(inputs: Inputs) -> dict[str, Tensor]:
        on_this_device(name, inputs["q"].device)
        with sdpa_kernel(BACKENDS[name]):
            return call(inputs)

    return lambda shape, mode: available(function)


def flex(shape: Shape, mode: str) -> Function:
    made = torch.compile(flex_attention, dynamic=False)

    def function(inputs: Inputs) -> dict[str, Tensor]:
        if inputs["q"].device.type == "cpu" and mode != "fwd":
            raise Unavailable("FlexAttention has no gradient on a CPU")
        return {"out": made(*(inputs[name] for name in "qkv"))}

    return function


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """As st_attention, which has q, k and v in one tensor."""
    N, n, H, D = (shape.sizes[name] for name in ("N", "n", "H", "D"))
    one, product = N * n * H * D * itemsize, 2 * N * H * n * n * D
    return (4 * one, 2 * product) if mode == "fwd" else (12 * one, 7 * product)


DEFINITION = Definition(
    op="attention",
    tests=(),
    draw=draw,
    call=call,
    lead="q",
    probe=(1, 1, 2, 8),
    differentiable=("q", "k", "v"),
    cost=cost,
    others={**{f"sdpa:{name}": eager(name) for name in BACKENDS}, "flex": flex},
    calls=(),
)
