"""`vector_quantize`: the nearest entry of a codebook for each row.

The public function: checks, the choice of an implementation, and what autograd and the compiler must
know of the compiled op and of its Triton twin. The meaning is in `reference.py`, the kernels in
`csrc/cpu/vector_quantize_kernel.h` and `kernels/vector_quantize.py`.
Not here: the straight-through estimator, losses and codebook updates (the quantizer modules).
"""

from __future__ import annotations

import torch
from torch import Tensor

from colaworld.ops import _cuda, _dispatch, _eager, _native, _triton, reference
from colaworld.ops.code_statistics import segmented_sum

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def _cpu_refuses(facts: _dispatch.Facts) -> str | None:
    if not _native.AVAILABLE:
        return _native.reason()
    if facts.device != "cpu":
        return f"the tensors are on {facts.device}, it needs cpu"
    if facts.dtype not in _CPU_DTYPES:
        return f"the dtype is {facts.dtype}, it takes float32, float64 and bfloat16"
    return None


# The dispatcher goes by the device, so this is "cpu" and "cuda" alike.
def _compiled(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    _eager.refuse_transforms("vector_quantize", codebook, constant=(z,))
    if _eager.through_dispatcher():
        return torch.ops.colaworld.vector_quantize(z, codebook)
    if _eager.wants_gradient(codebook):
        return _Recorded.apply(z, codebook)
    with _eager.below_autograd():
        return torch.ops.colaworld.vector_quantize(z, codebook)


def _fake(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    codes = codebook.new_empty(z.shape)
    return codes, codebook.new_empty(z.shape[:1], dtype=torch.int64)


def _setup_context(ctx, inputs, output) -> None:
    _, indices = output
    ctx.save_for_backward(indices)
    ctx.entries = inputs[1].shape[0]


def _backward(ctx, grad_codes: Tensor, _) -> tuple[None, Tensor]:
    (indices,) = ctx.saved_tensors
    # Many rows meet in one entry: sums over them run wide.
    total = segmented_sum(grad_codes, indices, ctx.entries)
    return None, total.to(grad_codes.dtype)


class _Recorded(torch.autograd.Function):
    """The compiled op in eager mode, with the gradient that is registered on the op."""

    @staticmethod
    def forward(ctx, z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        with _eager.below_autograd():
            output = torch.ops.colaworld.vector_quantize(z, codebook)
        _setup_context(ctx, (z, codebook), output)
        return output

    backward = staticmethod(_backward)


if _native.AVAILABLE:
    torch.library.register_fake("colaworld::vector_quantize", _fake)
    torch.library.register_autograd(
        "colaworld::vector_quantize", _backward, setup_context=_setup_context
    )

# Triton: one launch forward; backward is the segmented sum of whatever implementation sums there.


def _triton_kernel(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    _eager.refuse_transforms("vector_quantize", codebook, constant=(z,))
    if _eager.through_dispatcher():
        return torch.ops.colaworld.vector_quantize_triton(z, codebook)
    if _eager.wants_gradient(codebook):
        return _RecordedTriton.apply(z, codebook)
    with _eager.below_autograd():
        return torch.ops.colaworld.vector_quantize_triton(z, codebook)


def _launch(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    from colaworld.kernels import vector_quantize as kernels

    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1] or not codebook.numel():
        raise ValueError(
            "vector_quantize_triton: expected z [N, d] and codebook [K, d] with K, d >= 1, got "
            f"{list(z.shape)} and {list(codebook.shape)}"
        )
    if z.dtype != codebook.dtype:
        raise ValueError(
            f"vector_quantize_triton: codebook: expected {z.dtype} as z is, got {codebook.dtype}"
        )
    return kernels.nearest(z, codebook)


class _RecordedTriton(torch.autograd.Function):
    """The Triton kernel in eager mode, with the gradient that is registered on the op."""

    @staticmethod
    def forward(ctx, z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        with _eager.below_autograd():
            output = torch.ops.colaworld.vector_quantize_triton(z, codebook)
        _setup_context(ctx, (z, codebook), output)
        return output

    backward = staticmethod(_backward)


_triton.define(
    "vector_quantize_triton",
    "(Tensor z, Tensor codebook) -> (Tensor codes, Tensor indices)",
    _launch,
    _fake,
    backward=_backward,
    setup_context=_setup_context,
)

_dispatch.register(
    "vector_quantize",
    (
        _dispatch.Implementation("cuda", _compiled, _cuda.refuses),
        _dispatch.Implementation("cpu", _compiled, _cpu_refuses),
        _dispatch.Implementation("triton", _triton_kernel, _triton.refuses),
        _dispatch.Implementation("reference", reference.vector_quantize, _dispatch.always),
    ),
)


def vector_quantize(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of each row in Euclidean distance.

    Scores are |e|^2 / 2 - z . e, in float32 (float64 for float64 inputs), so a code within rounding
    of the nearest may be chosen (on tensor cores too, where triton makes a float32 product of three
    tf32 products). The lowest index wins among equal scores; a row that holds NaN gets
    index 0. The cpu implementation gives equal entries equal scores; in the reference the matrix
    product may round equal columns differently, so any one of several equal entries may be named.

    Gradient: `codebook` receives the segmented sum of the gradient of the codes (each code the sum
    over the rows that chose it). `z` receives **none**: choosing an index is not differentiable.
    A straight-through estimate is composed outside, as `codes.detach() + (z - z.detach())`.

    Args:
        z: [N, d] rows; any strides, N may be 0.
        codebook: [K, d] entries, K >= 1, d >= 1, same dtype and device as z; any strides.

    Returns:
        (codes [N, d] in the dtype of the codebook, indices [N] int64).

    Raises:
        ValueError: an argument of a wrong shape, dtype or device; a forced implementation refuses.

    Source: van den Oord et al. 2017, equation 1.
    """
    if z.ndim != 2:
        raise ValueError(f"z: expected [N, d], got {list(z.shape)}")
    if z.dtype not in _DTYPES:
        raise ValueError(f"z: expected a floating-point tensor, got {z.dtype}")
    if codebook.ndim != 2 or codebook.shape[1] != z.shape[1]:
        raise ValueError(f"codebook: expected [K, {z.shape[1]}], got {list(codebook.shape)}")
    if codebook.shape[0] < 1 or codebook.shape[1] < 1:
        raise ValueError(f"codebook: expected K >= 1 and d >= 1, got {list(codebook.shape)}")
    if codebook.dtype != z.dtype:
        raise ValueError(f"codebook: expected {z.dtype} as z is, got {codebook.dtype}")
    if codebook.device != z.device:
        raise ValueError(f"codebook: expected on {z.device} as z is, got {codebook.device}")
    return _dispatch.select("vector_quantize", z)(z, codebook)
