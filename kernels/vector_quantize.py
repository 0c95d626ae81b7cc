"""Nearest entry of a codebook, sums and counts of its rows, and its update, in Triton.

Nearest entry: score(n, k) = |e_k|^2 / 2 - z_n . e_k orders the entries as the distance does. A program
takes some rows and walks over the entries in blocks, with a running best under a strict <: the lowest
index wins among equal scores, a score that is NaN never wins, and a row of NaN keeps index 0. Products
run on tensor cores, float32 as three tf32 products. There is no N x K matrix, and no sum that depends
on another program.

Sums per entry, without atomics, in a fixed order:
  small tables      a program for each entry and part of the rows reads the rows of its entry alone
  everything else   rows in the order of their entries (a stable sort of the indices), cut into pieces
                    of a bounded length, then the pieces of each entry
A row meets only its own entry: what is not finite reaches no other.
Not here: checks of the arguments, and gradients (`colaworld.ops`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from colaworld.kernels import arithmetic, launch, tuning

# --- nearest entry -------------------------------------------------------------------------------


@triton.jit
def _scores(
    Z,
    E,
    r,  # [BN] rows
    k,  # [BK] entries
    N,
    K,
    z_stride,
    e_stride,
    whole,  # [BN, DB] the rows, where one chunk of channels is all of them
    D: tl.constexpr,
    DB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PIN: tl.constexpr,
):
    """[BN, BK]; +inf where it is NaN or there is no such entry."""
    entry = E + k.to(tl.int64) * e_stride
    row = Z + r.to(tl.int64) * z_stride
    product = tl.zeros((BN, BK), WIDE)
    half = tl.zeros((BK,), WIDE)
    for first in range(0, D, DB):
        d = first + tl.arange(0, DB)
        e = tl.load(
            entry[:, None] + d[None, :], mask=(k < K)[:, None] & (d < D)[None, :], other=0.0
        )
        if DB >= D:
            z = whole
        else:
            z = tl.load(
                row[:, None] + d[None, :], mask=(r < N)[:, None] & (d < D)[None, :], other=0.0
            )
        wide = e.to(WIDE)
        # Of 16 bits a square is exact.
        rounds: tl.constexpr = PIN and E.dtype.element_ty.primitive_bitwidth > 16
        half += tl.sum(arithmetic.product(wide, wide, rounds), 1)
        product = tl.dot(z, tl.trans(e), product, input_precision=PRECISION, out_dtype=WIDE)
    score = half[None, :] * 0.5 - product
    return tl.where((score == score) & (k < K)[None, :], score, float("inf"))


@triton.jit
def assign_kernel(
    Z,  # [N, D], channels side by side
    E,  # [K, D], channels side by side
    CODES,  # [N, D] contiguous
    INDICES,  # [N] int64
    N,
    K,
    z_stride,  # from row to row
    e_stride,
    D: tl.constexpr,
    DB: tl.constexpr,  # channels of a chunk, a power of two >= 16
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PIN: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    d = tl.arange(0, DB)
    whole = tl.zeros((BN, DB), Z.dtype.element_ty)
    if DB >= D:
        whole = tl.load(
            Z + r[:, None] * z_stride + d[None, :],
            mask=(r < N)[:, None] & (d < D)[None, :],
            other=0.0,
        )
    best = tl.full((BN,), float("inf"), WIDE)
    index = tl.zeros((BN,), tl.int32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        score = _scores(
            Z, E, r, k, N, K, z_stride, e_stride, whole, D, DB, BN, BK, PRECISION, WIDE, PIN
        )
        lowest, where = tl.min(score, 1, return_indices=True)
        better = lowest < best
        index = tl.where(better, first + where.to(tl.int32), index)
        best = tl.where(better, lowest, best)
    tl.store(INDICES + r, index.to(tl.int64), mask=r < N)
    for first in range(0, D, DB):
        c = first + d
        inside = (r < N)[:, None] & (c < D)[None, :]
        code = tl.load(E + index.to(tl.int64)[:, None] * e_stride + c[None, :], mask=inside)
        tl.store(CODES + r[:, None] * D + c[None, :], code, mask=inside)


# --- sums and counts -----------------------------------------------------------------------------


@triton.jit
def _sum_of(
    Z,
    r,  # [BN] rows to read
    mine,  # [BN] whether to
    c,  # [DP] channels
    total,  # [BN, DP]
    z_stride,
    D: tl.constexpr,
    STEP: tl.constexpr,
    WIDE: tl.constexpr,
):
    at = Z + r.to(tl.int64)[:, None] * z_stride + c[None, :] * STEP
    return total + tl.load(at, mask=mine[:, None] & (c < D)[None, :], other=0.0).to(WIDE)


@triton.jit
def select_kernel(
    Z,  # [N, D]
    INDICES,  # [N] int64
    OUT,  # [parts, K, D + COUNTS] contiguous
    N,
    K,
    rows,  # of a part
    z_stride,
    D: tl.constexpr,
    STEP: tl.constexpr,  # from channel to channel: 1, or 0 where one number is expanded
    COUNTS: tl.constexpr,
    BN: tl.constexpr,
    DP: tl.constexpr,  # power of two >= D
    WIDE: tl.constexpr,
):
    """A program reads the indices of its part, and of the rows only those of its entry."""
    k = tl.program_id(0) % K
    start = (tl.program_id(0) // K).to(tl.int64) * rows
    c = tl.arange(0, DP)
    total = tl.zeros((BN, DP), WIDE)
    count = tl.zeros((BN,), tl.int32)
    for first in range(0, rows, BN):
        at = first + tl.arange(0, BN)
        r = start + at
        mine = tl.load(INDICES + r, mask=(at < rows) & (r < N), other=-1) == k
        total = _sum_of(Z, r, mine, c, total, z_stride, D, STEP, WIDE)
        count += mine.to(tl.int32)
    out = OUT + tl.program_id(0).to(tl.int64) * (D + COUNTS)
    tl.store(out + c, tl.sum(total, 0), mask=c < D)
    if COUNTS:
        tl.store(out + D, tl.sum(count, 0).to(WIDE))


@triton.jit
def parts_kernel(
    PARTS,  # [parts, W] contiguous
    OUT,  # [W]
    parts,
    W,
    COLUMNS: tl.constexpr,
):
    """The parts in their order."""
    c = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), OUT.dtype.element_ty)
    for part in range(parts):
        total += tl.load(PARTS + tl.cast(part, tl.int64) * W + c, mask=c < W, other=0.0)
    tl.store(OUT + c, total, mask=c < W)


@triton.jit
def pieces_kernel(
    Z,  # [N, D]
    ORDER,  # [N] int64: rows in the order of their entries
    STARTS,  # [K + 1] int64: where the rows of an entry begin in that order
    PIECES,  # [K + chunks, D] contiguous; those of no row are not written
    K,
    z_stride,
    D: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,  # of a chunk
    BN: tl.constexpr,
    DP: tl.constexpr,
    STEPS: tl.constexpr,  # 2 ** STEPS >= K
    WIDE: tl.constexpr,
):
    """Rows in order, cut at every ROWS-th and where an entry begins.

    entry  0 0 0 0 0 0 1 3 3 3      chunk  0 0 0 0 1 1 1 1 2 2     (ROWS = 4)
    piece  0 0 0 0 1 1 2 4 5 5      = entry + chunk: both only rise, so no two pieces share a number
    """
    piece = tl.program_id(0)
    # The last entry whose first piece is not after this one: that number rises with the entry.
    k = tl.zeros((), tl.int32)
    for step in tl.static_range(STEPS):
        ahead = k + (1 << (STEPS - 1 - step))
        begin = tl.load(STARTS + tl.minimum(ahead, K - 1))
        k = tl.where((ahead < K) & (ahead + begin // ROWS <= piece), ahead, k)
    begin = tl.load(STARTS + k)
    end = tl.load(STARTS + k + 1)
    chunk = (piece - k).to(tl.int64)
    begin = tl.maximum(begin, chunk * ROWS)
    end = tl.minimum(end, (chunk + 1) * ROWS)
    if begin < end:
        c = tl.arange(0, DP)
        total = tl.zeros((BN, DP), WIDE)
        for first in range(0, ROWS, BN):
            at = begin + first + tl.arange(0, BN)
            r = tl.load(ORDER + at, mask=at < end, other=0)
            total = _sum_of(Z, r, at < end, c, total, z_stride, D, STEP, WIDE)
        tl.store(PIECES + piece.to(tl.int64) * D + c, tl.sum(total, 0), mask=c < D)


@triton.jit
def entries_kernel(
    PIECES,  # [K + chunks, D]
    STARTS,  # [K + 1] int64
    OUT,  # [K, D + COUNTS] contiguous
    D: tl.constexpr,
    COUNTS: tl.constexpr,
    ROWS: tl.constexpr,
    BN: tl.constexpr,
    DP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The pieces of each entry in their order."""
    k = tl.program_id(0).to(tl.int64)
    begin = tl.load(STARTS + k)
    end = tl.load(STARTS + k + 1)
    first_piece = k + begin // ROWS
    pieces = tl.where(begin < end, (end - 1) // ROWS - begin // ROWS + 1, 0)
    c = tl.arange(0, DP)
    total = tl.zeros((BN, DP), WIDE)
    for first in range(0, pieces, BN):
        at = first + tl.arange(0, BN)
        total = _sum_of(PIECES, first_piece + at, at < pieces, c, total, D, D, 1, WIDE)
    out = OUT + k * (D + COUNTS)
    tl.store(out + c, tl.sum(total, 0), mask=c < D)
    if COUNTS:
        tl.store(out + D, (end - begin).to(WIDE))


# --- update --------------------------------------------------------------------------------------


@triton.jit
def _towards(a, b, weight):
    """a + weight (b - a), from the nearer end."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))


@triton.jit
def update_kernel(
    CODEBOOK,  # [K, D] contiguous, overwritten
    COUNT,  # [K] contiguous, overwritten
    TOTAL,  # [K, D] contiguous, overwritten
    BEFORE,  # [K] the counts before: COUNT itself where there is one program, else a copy of it
    PACKED,  # [K, D + 1] contiguous
    K,
    weight,  # of what was seen
    eps,
    D: tl.constexpr,
    BK: tl.constexpr,
    DP: tl.constexpr,
    KB: tl.constexpr,  # entries at once in the sum of all counts
    WIDE: tl.constexpr,
):
    """Running means, Laplace smoothing and the codebook; every program sums all counts alike."""
    masses = tl.zeros((KB,), WIDE)
    for first in range(0, K, KB):
        k = first + tl.arange(0, KB)
        before = tl.load(BEFORE + k, mask=k < K, other=0.0).to(WIDE)
        seen = tl.load(PACKED + k.to(tl.int64) * (D + 1) + D, mask=k < K, other=0.0).to(WIDE)
        masses += _towards(before, seen, weight)
    mass = tl.sum(masses, 0)
    c = tl.arange(0, DP)
    for step in range(tl.program_id(0), tl.cdiv(K, BK), tl.num_programs(0)):
        k = step * BK + tl.arange(0, BK)
        row = k.to(tl.int64)
        before = tl.load(BEFORE + k, mask=k < K, other=0.0).to(WIDE)
        seen = tl.load(PACKED + row * (D + 1) + D, mask=k < K, other=0.0).to(WIDE)
        count = _towards(before, seen, weight)
        inside = (k < K)[:, None] & (c < D)[None, :]
        at = row[:, None] * D + c[None, :]
        total = tl.load(TOTAL + at, mask=inside, other=0.0).to(WIDE)
        sums = tl.load(PACKED + row[:, None] * (D + 1) + c[None, :], mask=inside, other=0.0)
        total = _towards(total, sums.to(WIDE), weight)
        smooth = (count + eps) / (mass + K * eps) * mass
        # More than one warp may hold a number: all have read it before any writes.
        tl.debug_barrier()
        tl.store(COUNT + k, count.to(COUNT.dtype.element_ty), mask=k < K)
        tl.store(TOTAL + at, total.to(TOTAL.dtype.element_ty), mask=inside)
        code = total / smooth[:, None]
        tl.store(CODEBOOK + at, code.to(CODEBOOK.dtype.element_ty), mask=inside)


# --- launches ------------------------------------------------------------------------------------

CHUNK = 64  # channels of a product: at 128 the halves of tf32x3 no longer fit in the registers
FEW_ROWS = 1 << 14  # up to here small tiles, so that every multiprocessor gets one
# A table of sums this small is summed without a sort, as long as looking at every index once for
# every entry stays below what a sort costs: some 10 microseconds of all lanes of an H200.
SELECT_TABLE, SELECT_WORK = 1 << 13, 1 << 28
SELECT_ROWS, SELECT_PARTS = 4096, 32  # rows of a part, until there are so many parts
PIECE_ROWS = 256  # of a chunk in sorted order: a heavy entry is cut into N / 256 programs
SUM_TILE, PIECE_TILE = 8192, 4096  # numbers: 32 in each lane of 8 and of 4 warps
UPDATE_ALONE, UPDATE_TILE = 1 << 15, 4096  # numbers that one program updates, and does at once


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(tensor: Tensor) -> Tensor:
    """Channels side by side, else a copy; any stride from row to row."""
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()


def _assign_constants(
    N: int, K: int, D: int, dtype: torch.dtype, arch: int | None, *, pin: bool = True
) -> tuple[dict[str, object], tuning.Blocks]:
    # More channels than one chunk: a float32 chunk of half the size leaves room for the next one.
    widest = CHUNK // 2 if D > CHUNK and dtype.itemsize >= 4 else CHUNK
    DB = min(widest, max(16, triton.next_power_of_2(D)))
    rows = "few" if N <= FEW_ROWS else "many"
    tile = tuning.pick(tuning.VECTOR_QUANTIZE, arch, rows, DB, min(4, dtype.itemsize))
    constants = {
        "D": D,
        "DB": DB,
        "BN": tile.BN,
        "BK": min(tile.BK, max(16, triton.next_power_of_2(K))),
        "PRECISION": launch.precision_of(dtype),
        "WIDE": launch.wide_of(dtype),
        "PIN": pin,
    }
    return constants, tile


def nearest(
    z: Tensor,  # [N, D], any strides
    codebook: Tensor,  # [K, D], any strides
) -> tuple[Tensor, Tensor]:
    """(codes [N, D], indices [N] int64) of the nearest entries. One launch.

    A product of float32 numbers is three tf32 products, which drops its last two bits or so.
    """
    N, D = z.shape
    K = codebook.shape[0]
    codes = codebook.new_empty((N, D))
    indices = torch.empty(N, dtype=torch.int64, device=z.device)
    if N == 0:
        return codes, indices
    z, codebook = _rows(z), _rows(codebook)
    arch = launch.architecture(z)
    constants, tile = _assign_constants(N, K, D, z.dtype, arch, pin=z.is_cuda)
    with launch.on_device_of(z):
        assign_kernel[(triton.cdiv(N, tile.BN),)](
            z, codebook, codes, indices, N, K, z.stride(0), codebook.stride(0),
            **constants, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return codes, indices


def sums(
    z: Tensor,  # [N, D], any strides
    indices: Tensor,  # [N] int64
    K: int,
    *,
    counts: bool,
) -> Tensor:  # [K, D + counts], float32 (float64 for float64)
    """Sum of the rows of each entry and, in the last column, how many they are.

    One or two launches for a small table, a sort and three otherwise; nothing waits for the GPU. Beside
    the result a sort takes some 40 bytes a row, and the pieces (K + N / 256) D numbers. An index
    outside of 0 .. K - 1 is no entry's.
    """
    N, D = z.shape
    dtype = _wide(z.dtype)
    out = z.new_empty((K, D + counts), dtype=dtype)
    if N == 0:
        return out.zero_()
    if z.stride(1) not in (0, 1) and D > 1:
        z = z.contiguous()
    indices = indices.contiguous()
    DP = triton.next_power_of_2(D)
    constants = {
        "D": D,
        "STEP": 1 if D == 1 else z.stride(1),
        "DP": DP,
        "WIDE": launch.wide_of(z.dtype),
    }
    by_sort = K * D > SELECT_TABLE or N * K * DP > SELECT_WORK
    with launch.on_device_of(z):
        (_sums_by_sort if by_sort else _sums_by_selection)(z, indices, out, counts, constants)
    return out


def _sums_by_selection(
    z: Tensor, indices: Tensor, out: Tensor, counts: bool, constants: dict[str, object]
) -> None:
    N, K = z.shape[0], out.shape[0]
    rows = max(SELECT_ROWS, triton.cdiv(N, SELECT_PARTS))
    parts = triton.cdiv(N, rows)
    partial = out if parts == 1 else out.new_empty((parts, *out.shape))
    select_kernel[(K * parts,)](
        z, indices, partial, N, K, rows, z.stride(0), **constants, COUNTS=int(counts),
        BN=max(1, SUM_TILE // constants["DP"]), num_warps=8,
    )  # fmt: skip
    if parts > 1:
        W = out.numel()
        parts_kernel[(triton.cdiv(W, 128),)](partial, out, parts, W, COLUMNS=128, num_warps=4)


def _sums_by_sort(
    z: Tensor, indices: Tensor, out: Tensor, counts: bool, constants: dict[str, object]
) -> None:
    (N, D), K = z.shape, out.shape[0]
    ordered, order = torch.sort(indices, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(K + 1, device=z.device))
    count = K + triton.cdiv(N, PIECE_ROWS)
    pieces = out.new_empty((count, D))
    tile = {"ROWS": PIECE_ROWS, "BN": max(1, PIECE_TILE // constants["DP"])}
    steps = max(1, (K - 1).bit_length())
    pieces_kernel[(count,)](
        z, order, starts, pieces, K, z.stride(0), **constants, **tile, STEPS=steps, num_warps=4
    )
    summed = {name: constants[name] for name in ("D", "DP", "WIDE")}
    entries_kernel[(K,)](pieces, starts, out, **summed, **tile, COUNTS=int(counts), num_warps=4)


def update(
    codebook: Tensor,  # [K, D], overwritten
    count: Tensor,  # [K], overwritten
    total: Tensor,  # [K, D], overwritten
    packed: Tensor,  # [K, D + 1]
    *,
    decay: float,
    eps: float,
) -> None:
    """Running means of sums and counts, and the codebook they make. One launch, two for large tables.

    Tables with gaps are worked on in copies.
    """
    K, D = codebook.shape
    if K * D == 0:
        return
    given = (codebook, count, total)
    tables = [table.contiguous() for table in given]
    alone = K * D <= UPDATE_ALONE
    DP = triton.next_power_of_2(D)
    BK = max(1, UPDATE_TILE // DP)
    widest = max((table.dtype for table in tables), key=lambda dtype: dtype.itemsize)
    with launch.on_device_of(codebook):
        update_kernel[(1 if alone else triton.cdiv(K, BK),)](
            *tables, tables[1] if alone else tables[1].clone(), packed.contiguous(), K,
            1 - decay, eps, D=D, BK=BK, DP=DP, KB=1024, WIDE=launch.wide_of(widest), num_warps=4,
        )  # fmt: skip
        for table, made in zip(given, tables, strict=True):
            if made is not table:
                table.copy_(made)


# (K, D, dtypes): what is shipped, so what must compile without a spill.
_SHIPPED = (
    (32, 32, ("fp32", "bf16", "fp16")),  # the codebook of the latent action model
    (8, 8, ("fp32",)),  # the smallest
    (1024, 32, ("fp32", "bf16")),
    (8192, 64, ("fp32", "bf16")),
    (1024, 128, ("fp32",)),  # channels in two chunks
)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def configurations(arch: int | None = None) -> Iterator[tuning.Configuration]:
    """Every kernel as it is shipped for an architecture; N and K are arguments, not constants."""
    for K, D, dtypes in _SHIPPED:
        for name in dtypes:
            of = f"K={K} d={D} {name}"
            for rows, N in (("few", 1), ("many", FEW_ROWS + 1)):
                constants, tile = _assign_constants(N, K, D, _DTYPES[name], arch)
                yield _configuration(
                    f"vector_quantize {of} {rows} rows", assign_kernel, tile, constants, name
                )
            DP = triton.next_power_of_2(D)
            constants = {"D": D, "STEP": 1, "COUNTS": 1, "DP": DP, "WIDE": tl.float32}
            if K * D <= SELECT_TABLE:
                tile = {"BN": max(1, SUM_TILE // DP)}
                yield _configuration(
                    f"code_statistics select {of}", select_kernel, 8, constants | tile, name
                )
            tile = {"ROWS": PIECE_ROWS, "BN": max(1, PIECE_TILE // DP)}
            tile["STEPS"] = max(1, (K - 1).bit_length())
            for kernel in (pieces_kernel, entries_kernel):
                yield _configuration(
                    f"code_statistics {kernel.__name__.removesuffix('_kernel')} {of}",
                    kernel, 4, constants | tile, name,
                )  # fmt: skip
        constants = {"D": D, "BK": max(1, UPDATE_TILE // DP), "DP": DP, "KB": 1024}
        yield _configuration(
            f"update_codebook K={K} d={D}", update_kernel, 4, constants | {"WIDE": tl.float32}, name
        )
    yield _configuration("code_statistics parts", parts_kernel, 4, {"COLUMNS": 128}, "fp32")


def _configuration(
    label: str,
    kernel: triton.JITFunction,
    blocks: tuning.Blocks | int,
    constants: dict[str, object],
    dtype: str,
) -> tuning.Configuration:
    if isinstance(blocks, int):
        blocks = tuning.Blocks(num_warps=blocks, reason="32 numbers in a lane")
    latents = dict.fromkeys(("Z", "E", "CODES"), dtype)
    whole = dict.fromkeys(("INDICES", "ORDER", "STARTS"), "i64")
    sums = ("OUT", "PARTS", "PIECES", "CODEBOOK", "COUNT", "TOTAL", "BEFORE", "PACKED")
    pointers = latents | whole | dict.fromkeys(sums, "fp32")
    names = kernel.arg_names
    made = tuning.configuration(
        label,
        kernel,
        blocks,
        {n: v for n, v in constants.items() if n in names},
        pointers={n: t for n, t in pointers.items() if n in names},
        floats=("weight", "eps"),
    )
    # A row is D numbers, and 8 divides each D above: told so, a lane loads 16 bytes at once.
    divisor = 16 if constants.get("D", 16) % 16 == 0 else 8
    strides = {n: divisor for n in names if n.endswith("_stride")}
    return replace(made, divisible={**made.divisible, **strides})
