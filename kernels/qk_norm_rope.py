"""q/k norm and rotary embedding in Triton, forward and backward: the step ahead of an attention kernel.

Reads q and k where they stand (views of a packed qkv), writes them contiguous. Bound by memory. A
tile is one token with all of its heads, held as the two members of its channel pairs:

    a, b [HP, PP]     H padded to HP, D / 2 padded to PP; channels (2i, 2i + 1)

so that a norm "across" heads is one sum over the tile, and one row of the table serves every head.
Backward reads q and k again and computes the norm anew; the gradients of the weights are partial sums
over the tokens of a program, added up in a fixed order afterwards.
Not here: attention (`st_attention.py` has both for the temporal axis), checks of arguments, and
anything of colaworld.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from colaworld.kernels import launch, tuning

MAX_TOKEN = (
    16384  # padded numbers of a tile: 32 of each lane in 16 warps, twice in the backward pass
)


@triton.jit
def _load_pairs(
    X,  # start of a row of D channels for each of the rows
    row,  # [R, 1], offsets of the rows
    there,  # [R, 1]
    D: tl.constexpr,
    PP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The two members of each pair, [R, PP] each; 0 where there is only padding."""
    d = tl.arange(0, 2 * PP)[None, :]
    x = tl.load(X + row + d, mask=there & (d < D), other=0.0)
    a, b = tl.split(tl.reshape(x, (x.shape[0], PP, 2)))
    return a.to(WIDE), b.to(WIDE)


@triton.jit
def _store_pairs(X, row, there, a, b, D: tl.constexpr, PP: tl.constexpr):
    """The inverse of _load_pairs: a, b [R, PP] to the rows of X."""
    narrow = X.dtype.element_ty
    d = tl.arange(0, 2 * PP)[None, :]
    x = tl.reshape(tl.join(a.to(narrow), b.to(narrow)), (a.shape[0], 2 * PP))
    tl.store(X + row + d, x, mask=there & (d < D))


