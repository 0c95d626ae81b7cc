"""`vector_quantize`: the nearest entry of a codebook for each row.

The public function and its checks, and what autograd and the compiler must know of the op. The meaning is in `reference.py`, the kernels in
`csrc/cpu/vector_quantize_kernel.h` and `kernels/vector_quantize.py`.
Not here: the straight-through estimator, losses and codebook updates (the quantizer modules).
"""

from __future__ import annotations

import torch
from torch import Tensor

from colaworld.ops import _cpu, _cuda, _dispatch, _registry, _triton, reference
from colaworld.ops.code_statistics import segmented_sum

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _fake(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    return codebook.new_empty(z.shape), codebook.new_empty(z.shape[:1], dtype=torch.int64)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1])
    ctx.entries = inputs[1].shape[0]


def _gradients(ctx, grad_codes: Tensor, _) -> tuple[None, Tensor]:
    (indices,) = ctx.saved_tensors
    # Many rows meet in one entry: sums over them run wide.
    return None, segmented_sum(grad_codes, indices, ctx.entries).to(grad_codes.dtype)


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


# What an H200 is expected to do in a microsecond (no measurement), for the choice between two kernels:
_BYTES = 4.3e6  # of a copy
_EXACT = 25e6  # float32 multiply-adds: 132 x 128 lanes at 1.76 GHz, 85 % of them
_PRODUCTS = {
    4: 50e6,
    2: 250e6,
}  # on tensor cores, by bytes of a number: three of tf32 at 60 %, one at 50 %
_SCORES = 5e6  # looked at: six instructions each, on either way
_AHEAD = 10.0  # microseconds that are worth giving up sums in the order of the channels for
_TENSOR_CORES = _dispatch.Preference(
    "triton", "tensor cores are expected to search a codebook of this size faster"
)


def _prefers(facts: _dispatch.CallInfo) -> _dispatch.Preference | None:
    """CUDA's exact float32 sums, one launch, until Triton's tensor cores are clearly ahead.

    Predicted: at N 4096, K 32, d 32 both take what a launch takes; from some N 16k, K 1024, d 32 on tensor
    cores win; at N 1M, K 8192, d 64 by 12 ms to 23.
    """
    products = _PRODUCTS.get(facts.dtype.itemsize)
    if facts.device != "cuda" or facts.entries is None or products is None:
        return None
    N, d = facts.shape
    # Of one row. The one works on 32 channels at a time, the other on 16 and more.
    memory = (2 * d * facts.dtype.itemsize + 8) / _BYTES
    exact = facts.entries * ((d + 31) // 32 * 32 / _EXACT + 1 / _SCORES)
    tensor_cores = facts.entries * ((d + 15) // 16 * 16 / products + 1 / _SCORES)
    gain = max(exact, memory) - max(tensor_cores, memory)
    return _TENSOR_CORES if _dispatch.known(N * gain > _AHEAD) else None


_OP = _registry.Op(
    "vector_quantize",
    "(Tensor z, Tensor codebook) -> (Tensor codes, Tensor indices)",
    fake=_fake,
    launch=_launch,
    save=_save,
    gradients=_gradients,
    constants=("z",),
)
_dispatch.register(
    "vector_quantize",
    (
        _dispatch.Implementation("cuda", _OP.compiled, _cuda.refuses),
        _dispatch.Implementation("cpu", _OP.compiled, _cpu.refuses),
        _dispatch.Implementation("triton", _OP.triton, _triton.refuses),
        _dispatch.Implementation("reference", reference.vector_quantize, _dispatch.always),
    ),
    prefers=_prefers,
    example=(4, 32),
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
    d = z.shape[1]
    if codebook.ndim != 2 or codebook.shape[1] != d:
        raise ValueError(f"codebook: expected [K, {d}], got {list(codebook.shape)}")
    K = codebook.shape[0]
    if K < 1 or d < 1:
        raise ValueError(f"codebook: expected K >= 1 and d >= 1, got {list(codebook.shape)}")
    if codebook.dtype != z.dtype:
        raise ValueError(f"codebook: expected {z.dtype} as z is, got {codebook.dtype}")
    if codebook.device != z.device:
        raise ValueError(f"codebook: expected on {z.device} as z is, got {codebook.device}")
    return _dispatch.select("vector_quantize", z, entries=K)(z, codebook)
