"""Temporal attention in Triton: q/k norm, rotary embedding, attention over T <= 32 and its gradient.

One read of qkv and one write of the result: the op is bound by memory, everything between the two
stays in registers. Nothing is saved for the backward pass but qkv and the weights; it computes the
rest again. A tile is one location and one head,

    x [TP, DP]      T padded to TP = 16 or 32 rows, D padded to DP = 16 .. 128 channels

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

from colaworld.kernels import launch, tuning

LOG2_E = tl.constexpr(1.4426950408889634)  # the hardware has a power of two, not of e

MAX_FRAMES = 32  # rows of a tile; longer sequences are what flash attention is for
MAX_CHANNELS = 128


@triton.jit
def _turn(x, cos, sin, TP: tl.constexpr, DP: tl.constexpr):
    """Rotate the channel pairs (0, 1), (2, 3), ... of x [TP, DP]; cos, sin [TP, DP / 2]."""
    even, odd = tl.split(tl.reshape(x, (TP, DP // 2, 2)))
    turned = tl.join(even * cos - odd * sin, odd * cos + even * sin)
    return tl.reshape(turned, (TP, DP))


@triton.jit
def _inverse_rms(x, there, eps, D: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) [TP, 1]; 0 in rows of padding, whatever eps is."""
    return tl.where(there, 1 / tl.sqrt(tl.sum(x * x, 1, keep_dims=True) / D + eps), 0.0)


@triton.jit
def _weight(W, D: tl.constexpr, DP: tl.constexpr, NORM: tl.constexpr, WIDE: tl.constexpr):
    """[1, DP], or nothing to read when there is no norm."""
    if NORM:
        d = tl.arange(0, DP)[None, :]
        weight = tl.load(W + d, mask=d < D, other=0.0).to(WIDE)
    else:
        weight = 0.0
    return weight


