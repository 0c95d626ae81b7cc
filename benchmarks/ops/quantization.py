"""Vector quantisation, the statistics of its codes, and a codebook's whole step of both.

Beside ours what one would use without them: cdist and argmin, a common package, two scatters, a
one-hot product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld import ops

from ..case import Unavailable, off
from ..shapes import LAM_DIM, Shape, clips, family
from .definition import FLOORS, Definition, Function, Inputs, Outputs, normal

PACKAGE = "vector-quantize-pytorch"
_VERIFIED_ROWS = 256  # at a time, so that the float64 distances stay small at any N and K
_ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-23, "float64": 2.0**-51}  # of a sum's terms
_TESTS = ("tests/ops/test_vector_quantize.py", "tests/ops/test_code_statistics.py", "tests/csrc")
_TINY = Shape("tiny", {"N": 6, "K": 4, "d": 3}, "an example")
_LAM = Shape("lam.codes", {"N": 2000, "K": 32, "d": LAM_DIM}, "launch-bound on a GPU")
_NAMED = (
    _LAM,
    Shape("paper.codes", {"N": 4096, "K": 32, "d": LAM_DIM}, "few entries, many rows"),
    Shape("goal.codes", {"N": 65536, "K": 1024, "d": 32}, "a goal: an image tokenizer's size"),
    Shape("bounded.codes", {"N": 1_000_000, "K": 8192, "d": 8}, "N x K is 34 GB", heavy=True),
)


def shapes(config: Any) -> list[Shape]:
    """N rows, K entries, d width; none without a table to search."""
    size, model = clips(config), config.model
    rows = size["B"] * (size["T"] - 1) * model.idm.tokens
    entries = getattr(model.quantizer, "codebook_size", 0)
    sizes = {"N": rows, "K": entries, "d": model.idm.dim}
    own = Shape(f"{family(config)}.codes", sizes, "one training step: calls, not arithmetic")
    return [own] if entries else []


def check_matrix(shape: Shape) -> None:
    """Unavailable where an N x K matrix in float32 would take more than 4 GB."""
    if shape.sizes["N"] * shape.sizes["K"] > 1 << 30:
        raise Unavailable("its N x K matrix would take more than 4 GB")


# --- the nearest entries --------------------------------------------------------------------------


def draw_search(shape: Shape, g: torch.Generator) -> Inputs:
    N, K, d = shape.of("NKd")
    return {"z": normal(g, N, d), "codebook": normal(g, K, d)}


def search(inputs: Inputs) -> Outputs:
    codes, indices = ops.vector_quantize(**inputs)
    return {"codes": codes, "indices": indices}


def cdist(shape: Shape, mode: str) -> Function:
    """The distances as one N x K matrix, its smallest entries, their codes."""
    check_matrix(shape)

    def function(inputs: Inputs) -> Outputs:
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
    check_matrix(shape)
    module = VectorQuantize(dim=shape.sizes["d"], codebook_size=shape.sizes["K"]).eval()

    def function(inputs: Inputs) -> Outputs:
        module.codebook = inputs["codebook"]
        codes, indices, _ = module(inputs["z"][None])
        return {"codes": codes[0], "indices": indices[0]}

    return function


def verify(inputs: Inputs, cotangents: Outputs, found: Outputs) -> str | None:
    """Codes that are further away than the nearest one, in float64, by more than rounding; codes
    that are not the entry named; a gradient that is not the sum over the rows of an entry."""
    z, codebook, indices = inputs["z"].detach(), inputs["codebook"].detach(), found["indices"]
    if wrong := wrong_codes(z, codebook, indices):
        return f"{wrong} of {len(z)} codes are not the nearest"
    if not torch.equal(found["codes"], codebook[indices]):
        return "codes are not the entries that the indices name"
    if "d codebook" in found:
        gradient = cotangents["codes"].double()
        exact = gradient.new_zeros(codebook.shape).index_add(0, indices, gradient)
        return off("d codebook", found["d codebook"], exact, FLOORS[_name(z)])
    return None


def _name(z: Tensor) -> str:
    return str(z.dtype).removeprefix("torch.")


def wrong_codes(z: Tensor, codebook: Tensor, indices: Tensor) -> int:
    """Rows whose code is further away than the nearest, in float64, by more than the rounding of a
    sum of d + 1 products in the dtype that scores are computed in (float32 for bfloat16)."""
    unit = _ROUNDING[_name(z)]
    wrong, codebook = 0, codebook.double()
    norms = codebook.square().sum(1)
    pieces = (z.double().split(_VERIFIED_ROWS), indices.split(_VERIFIED_ROWS))
    for rows, chosen in zip(*pieces, strict=True):
        distance = rows.square().sum(1, keepdim=True) + norms - 2 * rows @ codebook.t()
        excess = distance.gather(1, chosen[:, None])[:, 0] - distance.min(1).values
        scale = rows.square().sum(1) + norms.max()
        wrong += int((excess > (z.shape[1] + 1) * unit * scale).sum())
    return wrong


def search_cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: z and codebook in, codes and int64 indices out, one product. Backward: the gradient
    of the codes and the indices in, that of the codebook out."""
    N, K, d = shape.of("NKd")
    moved, flops = (2 * N * d + K * d) * itemsize + 8 * N, 2 * N * K * d
    if mode == "fwd":
        return moved, flops
    return moved + (N * d + K * d) * itemsize + 8 * N, flops + N * d


