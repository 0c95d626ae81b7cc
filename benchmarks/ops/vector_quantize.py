"""vector_quantize against what one would use without it: cdist + argmin, and a common package."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld import ops

from .. import shapes
from ..case import Case, Request, Skipped, Unavailable
from ..shapes import Shape
from .definition import FLOORS, Definition, Function, Inputs, normal
from .definition import cases as cases_of

TESTS = ("tests/ops/test_vector_quantize.py", "tests/ops/test_code_statistics.py", "tests/csrc")
PACKAGE = "vector-quantize-pytorch"
_VERIFIED_ROWS = 256  # at a time, so that the float64 distances stay small at any N and K
_ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-23, "float64": 2.0**-51}  # of a sum's terms
# A cdist over N x K above this many elements is not called: 4 GB in float32.
_LARGEST_MATRIX = 1 << 30


def draw(shape: Shape, g: torch.Generator) -> Inputs:
    N, K, d = (shape.sizes[n] for n in "NKd")
    return {"z": normal(g, N, d), "codebook": normal(g, K, d)}


def call(inputs: Inputs) -> dict[str, Tensor]:
    codes, indices = ops.vector_quantize(**inputs)
    return {"codes": codes, "indices": indices}


def cdist(shape: Shape, mode: str) -> Function:
    """The distances as one N x K matrix, its smallest entries, their codes."""
    if shape.sizes["N"] * shape.sizes["K"] > _LARGEST_MATRIX:
        raise Unavailable("its N x K matrix would take more than 4 GB")

    def function(inputs: Inputs) -> dict[str, Tensor]:
        z, codebook = inputs["z"], inputs["codebook"]
        indices = torch.cdist(z, codebook.detach()).argmin(1)
        return {"codes": F.embedding(indices, codebook), "indices": indices}

    return function


def package(shape: Shape, mode: str) -> Function:
    """The module of vector-quantize-pytorch in evaluation mode, on the same codebook."""
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        raise Unavailable(f"{PACKAGE} is not installed: pip install 'colaworld[bench]'") from None
    if mode != "fwd":
        raise Unavailable("in evaluation mode its codebook has no gradient")
    if shape.sizes["N"] * shape.sizes["K"] > _LARGEST_MATRIX:
        raise Unavailable("its N x K matrix would take more than 4 GB")
    module = VectorQuantize(dim=shape.sizes["d"], codebook_size=shape.sizes["K"]).eval()

    def function(inputs: Inputs) -> dict[str, Tensor]:
        module.codebook = inputs["codebook"]
        codes, indices, _ = module(inputs["z"][None])
        return {"codes": codes[0], "indices": indices[0]}

    return function


def verify(inputs: Inputs, cotangents: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """Codes that are further away than the nearest one, in float64, by more than rounding; codes
    that are not the entry named; a gradient that is not the sum over the rows of an entry."""
    z, codebook = inputs["z"].detach(), inputs["codebook"].detach()
    indices = found["indices"]
    wrong = wrong_codes(z, codebook, indices)
    if wrong:
        return f"{wrong} of {len(z)} codes are not the nearest"
    if not torch.equal(found["codes"], codebook[indices]):
        return "codes are not the entries that the indices name"
    if "d codebook" in found:
        gradient = cotangents["codes"].double()
        exact = gradient.new_zeros(codebook.shape).index_add(0, indices, gradient)
        gap = (found["d codebook"].double() - exact).norm() / exact.norm()
        bound = FLOORS[str(z.dtype).removeprefix("torch.")]
        if not gap <= bound:
            return f"d codebook is off by {gap:.2e}, expected at most {bound:.2e}"
    return None


def wrong_codes(z: Tensor, codebook: Tensor, indices: Tensor) -> int:
    """Rows whose code is further away than the nearest, in float64, by more than the rounding of a
    sum of d + 1 products in the dtype that scores are computed in (float32 for bfloat16)."""
    unit = _ROUNDING[str(z.dtype).removeprefix("torch.")]
    wrong, codebook = 0, codebook.double()
    norms = codebook.square().sum(1)
    for rows, chosen in zip(
        z.double().split(_VERIFIED_ROWS), indices.split(_VERIFIED_ROWS), strict=True
    ):
        distance = rows.square().sum(1, keepdim=True) + norms - 2 * rows @ codebook.t()
        excess = distance.gather(1, chosen[:, None])[:, 0] - distance.min(1).values
        size = rows.square().sum(1) + norms.max()
        wrong += int((excess > (z.shape[1] + 1) * unit * size).sum())
    return wrong


def cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: z and codebook in, codes and int64 indices out, one product. Backward: the gradient
    of the codes and the indices in, that of the codebook out."""
    N, K, d = (shape.sizes[n] for n in "NKd")
    moved, flops = (2 * N * d + K * d) * itemsize + 8 * N, 2 * N * K * d
    if mode == "fwd":
        return moved, flops
    return moved + (N * d + K * d) * itemsize + 8 * N, flops + N * d


DEFINITION = Definition(
    op="vector_quantize",
    tests=TESTS,
    draw=draw,
    call=call,
    lead="z",
    probe=(4, 8),
    differentiable=("codebook",),
    cost=cost,
    others={"cdist": cdist, PACKAGE: package},
    verify=verify,
)


def cases(request: Request) -> Iterator[Case | Skipped]:
    config = shapes.run_config(request.recipe, request.overrides)
    yield from cases_of(DEFINITION, shapes.vector_quantize(config), request)