@triton.jit
def _table(
    TABLE,  # [T, D / 2]
    T,
    D: tl.constexpr,
    TP: tl.constexpr,
    DP: tl.constexpr,
    ROPE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """[TP, DP / 2], or nothing to read when there is no rotation."""
    if ROPE:
        t = tl.arange(0, TP)[:, None]
        pair = tl.arange(0, DP // 2)[None, :]
        at = t * (D // 2) + pair
        table = tl.load(TABLE + at, mask=(t < T) & (pair < D // 2), other=0.0).to(WIDE)
    else:
        table = 0.0
    return table


@triton.jit
def _prepare(
    x,  # [TP, DP]
    weight,  # [1, DP]
    cos,  # [TP, DP / 2]
    sin,  # [TP, DP / 2]
    there,  # [TP, 1]
    eps,
    D: tl.constexpr,
    TP: tl.constexpr,
    DP: tl.constexpr,
    NORM: tl.constexpr,
    ROPE: tl.constexpr,
):
    """Norm, then rotation: what enters the scores."""
    if NORM:
        x = x * _inverse_rms(x, there, eps, D) * weight
    if ROPE:
        x = _turn(x, cos, sin, TP, DP)
    return x


@triton.jit
def _unprepare(
    g,  # [TP, DP], gradient of what _prepare returned
    x,  # [TP, DP], what _prepare was given
    weight,  # [1, DP]
    cos,  # [TP, DP / 2]
    sin,  # [TP, DP / 2]
    there,  # [TP, 1]
    eps,
    D: tl.constexpr,
    TP: tl.constexpr,
    DP: tl.constexpr,
    NORM: tl.constexpr,
    ROPE: tl.constexpr,
):
    """Gradients of x [TP, DP] and of the weight [DP]: back through the rotation, then the norm.

    With n = x r, r = 1 / sqrt(mean(x^2) + eps) and h = g w: dw = sum_t g n, dx = r (h - n mean(h n)).
    """
    if ROPE:
        g = _turn(g, cos, -sin, TP, DP)
    if NORM:
        inverse = _inverse_rms(x, there, eps, D)
        normed = x * inverse
        dweight = tl.sum(g * normed, 0)
        g = g * weight
        g = inverse * (g - normed * (tl.sum(g * normed, 1, keep_dims=True) / D))
    else:
        dweight = tl.zeros((DP,), g.dtype)
    return g, dweight


@triton.jit
def _softmax_of_scores(
    q,  # [TP, DP]
    k,  # [TP, DP]
    T,
    scale,
    TP: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """[TP, TP] wide. Every row sees at least key 0, rows of padding too: no row is 0 / 0."""
    key = tl.arange(0, TP)[None, :]
    keep = key < T
    if CAUSAL:
        keep = keep & (key <= tl.arange(0, TP)[:, None])
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=WIDE)
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
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    ROPE: tl.constexpr,
    UNIT: tl.constexpr,
    TP: tl.constexpr,
    DP: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    # Heads run fastest: neighbouring programs share the cache lines that their rows straddle.
    program = tl.program_id(0)
    location = program // H
    h = (program % H).to(tl.int64)
    b = (location // S).to(tl.int64)
    s = (location % S).to(tl.int64)
    t = tl.arange(0, TP)[:, None]
    d = tl.arange(0, DP)[None, :]
    there = t < T
    mask = there & (d < D)
    t = t.to(tl.int64)

    at = QKV + b * stride_b * UNIT + s * stride_s * UNIT + h * stride_h * UNIT
    at = at + t * stride_t * UNIT + d
    part = tl.cast(stride_3, tl.int64) * UNIT
    narrow = QKV.dtype.element_ty
    q = tl.load(at, mask=mask, other=0.0).to(WIDE)
    k = tl.load(at + part, mask=mask, other=0.0).to(WIDE)
    v = tl.load(at + 2 * part, mask=mask, other=0.0)
    cos = _table(COS, T, D, TP, DP, ROPE, WIDE)
    sin = _table(SIN, T, D, TP, DP, ROPE, WIDE)
    qw = _weight(QW, D, DP, Q_NORM, WIDE)
    q = _prepare(q, qw, cos, sin, there, eps, D, TP, DP, Q_NORM, ROPE).to(narrow)
    kw = _weight(KW, D, DP, K_NORM, WIDE)
    k = _prepare(k, kw, cos, sin, there, eps, D, TP, DP, K_NORM, ROPE).to(narrow)
    p = _softmax_of_scores(q, k, T, scale, TP, CAUSAL, PRECISION, WIDE)
    out = tl.dot(p.to(narrow), v, input_precision=PRECISION, out_dtype=WIDE)
    to = OUT + ((b * T * S + s) * H + h) * D + t * S * (H * D) + d
    tl.store(to, out.to(narrow), mask=mask)


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
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    ROPE: tl.constexpr,
    UNIT: tl.constexpr,
    TP: tl.constexpr,
    DP: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    first = program // H * steps
    h = (program % H).to(tl.int64)
    d = tl.arange(0, DP)[None, :]
    row = tl.arange(0, TP)[:, None]
    there = row < T
    mask = there & (d < D)
    t = row.to(tl.int64)
    part = tl.cast(stride_3, tl.int64) * UNIT
    narrow = QKV.dtype.element_ty
    dqw = tl.zeros((DP,), WIDE)
    dkw = tl.zeros((DP,), WIDE)
    for location in range(first, tl.minimum(first + steps, locations)):
        b = (location // S).to(tl.int64)
        s = (location % S).to(tl.int64)
        at = QKV + b * stride_b * UNIT + s * stride_s * UNIT + h * stride_h * UNIT
        at = at + t * stride_t * UNIT + d
        q = tl.load(at, mask=mask, other=0.0).to(WIDE)
        k = tl.load(at + part, mask=mask, other=0.0).to(WIDE)
        v = tl.load(at + 2 * part, mask=mask, other=0.0)
        grad = GRAD + ((b * T * S + s) * H + h) * D + t * S * (H * D) + d
        g = tl.load(grad, mask=mask, other=0.0)
        cos = _table(COS, T, D, TP, DP, ROPE, WIDE)
        sin = _table(SIN, T, D, TP, DP, ROPE, WIDE)
        qw = _weight(QW, D, DP, Q_NORM, WIDE)
        q = _prepare(q, qw, cos, sin, there, eps, D, TP, DP, Q_NORM, ROPE).to(narrow)
        kw = _weight(KW, D, DP, K_NORM, WIDE)
        k = _prepare(k, kw, cos, sin, there, eps, D, TP, DP, K_NORM, ROPE).to(narrow)
        p = _softmax_of_scores(q, k, T, scale, TP, CAUSAL, PRECISION, WIDE)

        to = DQKV + ((b * T * S + s) * 3 * H + h) * D + t * S * (3 * H * D) + d
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION, out_dtype=WIDE)
        dv = tl.dot(tl.trans(p.to(narrow)), g, input_precision=PRECISION, out_dtype=WIDE)
        tl.store(to + 2 * H * D, dv.to(narrow), mask=mask)
        ds = (p * (dp - tl.sum(p * dp, 1, keep_dims=True)) * scale).to(narrow)

        # What stands in the cache is read again rather than held: registers are what limits how
        # many tiles an SM works on at once.
        dq = tl.dot(ds, k, input_precision=PRECISION, out_dtype=WIDE)
        q_raw = tl.load(at, mask=mask, other=0.0).to(WIDE)
        cos = _table(COS, T, D, TP, DP, ROPE, WIDE)
        sin = _table(SIN, T, D, TP, DP, ROPE, WIDE)
        dq, dw = _unprepare(dq, q_raw, qw, cos, sin, there, eps, D, TP, DP, Q_NORM, ROPE)
        tl.store(to, dq.to(narrow), mask=mask)
        dqw += dw
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION, out_dtype=WIDE)
        k_raw = tl.load(at + part, mask=mask, other=0.0).to(WIDE)
        cos = _table(COS, T, D, TP, DP, ROPE, WIDE)
        sin = _table(SIN, T, D, TP, DP, ROPE, WIDE)
        dk, dw = _unprepare(dk, k_raw, kw, cos, sin, there, eps, D, TP, DP, K_NORM, ROPE)
        tl.store(to + H * D, dk.to(narrow), mask=mask)
        dkw += dw
    c = tl.arange(0, DP)
    partial = DW + program.to(tl.int64) * (2 * D) + c
    if Q_NORM:
        tl.store(partial, dqw, mask=c < D)
    if K_NORM:
        tl.store(partial + D, dkw, mask=c < D)


# Programs of the backward pass, about: 10 and more for each place on an H200, and 2.4 MB of partial
# sums at head dim 72, under 1 % of what the pass moves at 8 x 16 x 256 tokens.
PROGRAMS = 4096


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
) -> dict[str, object]:
    """What a kernel is compiled for."""
    return {
        "D": D,
        "CAUSAL": causal,
        "Q_NORM": q_norm,
        "K_NORM": k_norm,
        "ROPE": rope,
        "UNIT": unit,
        "TP": 16 if T <= 16 else 32,
        "DP": max(16, triton.next_power_of_2(D)),
        "PRECISION": launch.precision_of(dtype),
        "WIDE": launch.wide_of(dtype),
    }


def _blocks(
    direction: str, arch: int | None, constants: dict[str, object], dtype: torch.dtype
) -> tuning.Blocks:
    key = (direction, constants["TP"], constants["DP"], dtype.itemsize)
    return tuning.pick(tuning.ST_ATTENTION, arch, *key)


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
    """Attention over T at each location; T <= MAX_FRAMES, D <= MAX_CHANNELS. One launch."""
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
    constants = _constants(T, D, qkv.dtype, unit=unit, **options)
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
    constants = _constants(T, D, qkv.dtype, unit=unit, **options)
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
    (16, 72, 16, ("bf16", "fp16", "fp32"), False, True, True),  # STDiT3-XL
    (16, 72, 32, ("bf16", "fp32"), False, True, True),
    (16, 72, 16, ("bf16",), True, True, True),
    (12, 64, 16, ("bf16", "fp16", "fp32"), False, True, True),  # latent action model
    (12, 64, 32, ("bf16",), False, True, True),
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