VECTOR_QUANTIZE = Definition(
    op="vector_quantize",
    tests=_TESTS,
    draw=draw_search,
    call=search,
    lead="z",
    tiny=_TINY,
    differentiable=("codebook",),
    cost=search_cost,
    baselines={"cdist": cdist, PACKAGE: package},
    verify=verify,
    shapes=shapes,
    named=_NAMED,
)

# --- sums and counts by code ----------------------------------------------------------------------


def draw_statistics(shape: Shape, g: torch.Generator) -> Inputs:
    N, K, d = shape.of("NKd")
    indices = torch.randint(0, K, (N,), generator=g, device=g.device)
    return {"z": normal(g, N, d), "indices": indices, "K": K}


def statistics(inputs: Inputs) -> Outputs:
    return {"packed": ops.code_statistics(**inputs)}


def scatter(shape: Shape, mode: str) -> Function:
    """`index_add` for the sums and `bincount` for the counts."""

    def function(inputs: Inputs) -> Outputs:
        z, indices, K = inputs["z"].float(), inputs["indices"], inputs["K"]
        sums = z.new_zeros(K, z.shape[1]).index_add(0, indices, z)
        counts = torch.bincount(indices, minlength=K).to(sums.dtype)
        return {"packed": torch.cat([sums, counts[:, None]], 1)}

    return function


def one_hot(shape: Shape, mode: str) -> Function:
    """The assignments as an N x K matrix, its product with z, its column sums."""
    check_matrix(shape)

    def function(inputs: Inputs) -> Outputs:
        z = inputs["z"].float()
        hot = F.one_hot(inputs["indices"], inputs["K"]).to(z.dtype)
        return {"packed": torch.cat([hot.t() @ z, hot.sum(0)[:, None]], 1)}

    return function


def statistics_cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """Forward: z and int64 indices in, the packed float32 table out, one addition per value.
    Backward: the table's gradient and the indices in, that of z out."""
    N, K, d = shape.of("NKd")
    moved, flops = N * d * itemsize + 8 * N + 4 * K * (d + 1), N * (d + 1)
    return (moved if mode == "fwd" else 2 * moved), flops


CODE_STATISTICS = Definition(
    op="code_statistics",
    tests=("tests/ops/test_code_statistics.py", "tests/csrc"),
    draw=draw_statistics,
    call=statistics,
    lead="z",
    tiny=_TINY,
    differentiable=("z",),
    cost=statistics_cost,
    baselines={"scatter": scatter, "one_hot": one_hot},
    shapes=shapes,
    named=_NAMED,
)

# --- what a quantizer with running statistics does once per optimizer step; small: launches count ---


def draw_step(shape: Shape, g: torch.Generator) -> Inputs:
    N, K, d = shape.of("NKd")
    count = torch.full((K,), N / K, device=g.device)
    codebook = normal(g, K, d)
    return {"z": normal(g, N, d), "codebook": codebook, "count": count, "total": codebook * (N / K)}


def step(inputs: Inputs) -> Outputs:
    z, codebook, count, total = (inputs[n] for n in ("z", "codebook", "count", "total"))
    _, indices = ops.vector_quantize(z, codebook)
    packed = ops.code_statistics(z, indices, codebook.shape[0])
    ops.update_codebook(codebook, count, total, packed, decay=0.99)
    return {"codebook": codebook, "count": count, "total": total}


def step_cost(shape: Shape, mode: str, itemsize: int) -> tuple[int, int]:
    """z twice, codes and indices; the codebook and its averages in and out are small beside it."""
    both = (search_cost(shape, mode, itemsize), statistics_cost(shape, mode, itemsize))
    return tuple(map(sum, zip(*both, strict=True)))


CODEBOOK_STEP = Definition(
    op="codebook_step",
    tests=_TESTS,
    draw=draw_step,
    call=step,
    lead="z",
    tiny=_TINY,
    cost=step_cost,
    baselines={"default": lambda shape, mode: step},  # each of the three as colaworld chooses
    calls=("vector_quantize", "code_statistics", "update_codebook"),
    changes=("codebook", "count", "total"),
    modes=("fwd",),
    # Those that a moving average serves: K up to some dozen.
    shapes=lambda config: [shape for shape in shapes(config) if shape.sizes["N"] <= 2000],
    named=(_LAM,),
)
