"""st_attention: eager (SDPA with its transposes), compiled, each backend by name, ours.

Every rival with a name of its own is compiled with norm and rotation inside, as a model would run it;
`sdpa:*` is the eager reference. Not here: attention without norm and rotation (attention.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from colaworld import ops
from colaworld.models.layers.rope import rope_tables
from colaworld.ops.attention_backends import attend

from .. import shapes
from ..case import Case, Request, Skipped, Unavailable, require_compiler
from ..shapes import Shape
from .definition import Definition, Function, Inputs, available, compiled, forced, normal
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
# Rows of ours around an attention by name: what the row is called, and `backend` of st_attention.
NAMED = {
    "cudnn": "cudnn",
    "flex": "flex",
    "flash-attn": "flash",
    "flash-attn-3": "flash3",
    "flash-attn-4": "flash4",
}


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    B, T, S, H, D = (shape.sizes[n] for n in "BTSHD")
    options = shape.options
    inputs: Inputs = {"qkv": normal(g, B, T, S, 3, H, D)}
    inputs |= {"axis": options["axis"], "causal": options["causal"]}
    inputs |= {"q_weight": None, "k_weight": None, "rope": None}
    if options["norm"]:
        inputs["q_weight"] = 1 + 0.1 * normal(g, D)
        inputs["k_weight"] = 1 + 0.1 * normal(g, D)
    if options["rope"]:
        length = T if options["axis"] == "temporal" else S
        inputs["rope"] = rope_tables(length, D, device=g.device)
    return inputs


def call(inputs: Inputs) -> dict[str, Tensor]:
    return {"out": ops.st_attention(**inputs)}


def on_this_device(name: str, device: torch.device) -> None:
    """Unavailable where torch has no such backend at all."""
    if device.type == "cpu" and name not in _ON_CPU:
        raise Unavailable(f"SDPA has no {name} backend on a CPU")


def eager(name: str) -> Callable[[Shape, str], Function]:
    """The reference with SDPA held to one backend, not compiled."""

    def function(inputs: Inputs) -> dict[str, Tensor]:
        on_this_device(name, inputs["qkv"].device)
        with sdpa_kernel(BACKENDS[name]):
            return forced("reference", call)(inputs)

    return lambda shape, mode: available(function)


def pinned(name: str) -> Callable[[Shape, str], Function]:
    """The reference compiled, SDPA held to one backend."""
    made = forced("reference", compiled(call, BACKENDS[name]))

    def function(inputs: Inputs) -> dict[str, Tensor]:
        on_this_device(name, inputs["qkv"].device)
        require_compiler(inputs["qkv"].device.type)
        return made(inputs)

    return lambda shape, mode: function


def named(backend: str) -> Callable[[Shape, str], Function]:
    """What `st_attention(backend=...)` runs, in one graph of torch.compile."""

    def whole(inputs: Inputs) -> dict[str, Tensor]:
        return {"out": ops.st_attention(**inputs, backend=backend)}

    def function(inputs: Inputs) -> dict[str, Tensor]:
        try:
            attend(backend, inputs["qkv"], inputs["q_weight"])
        except ops.BackendUnavailableError as error:
            raise Unavailable(str(error)) from None
        require_compiler(inputs["qkv"].device.type)
        return made(inputs)

    made = available(torch.compile(whole, fullgraph=True, dynamic=False))
    return lambda shape, mode: function


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
    others={
        **{f"sdpa:{name}": eager(name) for name in BACKENDS},
        "compile:flash": pinned("flash"),
        "compile:cudnn": pinned("cudnn"),
        **{name: named(backend) for name, backend in NAMED.items()},
    },
    axis=lambda shape: shape.options["axis"],
    wide=lambda _: ("q_weight", "k_weight", "rope"),  # as a model in bfloat16 hands them over
)


def cases(request: Request) -> Iterator[Case | Skipped]:
    config = shapes.run_config(request.recipe, request.overrides)
    yield from cases_of(DEFINITION, shapes.st_attention(config), request)
