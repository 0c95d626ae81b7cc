"""`code_statistics`: per codebook entry, the sum of its rows and how many there are.

The public function and its checks, and what autograd and the compiler must know of the op. The
meaning is in `reference.py`. Not here: which entry a row belongs to (`vector_quantize.py`), what
becomes of the sums (`update_codebook.py`), summing over processes (the quantizer modules).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.ops import _cpu, _cuda, _dispatch, _registry, _triton, reference
from colaworld.ops._checks import check_beside

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CHANNELS = 4096  # of Triton: a row of sums stays in the registers of one program


def _reference(z: Tensor, indices: Tensor, K: int, counts: bool) -> Tensor:
    # Elsewhere torch checks for itself; looking at the values would wait for the device.
    if indices.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = ((indices < 0) | (indices >= K)).nonzero()
        if len(wrong):
            n = int(wrong[0])
            raise ValueError(
                f"indices: expected values in [0, {K}), got {int(indices[n])} in row {n}"
            )
    return reference.code_statistics(z, indices, K, counts)


def _fake(z: Tensor, indices: Tensor, K: int, counts: bool) -> Tensor:
    shape = (K, z.shape[1] + int(counts))
    return z.new_empty(shape, dtype=reference.compute_dtype(z.dtype))


def _save(ctx, inputs, output) -> None:
    z, indices, _, _ = inputs
    ctx.save_for_backward(indices)
    ctx.width, ctx.dtype = z.shape[1], z.dtype


def _gradients(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (indices,) = ctx.saved_tensors
    return F.embedding(indices, grad[:, : ctx.width]).to(ctx.dtype), None, None, None


def triton_refuses(facts: _dispatch.CallInfo) -> str | None:
    """Why Triton cannot sum over rows like these; None when it can."""
    reason = _triton.refuses(facts)
    if reason is None and facts.shape[-1] > _CHANNELS:
        reason = f"d is {facts.shape[-1]}, it takes up to {_CHANNELS} channels"
    return reason


def _launch(z: Tensor, indices: Tensor, K: int, counts: bool) -> Tensor:
    from colaworld.kernels import vector_quantize as kernels

    if z.ndim != 2 or not 1 <= z.shape[1] <= _CHANNELS or indices.shape != z.shape[:1] or K < 1:
        raise ValueError(
            f"code_statistics_triton: expected z [N, d] with 1 <= d <= {_CHANNELS}, indices [N] and "
            f"K >= 1, got {list(z.shape)}, {list(indices.shape)} and {K}"
        )
    return kernels.sums(z, indices, K, counts=counts)


# What an H200 is expected to take (no measurement), for the choice between two kernels: CUDA reads every
# index once for each range of entries, of whose sums a block's tables hold so many numbers; Triton sorts.
_TABLE = 1408
_LOOK = 2e-6  # microseconds for an index: 8 bytes of L2, and some 20 instructions of a warp for 32
_SORT, _SORTED = 50.0, 3e-4  # microseconds of its dozen launches, and for a row
_A_SORT = _dispatch.Preference(
    "triton", "a sort is expected to be faster than reading all indices for each range of entries"
)


def _prefers(facts: _dispatch.CallInfo) -> _dispatch.Preference | None:
    """CUDA, one launch up to 8191 rows, two beyond, until Triton's sort is ahead.

    Predicted: 2 us against 50 at N 4096, K 32, d 32; 50 against 350 at N 1M, K 1024, d 32; 760 against
    350 at N 1M, K 8192, d 64.
    """
    if facts.device != "cuda" or facts.entries is None:
        return None
    N, d = facts.shape
    ranges = facts.entries * (d + 1) / _TABLE
    slower = _LOOK * N * ranges > _SORT + _SORTED * N
    return _A_SORT if _dispatch.known(slower) else None


_OP = _registry.Op(
    "code_statistics",
    "(Tensor z, Tensor indices, SymInt K, bool counts) -> Tensor",
    fake=_fake,
    launch=_launch,
    save=_save,
    gradients=_gradients,
    constants=("indices",),
)
_dispatch.register(
    "code_statistics",
    (
        _dispatch.Implementation("cuda", _OP.compiled, _cuda.refuses),
        _dispatch.Implementation("cpu", _OP.compiled, _cpu.refuses),
        _dispatch.Implementation("triton", _OP.triton, triton_refuses),
        _dispatch.Implementation("reference", _reference, _dispatch.always),
    ),
    prefers=_prefers,
    example=(4, 32),
)


def code_statistics(z: Tensor, indices: Tensor, K: int) -> Tensor:
    """Sums and counts of the rows of each entry, in one tensor, so that one reduction sums both.

    Sums run in float32 (float64 for float64). Rows are cut into parts by the sizes alone and summed
    in a fixed order: the result does not depend on the number of threads. There is no N x K matrix;
    beside the result the cpu implementation holds at most 15 tables of its size, cuda at most 16 MB. Counts are exact
    up to 2^24 rows of one entry (float32). A row with NaN makes its own entry NaN and no other.

    Gradient: z receives the gradient of the sums of its entry. The counts have none.

    Args:
        z: [N, d] rows; any strides, N may be 0, d >= 1.
        indices: [N] int64 in [0, K), the entry of each row; on the device of z.
        K: number of entries, >= 1.

    Returns:
        packed [K, d + 1]: the sums in the first d columns, the counts in the last; float32, or
        float64 for float64.

    Raises:
        ValueError: an argument of a wrong shape, dtype, device or value (on a GPU a wrong index is
            torch's own device-side error, and triton leaves such a row out); a forced implementation refuses.

    Source: the sums of van den Oord et al. 2017, appendix A.1, equations for n_i and m_i.
    """
    if z.ndim != 2 or z.shape[1] < 1:
        raise ValueError(f"z: expected [N, d] with d >= 1, got {list(z.shape)}")
    if z.dtype not in _DTYPES:
        raise ValueError(f"z: expected a floating-point tensor, got {z.dtype}")
    check_beside("indices", indices, (z.shape[0],), "z", z)
    if indices.dtype != torch.int64:
        raise ValueError(f"indices: expected torch.int64, got {indices.dtype}")
    if K < 1:
        raise ValueError(f"K: expected >= 1, got {K}")
    return _dispatch.select("code_statistics", z, entries=K)(z, indices, K, True)


def segmented_sum(z: Tensor, indices: Tensor, K: int) -> Tensor:
    """The sums alone, [K, d], in float32 (float64 for float64), unchecked: for backward passes."""
    return _dispatch.select("code_statistics", z, entries=K)(z, indices, K, False)
