"""code_statistics against what one would use without it: two scatters, and a one-hot product."""

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

TESTS = ("tests/ops/test_code_statistics.py", "tests/csrc")
# A one-hot matrix of N x K above this many elements is not built: 4 GB in float32.
_LARGEST_MATRIX = 1 << 30


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    N, K, d = (shape.sizes[n] for n in "NKd")
    return {
        "z": normal(g, N, d),
        "indices": torch.randint(0, K, (N,), generator=g, device=g.device),
        "K": K,
    }


def call(inputs: Inputs) -> dict[str, Tensor]:
    return {"packed": ops.code_statistics(**inputs)}


def scatter(shape: Shape, mode: str) -> Function:
    """`index_add` for the sums and `bincount` for the counts."""

    def function(inputs: Inputs) -> dict[str, Tensor]:
        z, indices, K = inputs["z"].float(), inputs["indices"], inputs["K"]
        sums = z.new_zeros(K, z.shape[1]).index_add(0, indices, z)
        counts = torch.bincount(indices, minlength=K).to(sums.dtype)
        return {"packed": torch.cat([sums, counts[:, None]], 1)}

    return function


def one_hot(shape: Shape, mode: str) -> Function:
    """The assignments as an N x K matrix, its product with z, its column sums."""
    if shape.sizes["N"] * shape.sizes["K"] > _LARGEST_MATRIX:
        raise Unavailable("its N x K matrix would take more than 4 GB")

    def function(inputs: Inputs) -> dict[str, Tensor]:
        z = inputs["z"].float()
        hot = F.one_hot(inputs["indices"], inputs["K"]).to(z.dtype)
        return {"packed": torch.cat([hot.t() @ z, hot.sum(0)[:, None]], 1)}

    return function


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: z and int64 indices in, the packed float32 table out, one addition per value.
    Backward: the table's gradient and the indices in, that of z out."""
    N, K, d = (shape.sizes[n] for n in "NKd")
    moved, flops = N * d * itemsize + 8 * N + 4 * K * (d + 1), N * (d + 1)
    if mode == "fwd":
        return moved, flops
    return 2 * moved, flops


DEFINITION = Definition(
    op="code_statistics",
    tests=TESTS,
    draw=draw,
    call=call,
    lead="z",
    probe=(4, 8),
    differentiable=("z",),
    cost=cost,
    others={"scatter": scatter, "one_hot": one_hot},
)


def cases(request: Request) -> Iterator[Case | Skipped]:
    config = shapes.run_config(request.recipe, request.overrides)
    yield from cases_of(DEFINITION, shapes.code_statistics(config), request)
