"""Temporal attention in Triton: q/k norm, rotary embedding, attention over T <= 32 and its gradient.

One read of qkv and one write of the result: the op is bound by memory, everything between the two
stays in registers. Nothing is saved for the backward pass but qkv and the weights; it computes the
rest again. A tile is one location and one head,

    x [TP, D0 | D1]      T padded to TP = 16 or 32 rows; D padded to two powers of two, 72 to 64 + 16

so no number of one location is ever multiplied with one of another, not even with a zero: a NaN
stays where it is. Rows and channels of padding are read as 0 and never written. Sums run in float32
(WIDE; float64 for float64 tensors, which the interpreter alone is given).
Not here: the spatial axis (`qk_norm_rope` ahead of a library's attention), checks of arguments, and
anything of colaworld.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from colaworld.kernels import arithmetic, launch, tuning

LOG2_E = tl.constexpr(1.4426950408889634)  # the hardware has a power of two, not of e

LARGEST_OFFSET = 2**31 - 1  # of 32 bits, which cost half the registers and additions of 64


@triton.jit
def _load(
    BASE,
    rows,  # [TP, 1], offsets from BASE of the first channel of each row
    there,  # [TP, 1]
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
):
    """The two parts of a tile, [TP, D0] and [TP, D1]; 0 where there is only padding."""
    d = tl.arange(0, D0)[None, :]
    x0 = tl.load(BASE + (rows + d), mask=there & (d < D), other=0.0)
    x1 = x0  # what nobody reads when there is one part alone
    if D1 > 0:
        d = D0 + tl.arange(0, D1)[None, :]
        x1 = tl.load(BASE + (rows + d), mask=there & (d < D), other=0.0)
    return x0, x1


@triton.jit
def _store(BASE, rows, there, x0, x1, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """The inverse of _load, in the dtype that BASE points to."""
    narrow = BASE.dtype.element_ty
    d = tl.arange(0, D0)[None, :]
    tl.store(BASE + (rows + d), x0.to(narrow), mask=there & (d < D))
    if D1 > 0:
        d = D0 + tl.arange(0, D1)[None, :]
        tl.store(BASE + (rows + d), x1.to(narrow), mask=there & (d < D))


@triton.jit
def _once(x, PIN: tl.constexpr):
    """x, computed once. The compiler would rather compute a chain of cheap operations again for each
    layout that is asked of its result, and hold every copy in registers; it does not look past this.
    """
    if PIN:
        if x.dtype.primitive_bitwidth == 16:
            x = tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2
            )
        else:
            x = tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=1
            )
    return x


@triton.jit
def _row_sum(x0, x1, D1: tl.constexpr):
    """[TP, 1] from the two parts of a tile."""
    total = tl.sum(x0, 1, keep_dims=True)
    if D1 > 0:
        total += tl.sum(x1, 1, keep_dims=True)
    return total


@triton.jit
def _against(a0, a1, b0, b1, D1: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """a b' [TP, TP] of two tiles."""
    product = tl.dot(a0, tl.trans(b0), input_precision=PRECISION, out_dtype=WIDE)
    if D1 > 0:
        product = tl.dot(a1, tl.trans(b1), product, input_precision=PRECISION, out_dtype=WIDE)
    return product


