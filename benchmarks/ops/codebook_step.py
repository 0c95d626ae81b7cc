"""A codebook's whole step: the nearest entries, their statistics, the moving averages.

What a quantizer with running statistics does once per optimizer step; small, so launches are what it
costs. Not here: the ops one by one (vector_quantize.py, code_statistics.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colaworld import ops

from .. import shapes
from ..case import Case, Request, Skipped
from ..shapes import Shape
from . import code_statistics, vector_quantize
from .definition import Definition, Inputs, normal
from .definition import cases as cases_of

DECAY = 0.99


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    N, K, d = (shape.sizes[n] for n in "NKd")
    count = torch.full((K,), N / K, device=g.device)
    codebook = normal(g, K, d)
    return {"z": normal(g, N, d), "codebook": codebook, "count": count, "total": codebook * (N / K)}


def call(inputs: Inputs) -> dict[str, Tensor]:
    z, codebook, count, total = (inputs[n] for n in ("z", "codebook", "count", "total"))
    _, indices = ops.vector_quantize(z, codebook)
    packed = ops.code_statistics(z, indices, codebook.shape[0])
    ops.update_codebook(codebook, count, total, packed, decay=DECAY)
    return {"codebook": codebook, "count": count, "total": total}


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """z twice, codes and indices; the codebook and its averages in and out are small beside it."""
    searched, product = vector_quantize.cost(shape, mode, itemsize)
    counted, sums = code_statistics.cost(shape, mode, itemsize)
    return searched + counted, product + sums


DEFINITION = Definition(
    op="codebook_step",
    tests=vector_quantize.TESTS,
    draw=draw,
    call=call,
    lead="z",
    probe=(4, 8),
    differentiable=(),
    cost=cost,
    others={"default": lambda shape, mode: call},  # each of the three as colaworld chooses
    calls=("vector_quantize", "code_statistics", "update_codebook"),
    changes=("codebook", "count", "total"),
    modes=("fwd",),
)


def cases(request: Request) -> Iterator[Case | Skipped]:
    config = shapes.run_config(request.recipe, request.overrides)
    yield from cases_of(DEFINITION, shapes.codebook_step(config), request)
