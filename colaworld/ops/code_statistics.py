"""`code_statistics`: per codebook entry, the sum of its rows and how many there are.

The public functions: checks and the choice of an implementation; the update of a codebook from
running statistics. The meaning is in `reference.py`. Not here: which entry a row belongs to
(`vector_quantize.py`), summing over processes and re-seeding (the quantizer modules).
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


def _triton_refuses(facts: _dispatch.Facts) -> str | None:
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
        _dispatch.Implementation("triton", _OP.triton, _triton_refuses),
        _dispatch.Implementation("reference", _reference, _dispatch.always),
    ),
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
    return _dispatch.select("code_statistics", z)(z, indices, K, True)


def segmented_sum(z: Tensor, indices: Tensor, K: int) -> Tensor:
    """The sums alone, [K, d], in float32 (float64 for float64), unchecked: for backward passes."""
    return _dispatch.select("code_statistics", z)(z, indices, K, False)


@torch.no_grad()
def update_codebook(
    codebook: Tensor,
    count: Tensor,
    total: Tensor,
    packed: Tensor,
    *,
    decay: float,
    eps: float = 1e-5,
) -> None:
    """Running means of the latents become the codebook, **in place** (all three tensors).

        count <- decay count + (1 - decay) counts        total <- decay total + (1 - decay) sums
        codebook = total / smoothed count

    Laplace smoothing moves the counts towards each other by `eps`, keeping their sum, so that an
    entry without rows does not divide by zero. Everything read is `packed` and the running state:
    processes that hold equal states and reduced the same `packed` end with equal codebooks.

    Where `code_statistics` runs on Triton, so does this, in one or two launches; elsewhere it is plain
    PyTorch: it is K x d work beside the N x K x d of the search.

    Args:
        codebook: [K, d] entries, overwritten.
        count: [K] running counts, updated.
        total: [K, d] running sums, updated.
        packed: [K, d + 1] from `code_statistics`, summed over processes and forward passes.
        decay: part of the running statistics that stays, in [0, 1].
        eps: added to each count.

    Raises:
        ValueError: an argument of a wrong shape, device or value.

    Source: van den Oord et al. 2017, appendix A.1; smoothing as in their published code.
    """
    if codebook.ndim != 2:
        raise ValueError(f"codebook: expected [K, d], got {list(codebook.shape)}")
    K, d = codebook.shape
    check_beside("count", count, (K,), "codebook", codebook)
    check_beside("total", total, (K, d), "codebook", codebook)
    check_beside("packed", packed, (K, d + 1), "codebook", codebook)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: expected in [0, 1], got {decay}")
    if not eps > 0:
        raise ValueError(f"eps: expected > 0, got {eps}")
    tables = (codebook, count, total)
    plain = torch.compiler.is_compiling() or _triton_refuses(_dispatch.facts_of(packed)) is not None
    same = all(t.dtype == packed.dtype and t.is_contiguous() for t in tables)
    if not plain and same and _dispatch.pick("code_statistics", packed).name == "triton":
        from colaworld.kernels import vector_quantize as kernels

        kernels.update(codebook, count, total, packed, decay=decay, eps=eps)
        return
    count.lerp_(packed[:, d].to(count.dtype), 1 - decay)
    total.lerp_(packed[:, :d].to(total.dtype), 1 - decay)
    mass = count.sum()
    smooth = (count + eps) / (mass + K * eps) * mass
    codebook.copy_(total / smooth[:, None])