@triton.jit
def _times(p, x0, x1, D1: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """p x of [TP, TP] and a tile: a tile, wide."""
    y0 = tl.dot(p, x0, input_precision=PRECISION, out_dtype=WIDE)
    y1 = y0
    if D1 > 0:
        y1 = tl.dot(p, x1, input_precision=PRECISION, out_dtype=WIDE)
    return y0, y1


@triton.jit
def _turn_part(x, cos, sin):
    """Rotate the channel pairs (0, 1), (2, 3), ... of x [TP, DX]; cos, sin [TP, DX / 2]."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
    turned = tl.join(even * cos - odd * sin, odd * cos + even * sin)
    return tl.reshape(turned, (x.shape[0], x.shape[1]))


@triton.jit
def _table_part(
    TABLE, t, T, D: tl.constexpr, START: tl.constexpr, DX: tl.constexpr, WIDE: tl.constexpr
):
    """Columns of the channels START .. START + DX - 1 of a table [T, D / 2]: [TP, DX / 2]."""
    pair = START // 2 + tl.arange(0, DX // 2)[None, :]
    at = t * (D // 2) + pair
    return tl.load(TABLE + at, mask=(t < T) & (pair < D // 2), other=0.0).to(WIDE)


@triton.jit
def _turn(
    x0,  # [TP, D0]
    x1,  # [TP, D1]
    COS,  # [T, D / 2]
    SIN,  # [T, D / 2]
    T,
    BACK: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Rotate a tile, or turn it BACK. The tables are read anew each time: they stay in the cache,
    and registers are what limits how many tiles an SM works on at once."""
    t = tl.arange(0, x0.shape[0])[:, None]
    cos = _table_part(COS, t, T, D, 0, D0, WIDE)
    sin = _table_part(SIN, t, T, D, 0, D0, WIDE)
    x0 = _turn_part(x0, cos, -sin if BACK else sin)
    if D1 > 0:
        cos = _table_part(COS, t, T, D, D0, D1, WIDE)
        sin = _table_part(SIN, t, T, D, D0, D1, WIDE)
        x1 = _turn_part(x1, cos, -sin if BACK else sin)
    return x0, x1


@triton.jit
def _weight(W, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, WIDE: tl.constexpr):
    """[1, D0] and [1, D1]."""
    d = tl.arange(0, D0)
    w0 = tl.load(W + d, mask=d < D, other=0.0).to(WIDE)[None, :]
    w1 = w0
    if D1 > 0:
        d = D0 + tl.arange(0, D1)
        w1 = tl.load(W + d, mask=d < D, other=0.0).to(WIDE)[None, :]
    return w0, w1


@triton.jit
def _inverse_rms(x0, x1, there, eps, D: tl.constexpr, D1: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) [TP, 1]; 0 in rows of padding, whatever eps is."""
    return tl.where(there, 1 / tl.sqrt(_row_sum(x0 * x0, x1 * x1, D1) / D + eps), 0.0)


@triton.jit
def _prepared(
    BASE,
    rows,  # [TP, 1], offsets of queries, or keys
    W,
    COS,
    SIN,
    T,
    there,  # [TP, 1]
    eps,
    NORM: tl.constexpr,
    ROPE: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    WIDE: tl.constexpr,
    PIN: tl.constexpr,
):
    """Read, norm, then rotation: what enters the scores, in the dtype that was read."""
    narrow = BASE.dtype.element_ty
    x0, x1 = _load(BASE, rows, there, D, D0, D1)
    x0 = x0.to(WIDE)
    x1 = x1.to(WIDE)
    if NORM:
        inverse = _inverse_rms(x0, x1, there, eps, D, D1)
        w0, w1 = _weight(W, D, D0, D1, WIDE)
        x0 = x0 * inverse * w0
        if D1 > 0:
            x1 = x1 * inverse * w1
    if ROPE:
        x0, x1 = _turn(x0, x1, COS, SIN, T, False, D, D0, D1, WIDE)
    x0 = _once(x0.to(narrow), PIN)
    if D1 > 0:
        x1 = _once(x1.to(narrow), PIN)
    return x0, x1


@triton.jit
def _unprepared(
    g0,  # [TP, D0], gradient of what _prepared returned
    g1,  # [TP, D1]
    BASE,
    rows,  # [TP, 1], offsets of what _prepared read
    W,
    COS,
    SIN,
    T,
    there,  # [TP, 1]
    eps,
    NORM: tl.constexpr,
    ROPE: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    WIDE: tl.constexpr,
    PIN: tl.constexpr,
):
    """Gradients of a tile and of the weight [D0], [D1]: back through the rotation, then the norm.

    With n = x r, r = 1 / sqrt(mean(x^2) + eps) and h = g w: dw = sum_t g n, dx = r (h - n mean(h n)).
    """
    dw0 = 0.0
    dw1 = 0.0
    if ROPE:
        g0, g1 = _turn(g0, g1, COS, SIN, T, True, D, D0, D1, WIDE)
        g0 = _once(g0, PIN)
        if D1 > 0:
            g1 = _once(g1, PIN)
    if NORM:
        x0, x1 = _load(BASE, rows, there, D, D0, D1)
        x0 = x0.to(WIDE)
        x1 = x1.to(WIDE)
        inverse = _inverse_rms(x0, x1, there, eps, D, D1)
        x0 = x0 * inverse
        x1 = x1 * inverse
        w0, w1 = _weight(W, D, D0, D1, WIDE)
        dw0 = tl.sum(arithmetic.product(g0, x0, PIN), 0)
        g0 = g0 * w0
        if D1 > 0:
            dw1 = tl.sum(arithmetic.product(g1, x1, PIN), 0)
            g1 = g1 * w1
        mean = _row_sum(g0 * x0, g1 * x1, D1) / D
        g0 = inverse * (g0 - x0 * mean)
        if D1 > 0:
            g1 = inverse * (g1 - x1 * mean)
    return g0, g1, dw0, dw1


@triton.jit
def _add_to(SUMS, dw0, dw1, more, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """Add [D0], [D1] to what stands in SUMS [D], or put them there when there is no more before.

    SUMS belongs to this program alone and stays in the cache; in registers it would cost a sixth of
    them, in every warp. The first barrier lets each lane see what another wrote the last time, the
    second lets all of them read before any writes: a number may be held by several lanes.
    """
    more = tl.full((1,), 1, tl.int32) * more > 0
    tl.debug_barrier()
    d0 = tl.arange(0, D0)
    before0 = tl.load(SUMS + d0, mask=(d0 < D) & more, other=0.0)
    if D1 > 0:
        d1 = D0 + tl.arange(0, D1)
        before1 = tl.load(SUMS + d1, mask=(d1 < D) & more, other=0.0)
    tl.debug_barrier()
    tl.store(SUMS + d0, before0 + dw0, mask=d0 < D)
    if D1 > 0:
        tl.store(SUMS + d1, before1 + dw1, mask=d1 < D)


@triton.jit
def _softmax(scores, T, scale, CAUSAL: tl.constexpr):
    """Weights [TP, TP] of raw scores. Every row sees key 0, rows of padding too: none is 0 / 0."""
    key = tl.arange(0, scores.shape[1])[None, :]
    keep = key < T
    if CAUSAL:
        keep = keep & (key <= tl.arange(0, scores.shape[0])[:, None])
    scores = tl.where(keep, scores * (scale * LOG2_E), -float("inf"))
    p = tl.exp2(scores - tl.max(scores, 1, keep_dims=True))
    return p / tl.sum(p, 1, keep_dims=True)


@triton.jit
def forward_kernel(
    QKV,  # [B, T, S, 3, H, D], strides below in units of UNIT elements
    OUT,  # [B, T, S, H, D], contiguous
    QW,  # [D]
    KW,  # [D]
    COS,  # [T, D / 2], contiguous
    SIN,  # [T, D / 2], contiguous
    scale,
    eps,
    T,
    S,
    H,
    stride_b,
    stride_t,
    stride_s,
    stride_3,
    stride_h,
    CAUSAL: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    ROPE: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    TP: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PIN: tl.constexpr,
):
    # Heads run fastest: neighbouring programs share the cache lines that their rows straddle.
    program = tl.program_id(0)
    location = program // H
    h = (program % H).to(tl.int64)
    b = (location // S).to(tl.int64)
    s = (location % S).to(tl.int64)
    t = tl.arange(0, TP)[:, None]
    there = t < T
    rows = t.to(OFFSET) * stride_t * UNIT
    part = tl.cast(stride_3, tl.int64) * UNIT
    Q = QKV + (b * stride_b * UNIT + s * stride_s * UNIT + h * stride_h * UNIT)
    q0, q1 = _prepared(Q, rows, QW, COS, SIN, T, there, eps, Q_NORM, ROPE, D, D0, D1, WIDE, PIN)
    K = Q + part
    k0, k1 = _prepared(K, rows, KW, COS, SIN, T, there, eps, K_NORM, ROPE, D, D0, D1, WIDE, PIN)
    v0, v1 = _load(K + part, rows, there, D, D0, D1)
    p = _softmax(_against(q0, q1, k0, k1, D1, PRECISION, WIDE), T, scale, CAUSAL)
    out0, out1 = _times(p.to(v0.dtype), v0, v1, D1, PRECISION, WIDE)
    to = OUT + ((b * T * S + s) * H + h) * D
    _store(to, t.to(OFFSET) * S * (H * D), there, out0, out1, D, D0, D1)


@triton.jit
def backward_kernel(
    GRAD,  # [B, T, S, H, D], contiguous
    QKV,  # [B, T, S, 3, H, D], strides below in units of UNIT elements
    DQKV,  # [B, T, S, 3, H, D], contiguous
    DW,  # [programs, 2, D], wide: sums of the gradients of the two weights over a program's tiles
    QW,  # [D]
    KW,  # [D]
    COS,  # [T, D / 2], contiguous
    SIN,  # [T, D / 2], contiguous
    scale,
    eps,
    locations,  # B * S
    steps,  # locations of a program, one after the other
    T,
    S,
    H,
    stride_b,
    stride_t,
    stride_s,
    stride_3,
    stride_h,
    CAUSAL: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    ROPE: tl.constexpr,
    UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
    TP: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PIN: tl.constexpr,
):
    program = tl.program_id(0)
    first = program // H * steps
    h = (program % H).to(tl.int64)
    t = tl.arange(0, TP)[:, None]
    there = t < T
    rows = t.to(OFFSET) * stride_t * UNIT
    out_rows = t.to(OFFSET) * S * (H * D)
    part = tl.cast(stride_3, tl.int64) * UNIT
    narrow = QKV.dtype.element_ty
    sums = DW + program.to(tl.int64) * (2 * D)
    for location in range(first, tl.minimum(first + steps, locations)):
        b = (location // S).to(tl.int64)
        s = (location % S).to(tl.int64)
        Q = QKV + (b * stride_b * UNIT + s * stride_s * UNIT + h * stride_h * UNIT)
        K = Q + part
        q0, q1 = _prepared(Q, rows, QW, COS, SIN, T, there, eps, Q_NORM, ROPE, D, D0, D1, WIDE, PIN)
        k0, k1 = _prepared(K, rows, KW, COS, SIN, T, there, eps, K_NORM, ROPE, D, D0, D1, WIDE, PIN)
        p = _softmax(_against(q0, q1, k0, k1, D1, PRECISION, WIDE), T, scale, CAUSAL)

        DQ = DQKV + ((b * T * S + s) * 3 * H + h) * D
        DK = DQ + H * D
        g0, g1 = _load(GRAD + ((b * T * S + s) * H + h) * D, out_rows, there, D, D0, D1)
        dv0, dv1 = _times(tl.trans(p.to(narrow)), g0, g1, D1, PRECISION, WIDE)
        _store(DK + H * D, 3 * out_rows, there, dv0, dv1, D, D0, D1)
        v0, v1 = _load(K + part, rows, there, D, D0, D1)
        dp = _against(g0, g1, v0, v1, D1, PRECISION, WIDE)
        ds = (p * (dp - tl.sum(p * dp, 1, keep_dims=True)) * scale).to(narrow)

        # q and k are read again below rather than held, as the tables are.
        dq0, dq1 = _times(ds, k0, k1, D1, PRECISION, WIDE)
        dq0, dq1, dw0, dw1 = _unprepared(
            dq0, dq1, Q, rows, QW, COS, SIN, T, there, eps, Q_NORM, ROPE, D, D0, D1, WIDE, PIN
        )
        _store(DQ, 3 * out_rows, there, dq0, dq1, D, D0, D1)
        if Q_NORM:
            _add_to(sums, dw0, dw1, location - first, D, D0, D1)
        dk0, dk1 = _times(tl.trans(ds), q0, q1, D1, PRECISION, WIDE)
        dk0, dk1, dw0, dw1 = _unprepared(
            dk0, dk1, K, rows, KW, COS, SIN, T, there, eps, K_NORM, ROPE, D, D0, D1, WIDE, PIN
        )
        _store(DK, 3 * out_rows, there, dk0, dk1, D, D0, D1)
        if K_NORM:
            _add_to(sums + D, dw0, dw1, location - first, D, D0, D1)


# Programs of the backward pass, about: 10 and more for each place on an H200, and 2.4 MB of partial
# sums at head dim 72, under 1 % of what the pass moves at 8 x 16 x 256 tokens.
PROGRAMS = 4096


def parts_of(D: int) -> tuple[int, int]:
    """(D0, D1), powers of two that hold D channels, at least 16 as tensor cores want; D1 may be 0.

    72 channels are 64 + 16 with 10 % of padding, where 128 alone would have 44 %, in registers too.
    """
    whole = max(16, triton.next_power_of_2(D))
    rest = max(16, triton.next_power_of_2(max(1, D - whole // 2)))
    return (whole // 2, rest) if rest < whole // 2 else (whole, 0)


def _constants(
    T: int,
    D: int,
    dtype: torch.dtype,
    *,
    causal: bool,
    q_norm: bool,
    k_norm: bool,
    rope: bool,
    unit: int,
    offset: tl.dtype = tl.int32,
    pin: bool = True,
) -> dict[str, object]:
    """What a kernel is compiled for."""
    D0, D1 = parts_of(D)
    return {
        "CAUSAL": causal,
        "Q_NORM": q_norm,
        "K_NORM": k_norm,
        "ROPE": rope,
        "UNIT": unit,
        "OFFSET": offset,
        "TP": 16 if T <= 16 else 32,
        "D": D,
        "D0": D0,
        "D1": D1,
        "PRECISION": launch.precision_of(dtype),
        "WIDE": launch.wide_of(dtype),
        "PIN": pin,
    }


def _blocks(
    direction: str, arch: int | None, constants: dict[str, object], dtype: torch.dtype
) -> tuning.Blocks:
    width = constants["D0"] + constants["D1"]
    key = (direction, constants["TP"], width, dtype.itemsize)
    return tuning.pick(tuning.ST_ATTENTION, arch, *key)


def _offset_of(qkv: Tensor) -> tl.dtype:
    """What holds an offset within one location and head; a location's own is always 64 bits."""
    T, S, _, H, D = qkv.shape[1:]
    return tl.int32 if T * max(qkv.stride(1), S * 3 * H * D) <= LARGEST_OFFSET else tl.int64


def _readable(qkv: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """qkv with neighbouring channels side by side, the others contiguous; qkv stands in for None."""
    qkv = qkv if qkv.stride(5) == 1 else qkv.contiguous()
    return qkv, *(qkv if other is None else other.contiguous() for other in others)


def temporal_attention(
    qkv: Tensor,  # [B, T, S, 3, H, D], any strides
    q_weight: Tensor | None,  # [D]
    k_weight: Tensor | None,  # [D]
    cos: Tensor | None,  # [T, D / 2]
    sin: Tensor | None,  # [T, D / 2]
    *,
    causal: bool,
    eps: float,
    scale: float,
) -> Tensor:  # [B, T, S, H, D], contiguous
    """Attention over T at each location; T <= 32, D <= 128. One launch."""
    B, T, S, _, H, D = qkv.shape
    out = qkv.new_empty((B, T, S, H, D))
    if out.numel() == 0:
        return out
    options = {
        "causal": causal,
        "q_norm": q_weight is not None,
        "k_norm": k_weight is not None,
        "rope": cos is not None,
    }
    qkv, q_weight, k_weight, cos, sin = _readable(qkv, q_weight, k_weight, cos, sin)
    unit = launch.unit_of(qkv.stride()[:5])
    strides = (stride // unit for stride in qkv.stride()[:5])
    constants = _constants(
        T, D, qkv.dtype, unit=unit, offset=_offset_of(qkv), pin=qkv.is_cuda, **options
    )
    blocks = _blocks("forward", launch.architecture(qkv), constants, qkv.dtype)
    with launch.on_device_of(qkv):
        forward_kernel[(B * S * H,)](
            qkv, out, q_weight, k_weight, cos, sin, scale, eps, T, S, H, *strides,
            **constants, num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
    return out


def temporal_attention_backward(
    grad: Tensor,  # [B, T, S, H, D], any strides
    qkv: Tensor,  # [B, T, S, 3, H, D], any strides
    q_weight: Tensor | None,  # [D]
    k_weight: Tensor | None,  # [D]
    cos: Tensor | None,  # [T, D / 2]
    sin: Tensor | None,  # [T, D / 2]
    *,
    causal: bool,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of qkv (contiguous) and of the two weights (wide, [D]). A launch and a sum.

    The sum over programs is a plain reduction of [programs, 2, D] in a fixed order: equal numbers at
    every run.
    """
    B, T, S, _, H, D = qkv.shape
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    weights = (q_weight, k_weight)
    if dqkv.numel() == 0:
        dqw, dkw = (None if w is None else qkv.new_zeros(D, dtype=wide) for w in weights)
        return dqkv, dqw, dkw
    options = {
        "causal": causal,
        "q_norm": q_weight is not None,
        "k_norm": k_weight is not None,
        "rope": cos is not None,
    }
    steps = max(1, B * S * H // PROGRAMS)
    programs = triton.cdiv(B * S, steps) * H
    partial = qkv.new_empty((programs, 2, D), dtype=wide)
    qkv, grad, q_weight, k_weight, cos, sin = _readable(qkv, grad, q_weight, k_weight, cos, sin)
    unit = launch.unit_of(qkv.stride()[:5])
    strides = (stride // unit for stride in qkv.stride()[:5])
    constants = _constants(
        T, D, qkv.dtype, unit=unit, offset=_offset_of(qkv), pin=qkv.is_cuda, **options
    )
    blocks = _blocks("backward", launch.architecture(qkv), constants, qkv.dtype)
    with launch.on_device_of(qkv):
        backward_kernel[(programs,)](
            grad, qkv, dqkv, partial, q_weight, k_weight, cos, sin, scale, eps, B * S, steps,
            T, S, H, *strides,
            **constants, num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
    dqw, dkw = (None if w is None else partial[:, i].sum(0) for i, w in enumerate(weights))
    return dqkv, dqw, dkw


# (H, D, longest T, dtypes, causal, norm, rope): what is shipped, so what must compile without a spill.
_SHIPPED = (
    (16, 72, 16, ("bf16", "fp16"), False, True, True),  # STDiT3-XL
    (16, 72, 32, ("bf16",), False, True, True),
    (16, 72, 16, ("bf16",), True, True, True),
    (12, 64, 16, ("bf16", "fp16", "fp32"), False, True, True),  # latent action model
    (12, 64, 32, ("bf16", "fp32"), False, True, True),
    (12, 64, 16, ("bf16", "fp32"), True, True, True),
    (12, 64, 16, ("bf16",), True, False, True),  # causal readers without a norm
    (16, 96, 16, ("bf16",), False, True, True),
    (12, 128, 16, ("bf16",), False, True, True),
    (12, 128, 32, ("bf16",), False, True, True),
)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def configurations(arch: int | None = None) -> Iterator[tuning.Configuration]:
    """Every kernel as it is shipped for an architecture; H and T are arguments, not constants.

    So a row with T <= 16 stands for T = 5, 8 and 16 alike.
    """
    tables = {"QW": "fp32", "KW": "fp32", "COS": "fp32", "SIN": "fp32"}
    for H, D, T, dtypes, causal, norm, rope in _SHIPPED:
        for name in dtypes:
            dtype = _DTYPES[name]
            constants = _constants(
                T, D, dtype, causal=causal, q_norm=norm, k_norm=norm, rope=rope, unit=launch.VECTOR
            )
            of = f"{H}x{D} T<={T} {name}{' causal' if causal else ''}{'' if norm else ' no norm'}"
            for direction, kernel, tensors in (
                ("forward", forward_kernel, ("QKV", "OUT")),
                ("backward", backward_kernel, ("GRAD", "QKV", "DQKV")),
            ):
                pointers = {**dict.fromkeys(tensors, name), **tables}
                if direction == "backward":
                    pointers["DW"] = "fp32"
                yield tuning.configuration(
                    f"st_attention {direction} {of}",
                    kernel,
                    _blocks(direction, arch, constants, dtype),
                    constants,
                    pointers=pointers,
                    floats=("scale", "eps"),
                )
