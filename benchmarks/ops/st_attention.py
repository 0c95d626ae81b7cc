"""st_attention: eager (SDPA with its transposes), compiled, each SDPA backend by name, ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from colaworld import ops
from colaworld.models.layers.rope import rope_tables

from .. import shapes
from ..case import Case, Skipped, Unavailable, Wish
from ..shapes import Shape
from .definition import Definition, Function, Inputs, forced
from .definition import cases as cases_of

TESTS = (
    "tests/ops/test_st_attention.py",
    "tests/ops/test_st_attention_cpu.py",
    "tests/ops/test_st_attention_op.py",
    "tests/csrc",
)
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
_ON_CPU = ("flash", "math")


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, T, S, H, D = (shape.sizes[n] for n in "BTSHD")
    options = shape.options
    inputs: Inputs = {"qkv": torch.randn(B, T, S, 3, H, D, generator=g)}
    inputs |= {"axis": options["axis"], "causal": options["causal"]}
    inputs |= {"q_weight": None, "k_weight": None, "rope": None}
    if options["norm"]:
        inputs["q_weight"] = 1 + 0.1 * torch.randn(D, generator=g)
        inputs["k_weight"] = 1 + 0.1 * torch.randn(D, generator=g)
    if options["rope"]:
        inputs["rope"] = rope_tables(T if options["axis"] == "temporal" else S, D)
    return inputs


def call(inputs: Inputs) -> dict[str, Tensor]:
    return {"out": ops.st_attention(**inputs)}


def pinned(name: str) -> Callable[[Shape, str], Function]:
    """The eager reference with one SDPA backend; Unavailable where torch says it has none."""

    def make(shape: Shape, mode: str) -> Function:
        def function(inputs: Inputs) -> dict[str, Tensor]:
            if inputs["qkv"].device.type == "cpu" and name not in _ON_CPU:
                raise Unavailable(f"SDPA has no {name} backend on a CPU")
            with sdpa_kernel(BACKENDS[name]):
                try:
                    return forced("reference", call)(inputs)
                except RuntimeError as error:
                    if "No available kernel" not in str(error):
                        raise
                    raise Unavailable(f"SDPA refuses its {name} backend here") from None

        return function

    return make


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: qkv in, out out, two products. Backward reads qkv and the gradient, writes dqkv, and
    makes five products, one of them the scores again."""
    B, T, S, H, D = (shape.sizes[n] for n in "BTSHD")
    temporal = shape.options["axis"] == "temporal"
    L, sequences = (T, B * S) if temporal else (S, B * T)
    one = B * T * S * H * D * itemsize
    pairs = L * (L + 1) // 2 if shape.options["causal"] else L * L
    product = 2 * sequences * H * pairs * D
    return (4 * one, 2 * product) if mode == "fwd" else (11 * one, 7 * product)


DEFINITION = Definition(
    op="st_attention",
    tests=TESTS,
    draw=draw,
    call=call,
    lead="qkv",
    probe=(1, 2, 4, 3, 1, 8),
    differentiable=("qkv", "q_weight", "k_weight"),
    cost=cost,
    others={f"sdpa:{name}": pinned(name) for name in BACKENDS},
)


def cases(wish: Wish) -> Iterator[Case | Skipped]:
    config = shapes.run_config(wish.recipe, wish.overrides)
    yield from cases_of(DEFINITION, shapes.st_attention(config), wish)