@triton.jit
def _weight_pairs(
    W,  # [D], or [H * D] when across
    h,  # [HP, 1]
    H,
    D: tl.constexpr,
    PP: tl.constexpr,
    NORM: tl.constexpr,
    ACROSS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """[HP, PP] each when across, else [1, PP]: the heads share one row."""
    if not NORM:
        a = 0.0
        b = 0.0
    elif ACROSS:
        a, b = _load_pairs(W, h * D, h < H, D, PP, WIDE)
    else:
        row = tl.zeros((1, 1), tl.int32)
        a, b = _load_pairs(W, row, row == 0, D, PP, WIDE)
    return a, b


@triton.jit
def _angles(
    COS,  # [P, D / 2], contiguous
    SIN,  # [P, D / 2], contiguous
    POSITION,  # [L, A] int64, contiguous
    token,  # index in 0 .. L - 1
    P,
    D: tl.constexpr,
    PP: tl.constexpr,
    ROPE: tl.constexpr,
    SECTIONS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Row of the tables for a token, [1, PP] each. A position outside of the tables reads as NaN."""
    if ROPE:
        pair = tl.arange(0, PP)[None, :]
        row = tl.zeros((1, PP), tl.int64) + token
        start = 0
        for axis in tl.static_range(len(SECTIONS)):
            here = tl.load(POSITION + token.to(tl.int64) * len(SECTIONS) + axis)
            row = tl.where(pair >= start, here, row)
            start += SECTIONS[axis]
        inside = (row >= 0) & (row < P)
        mask = inside & (pair < D // 2)
        missing = tl.where(inside, 0.0, float("nan"))
        cos = tl.load(COS + row * (D // 2) + pair, mask=mask, other=0.0).to(WIDE) + missing
        sin = tl.load(SIN + row * (D // 2) + pair, mask=mask, other=0.0).to(WIDE) + missing
    else:
        cos = 0.0
        sin = 0.0
    return cos, sin


@triton.jit
def _mean(values, count, ACROSS: tl.constexpr):
    """Sum of [HP, PP] over what one norm spans, divided by its size: [1, 1] across, else [HP, 1]."""
    total = tl.sum(values, 1, keep_dims=True)
    if ACROSS:
        total = tl.sum(total, 0, keep_dims=True)
    return total / count


@triton.jit
def _forward_one(
    X,
    OUT,
    W,
    row,
    out_row,
    h,
    H,
    cos,
    sin,
    eps,
    D: tl.constexpr,
    NORM: tl.constexpr,
    ACROSS: tl.constexpr,
    ROPE: tl.constexpr,
    PP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Queries, or keys, of one token."""
    there = h < H
    a, b = _load_pairs(X, row, there, D, PP, WIDE)
    if NORM:
        count = H * D if ACROSS else D
        inverse = 1 / tl.sqrt(_mean(a * a + b * b, count, ACROSS) + eps)
        wa, wb = _weight_pairs(W, h, H, D, PP, NORM, ACROSS, WIDE)
        a = a * inverse * wa
        b = b * inverse * wb
    if ROPE:
        a, b = a * cos - b * sin, b * cos + a * sin
    _store_pairs(OUT, out_row, there, a, b, D, PP)


@triton.jit
def forward_kernel(
    Q,  # [B, L, H, D], strides below in units of UNIT elements
    K,  # [B, L, H, D]
    Q_OUT,  # [B, L, H, D], contiguous
    K_OUT,  # [B, L, H, D], contiguous
    QW,  # [D], or [H * D] when across
    KW,  # [D], or [H * D] when across
    COS,  # [P, D / 2], contiguous
    SIN,  # [P, D / 2], contiguous
    POSITION,  # [L, A] int64, contiguous
    eps,
    L,
    H,
    P,
    q_stride_b,
    q_stride_l,
    q_stride_h,
    k_stride_b,
    k_stride_l,
    k_stride_h,
    D: tl.constexpr,
    NORM: tl.constexpr,
    ACROSS: tl.constexpr,
    ROPE: tl.constexpr,
    SECTIONS: tl.constexpr,
    UNIT: tl.constexpr,
    HP: tl.constexpr,
    PP: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // L).to(tl.int64)
    token = program % L
    h = tl.arange(0, HP)[:, None]
    cos, sin = _angles(COS, SIN, POSITION, token, P, D, PP, ROPE, SECTIONS, WIDE)
    out_row = (program.to(tl.int64) * H + h) * D
    wide_h = h.to(tl.int64)
    row = (
        b * q_stride_b * UNIT + token.to(tl.int64) * q_stride_l * UNIT + wide_h * q_stride_h * UNIT
    )
    _forward_one(Q, Q_OUT, QW, row, out_row, h, H, cos, sin, eps, D, NORM, ACROSS, ROPE, PP, WIDE)
    row = (
        b * k_stride_b * UNIT + token.to(tl.int64) * k_stride_l * UNIT + wide_h * k_stride_h * UNIT
    )
    _forward_one(K, K_OUT, KW, row, out_row, h, H, cos, sin, eps, D, NORM, ACROSS, ROPE, PP, WIDE)


@triton.jit
def _backward_one(
    GRAD,
    X,
    DX,
    W,
    row,
    out_row,
    h,
    H,
    cos,
    sin,
    eps,
    D: tl.constexpr,
    NORM: tl.constexpr,
    ACROSS: tl.constexpr,
    ROPE: tl.constexpr,
    PP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradient of queries, or keys, of one token; what it adds to that of the weight, [HP, PP] twice.

    With n = x r, r = 1 / sqrt(mean(x^2) + eps) and h = g w: dw = sum g n, dx = r (h - n mean(h n)).
    """
    there = h < H
    ga, gb = _load_pairs(GRAD, out_row, there, D, PP, WIDE)
    if ROPE:
        ga, gb = ga * cos + gb * sin, gb * cos - ga * sin
    dwa = 0.0
    dwb = 0.0
    if NORM:
        a, b = _load_pairs(X, row, there, D, PP, WIDE)
        count = H * D if ACROSS else D
        inverse = 1 / tl.sqrt(_mean(a * a + b * b, count, ACROSS) + eps)
        # A head of padding must add 0 to the weights' gradient, with eps = 0 too.
        inverse = tl.where(there, inverse, 0.0)
        a = a * inverse
        b = b * inverse
        dwa = ga * a
        dwb = gb * b
        wa, wb = _weight_pairs(W, h, H, D, PP, NORM, ACROSS, WIDE)
        ga = ga * wa
        gb = gb * wb
        mean = _mean(ga * a + gb * b, count, ACROSS)
        ga = inverse * (ga - a * mean)
        gb = inverse * (gb - b * mean)
    _store_pairs(DX, out_row, there, ga, gb, D, PP)
    return dwa, dwb


@triton.jit
def _backward_of(
    GRAD,
    X,
    DX,
    DW,  # start of the partial sums of this program, [D], or [H * D] when across
    W,
    COS,
    SIN,
    POSITION,
    eps,
    first,
    last,
    L,
    H,
    P,
    stride_b,
    stride_l,
    stride_h,
    D: tl.constexpr,
    NORM: tl.constexpr,
    ACROSS: tl.constexpr,
    ROPE: tl.constexpr,
    SECTIONS: tl.constexpr,
    UNIT: tl.constexpr,
    HP: tl.constexpr,
    PP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Queries, or keys, of tokens first .. last - 1, one after the other."""
    h = tl.arange(0, HP)[:, None]
    dwa = tl.zeros((HP, PP), WIDE)
    dwb = tl.zeros((HP, PP), WIDE)
    for at in range(first, last):
        b = (at // L).to(tl.int64)
        token = at % L
        cos, sin = _angles(COS, SIN, POSITION, token, P, D, PP, ROPE, SECTIONS, WIDE)
        out_row = (tl.cast(at, tl.int64) * H + h) * D
        row = b * stride_b * UNIT + token.to(tl.int64) * stride_l * UNIT
        row = row + h.to(tl.int64) * stride_h * UNIT
        more_a, more_b = _backward_one(
            GRAD, X, DX, W, row, out_row, h, H, cos, sin, eps,
            D, NORM, ACROSS, ROPE, PP, WIDE,
        )  # fmt: skip
        dwa += more_a
        dwb += more_b
    if NORM and ACROSS:
        _store_pairs(DW, h * D, h < H, dwa, dwb, D, PP)
    elif NORM:
        row = tl.zeros((1, 1), tl.int32)
        dwa = tl.sum(dwa, 0, keep_dims=True)
        dwb = tl.sum(dwb, 0, keep_dims=True)
        _store_pairs(DW, row, row == 0, dwa, dwb, D, PP)


@triton.jit
def backward_kernel(
    GRAD_Q,  # [B, L, H, D], contiguous
    GRAD_K,  # [B, L, H, D], contiguous
    Q,  # [B, L, H, D], strides below in units of UNIT elements; not read without a norm
    K,  # [B, L, H, D]
    DQ,  # [B, L, H, D], contiguous
    DK,  # [B, L, H, D], contiguous
    DW,  # [programs, 2, D], or [programs, 2, H * D] when across: partial sums, wide
    QW,  # [D], or [H * D] when across
    KW,  # [D], or [H * D] when across
    COS,  # [P, D / 2], contiguous
    SIN,  # [P, D / 2], contiguous
    POSITION,  # [L, A] int64, contiguous
    eps,
    tokens,  # B * L
    steps,  # tokens of a program, one after the other
    L,
    H,
    P,
    q_stride_b,
    q_stride_l,
    q_stride_h,
    k_stride_b,
    k_stride_l,
    k_stride_h,
    D: tl.constexpr,
    NORM: tl.constexpr,
    ACROSS: tl.constexpr,
    ROPE: tl.constexpr,
    SECTIONS: tl.constexpr,
    UNIT: tl.constexpr,
    HP: tl.constexpr,
    PP: tl.constexpr,
    WIDE: tl.constexpr,
):
    # All queries, then all keys: the sums of one weight alone are in registers at a time.
    first = tl.program_id(0) * steps
    last = tl.minimum(first + steps, tokens)
    width = H * D if ACROSS else D
    partial = DW + tl.program_id(0).to(tl.int64) * 2 * width
    _backward_of(
        GRAD_Q, Q, DQ, partial, QW, COS, SIN, POSITION, eps, first, last, L, H, P,
        q_stride_b, q_stride_l, q_stride_h,
        D, NORM, ACROSS, ROPE, SECTIONS, UNIT, HP, PP, WIDE,
    )  # fmt: skip
    _backward_of(
        GRAD_K, K, DK, partial + width, KW, COS, SIN, POSITION, eps, first, last, L, H, P,
        k_stride_b, k_stride_l, k_stride_h,
        D, NORM, ACROSS, ROPE, SECTIONS, UNIT, HP, PP, WIDE,
    )  # fmt: skip


# Programs of the backward pass, about: 8 and more for each place on an H200, while the partial sums
# stay a few per cent of what the pass moves (25 MB of 600 at Wan's 1536 channels).
PROGRAMS = 2048


def padded_token(H: int, D: int) -> tuple[int, int]:
    """(HP, PP): heads and channel pairs of a tile, powers of two."""
    return triton.next_power_of_2(H), triton.next_power_of_2((D + 1) // 2)


def _constants(
    H: int,
    D: int,
    dtype: torch.dtype,
    *,
    norm: bool,
    across: bool,
    rope: bool,
    sections: Sequence[int],
    unit: int,
) -> dict[str, object]:
    """What a kernel is compiled for."""
    HP, PP = padded_token(H, D)
    return {
        "D": D,
        "NORM": norm,
        "ACROSS": across,
        "ROPE": rope,
        "SECTIONS": tuple(sections),
        "UNIT": unit,
        "HP": HP,
        "PP": PP,
        "WIDE": launch.wide_of(dtype),
    }


def _blocks(direction: str, arch: int | None, constants: dict[str, object]) -> tuning.Blocks:
    size = constants["HP"] * 2 * constants["PP"]
    return tuning.pick(tuning.QK_NORM_ROPE, arch, direction, max(16, size))


def _readable(x: Tensor | None, instead: Tensor) -> Tensor:
    """x with neighbouring channels side by side; any tensor where there is nothing to read."""
    if x is None:
        return instead
    return x if x.stride(-1) == 1 else x.contiguous()


def _tables(cos, sin, position, instead: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """cos, sin, position to read, and P."""
    if cos is None:
        return instead, instead, instead, 0
    position = instead if position is None else position.contiguous()
    return cos.contiguous(), sin.contiguous(), position, cos.shape[0]


def qk_norm_rope(
    q: Tensor,  # [B, L, H, D], any strides
    k: Tensor,  # [B, L, H, D], any strides
    q_weight: Tensor | None,  # [D], or [H * D] when across
    k_weight: Tensor | None,  # [D], or [H * D] when across
    cos: Tensor | None,  # [P, D / 2]
    sin: Tensor | None,  # [P, D / 2]
    position: Tensor | None,  # [L, A] int64; None: row l for token l
    sections: Sequence[int],  # A counts of pairs
    *,
    eps: float,
    across: bool,
) -> tuple[Tensor, Tensor]:  # [B, L, H, D] each, contiguous
    """Norm, then rotation, of queries and keys in one launch; padded token <= MAX_TOKEN."""
    B, L, H, _ = q.shape
    outs = q.new_empty(q.shape), k.new_empty(k.shape)
    if q.numel() == 0:
        return outs
    options = {
        "norm": q_weight is not None,
        "across": across,
        "rope": cos is not None,
        "sections": sections,
    }
    q, k = _readable(q, q), _readable(k, k)
    q_weight, k_weight = (q if w is None else w.contiguous() for w in (q_weight, k_weight))
    cos, sin, position, P = _tables(cos, sin, position, q)
    strides = (*q.stride()[:3], *k.stride()[:3])
    unit = launch.unit_of(strides)
    constants = _constants(*q.shape[2:], q.dtype, unit=unit, **options)
    blocks = _blocks("forward", launch.architecture(q), constants)
    with launch.on_device_of(q):
        forward_kernel[(B * L,)](
            q, k, *outs, q_weight, k_weight, cos, sin, position, eps, L, H, P,
            *(stride // unit for stride in strides),
            **constants, num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
    return outs


def qk_norm_rope_backward(
    grad_q: Tensor,  # [B, L, H, D], any strides
    grad_k: Tensor,  # [B, L, H, D], any strides
    q: Tensor | None,  # [B, L, H, D], any strides; not read without a norm
    k: Tensor | None,  # [B, L, H, D], any strides
    q_weight: Tensor | None,  # [D], or [H * D] when across
    k_weight: Tensor | None,  # [D], or [H * D] when across
    cos: Tensor | None,  # [P, D / 2]
    sin: Tensor | None,  # [P, D / 2]
    position: Tensor | None,  # [L, A] int64; None: row l for token l
    sections: Sequence[int],  # A counts of pairs
    *,
    eps: float,
    across: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q and k (contiguous) and of the weights (wide). A launch and a sum in fixed order."""
    B, L, H, D = grad_q.shape
    outs = grad_q.new_empty(grad_q.shape), grad_k.new_empty(grad_k.shape)
    wide = torch.float64 if grad_q.dtype == torch.float64 else torch.float32
    norm = q_weight is not None
    width = (H * D if across else D) if norm else 0
    if grad_q.numel() == 0:
        zero = grad_q.new_zeros(width, dtype=wide) if norm else None
        return *outs, zero, zero if zero is None else zero.clone()
    options = {
        "norm": norm,
        "across": across,
        "rope": cos is not None,
        "sections": sections,
    }
    steps = max(1, B * L // PROGRAMS)
    programs = triton.cdiv(B * L, steps)
    partial = grad_q.new_empty((programs, 2, width), dtype=wide)
    grad_q, grad_k = grad_q.contiguous(), grad_k.contiguous()
    q, k = _readable(q, grad_q), _readable(k, grad_k)
    q_weight, k_weight = (q if w is None else w.contiguous() for w in (q_weight, k_weight))
    cos, sin, position, P = _tables(cos, sin, position, q)
    strides = (*q.stride()[:3], *k.stride()[:3])
    unit = launch.unit_of(strides)
    constants = _constants(*q.shape[2:], q.dtype, unit=unit, **options)
    blocks = _blocks("backward", launch.architecture(q), constants)
    with launch.on_device_of(q):
        backward_kernel[(programs,)](
            grad_q, grad_k, q, k, *outs, partial, q_weight, k_weight, cos, sin, position, eps,
            B * L, steps, L, H, P, *(stride // unit for stride in strides),
            **constants, num_warps=blocks.num_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
    if not norm:
        return *outs, None, None
    # Two tensors, not two views of one: the op's outputs do not share memory.
    return *outs, partial[:, 0].sum(0), partial[:, 1].sum(0)


# (H, D, dtypes, norm, rope, pairs of each axis): what is shipped, so what must not spill.
_SHIPPED = (
    (16, 72, ("bf16", "fp16", "fp32"), "head", False, ()),  # STDiT3-XL, spatial
    (16, 72, ("bf16",), "head", True, ()),
    (12, 64, ("bf16", "fp32"), "head", True, ()),  # latent action model
    (12, 64, ("bf16",), "none", True, ()),
    (16, 96, ("bf16",), "head", True, ()),
    (12, 128, ("bf16", "fp32"), "across", True, (22, 21, 21)),  # Wan 2.1, 1.3 B
    (40, 128, ("bf16",), "across", True, (22, 21, 21)),  # Wan 2.1, 14 B
)


def configurations(arch: int | None = None) -> Iterator[tuning.Configuration]:
    """Every kernel as it is shipped for an architecture."""
    tables = {"QW": "fp32", "KW": "fp32", "COS": "fp32", "SIN": "fp32", "POSITION": "i64"}
    for H, D, dtypes, norm, rope, sections in _SHIPPED:
        for name in dtypes:
            constants = _constants(
                H,
                D,
                torch.float32,
                norm=norm != "none",
                across=norm == "across",
                rope=rope,
                sections=sections,
                unit=launch.VECTOR,
            )
            turned = "interleaved" if rope else "no rotation"
            for direction, kernel, tensors in (
                ("forward", forward_kernel, ("Q", "K", "Q_OUT", "K_OUT")),
                ("backward", backward_kernel, ("GRAD_Q", "GRAD_K", "Q", "K", "DQ", "DK")),
            ):
                pointers = {**dict.fromkeys(tensors, name), **tables}
                if direction == "backward":
                    pointers["DW"] = "fp32"
                yield tuning.configuration(
                    f"qk_norm_rope {direction} {H}x{D} {norm}, {turned} {name}",
                    kernel,
                    _blocks(direction, arch, constants),
                    constants,
                    pointers=pointers,
                    floats=("eps",),
                )
