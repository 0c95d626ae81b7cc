"""Gated residual, norm and per-frame modulation in Triton, forward and backward.

    x_out = x + gate y      m, r = mean and 1 / deviation of x_out over C      h = (x_out - m) r
    out = h (1 + scale) + shift

Backward, with g = d out, u = g (1 + scale) and means over C:

    dx = d x_out + r (u - mean(u) - h mean(u h))
    dy = dx gate     and, summed over the rows of a frame,     dgate = dx y    dshift = g    dscale = g h

A program takes some rows [C] of one frame, one after the other, with the modulation of that frame in
registers: a row is read once and written once, and what is not finite stays in its row. A row stands
in two parts whose sizes are powers of two, [C0] and [C1], 1152 channels in 1024 and 128. While a row is
computed, those behind it are on their way into shared memory; that takes a loop which reads before it
computes. Sums over the rows of a frame go in two passes, without atomics: every program writes its own
partial sums, and a second kernel adds them up in a fixed order.
Not here: checks of the arguments (`colaworld.ops`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from colaworld.kernels import launch, tuning

MAX_CHANNELS = 5120  # the backward pass holds five numbers of each channel, in 16 warps at most


@triton.jit
def _read(ROW, FIRST: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, WIDE: tl.constexpr):
    """One part of a row [C], wide; 0 behind its end."""
    c = FIRST + tl.arange(0, SIZE)
    x = tl.load(ROW + c) if FIRST + SIZE <= C else tl.load(ROW + c, mask=c < C, other=0.0)
    return x.to(WIDE)


@triton.jit
def _load(ROW, C: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr, WIDE: tl.constexpr):
    """The two parts of a row."""
    x0 = _read(ROW, 0, C0, C, WIDE)
    x1 = x0  # what nobody reads when there is one part alone
    if C1 > 0:
        x1 = _read(ROW, C0, C1, C, WIDE)
    return x0, x1


@triton.jit
def _write(ROW, x, FIRST: tl.constexpr, C: tl.constexpr):
    """The inverse of _read, in the dtype that ROW points to."""
    c = FIRST + tl.arange(0, x.shape[0])
    x = x.to(ROW.dtype.element_ty)
    if FIRST + x.shape[0] <= C:
        tl.store(ROW + c, x)
    else:
        tl.store(ROW + c, x, mask=c < C)


@triton.jit
def _store(ROW, x0, x1, C: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr):
    """The inverse of _load."""
    _write(ROW, x0, 0, C)
    if C1 > 0:
        _write(ROW, x1, C0, C)


@triton.jit
def _mean(x0, x1, C: tl.constexpr, C1: tl.constexpr):
    """Of the numbers of a row; those behind its end must be 0."""
    total = tl.sum(x0, 0)
    if C1 > 0:
        total += tl.sum(x1, 0)
    return total / C


@triton.jit
def _means(x0, x1, y0, y1, C: tl.constexpr, C1: tl.constexpr):
    """_mean of two rows, with the waiting of one."""
    total = tl.sum(tl.join(x0, y0), 0)
    if C1 > 0:
        total += tl.sum(tl.join(x1, y1), 0)
    return tl.split(total / C)


@triton.jit
def _less(x, mean, FIRST: tl.constexpr, C: tl.constexpr):
    """x - mean of one part of a row, 0 behind its end."""
    x -= mean
    if FIRST + x.shape[0] > C:
        x = tl.where(FIRST + tl.arange(0, x.shape[0]) < C, x, 0.0)
    return x


@triton.jit
def _frame(b, t, stride_b, stride_t):
    """Offset of frame (b, t) of a tensor [B, T, ...]; 64 bits wide, as a clip may be that large."""
    return tl.cast(b, tl.int64) * stride_b + tl.cast(t, tl.int64) * stride_t


@triton.jit
def forward_kernel(
    X,  # [B, T, S, C]
    Y,  # [B, T, S, C]; not read without BRANCH
    GATE,  # [B, T, C]; not read without GATED
    SHIFT,  # [B, T, C]
    SCALE,  # [B, T, C]
    X_OUT,  # [B, T, S, C] contiguous; not written without BRANCH
    OUT,  # [B, T, S, C] contiguous
    MEAN,  # [B, T, S] contiguous
    RSTD,  # [B, T, S] contiguous
    T,
    S,
    blocks,  # row blocks of a frame
    rows,  # of a row block
    x_stride_b,
    x_stride_t,
    x_stride_s,
    y_stride_b,
    y_stride_t,
    y_stride_s,
    gate_stride_b,
    gate_stride_t,
    shift_stride_b,
    shift_stride_t,
    scale_stride_b,
    scale_stride_t,
    BRANCH: tl.constexpr,
    GATED: tl.constexpr,
    EPS: tl.constexpr,
    C: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    STAGES: tl.constexpr,
    WIDE: tl.constexpr,  # dtype of sums
):
    frame = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * rows
    b, t = frame // T, frame % T
    X += _frame(b, t, x_stride_b, x_stride_t)
    Y += _frame(b, t, y_stride_b, y_stride_t)
    row = SHIFT + _frame(b, t, shift_stride_b, shift_stride_t)
    shift0, shift1 = _load(row, C, C0, C1, WIDE)
    row = SCALE + _frame(b, t, scale_stride_b, scale_stride_t)
    factor0, factor1 = _load(row, C, C0, C1, WIDE)
    factor0 += 1
    factor1 += 1
    if GATED:
        row = GATE + _frame(b, t, gate_stride_b, gate_stride_t)
        gate0, gate1 = _load(row, C, C0, C1, WIDE)
    for s in tl.range(first, tl.minimum(first + rows, S), num_stages=STAGES):
        at = tl.cast(s, tl.int64)
        x0, x1 = _load(X + at * x_stride_s, C, C0, C1, WIDE)
        if BRANCH:
            y0, y1 = _load(Y + at * y_stride_s, C, C0, C1, WIDE)
        at += tl.cast(frame, tl.int64) * S
        if BRANCH:
            if GATED:
                y0 *= gate0
                y1 *= gate1
            # The norm reads what the next block will read: x_out as it is rounded.
            x0 = (x0 + y0).to(X_OUT.dtype.element_ty)
            x1 = (x1 + y1).to(X_OUT.dtype.element_ty)
            _store(X_OUT + at * C, x0, x1, C, C0, C1)
            x0 = x0.to(WIDE)
            x1 = x1.to(WIDE)
        mean = _mean(x0, x1, C, C1)
        x0 = _less(x0, mean, 0, C)
        x1 = _less(x1, mean, C0, C)
        rstd = tl.rsqrt(_mean(x0 * x0, x1 * x1, C, C1) + EPS)
        _store(OUT + at * C, x0 * rstd * factor0 + shift0, x1 * rstd * factor1 + shift1, C, C0, C1)
        tl.store(MEAN + at, mean)
        tl.store(RSTD + at, rstd)


@triton.jit
def backward_kernel(
    GRAD_X,  # [B, T, S, C], of x_out
    GRAD,  # [B, T, S, C], of out
    X,  # [B, T, S, C], x_out of the forward pass
    Y,  # [B, T, S, C]; not read without GATED
    GATE,  # [B, T, C]; not read without GATED
    SCALE,  # [B, T, C]
    MEAN,  # [B, T, S] contiguous
    RSTD,  # [B, T, S] contiguous
    DX,  # [B, T, S, C] contiguous
    DY,  # [B, T, S, C] contiguous; not written without GATED
    PARTIAL,  # [frames * blocks, 2 or 3, C]: sums of dshift, dscale and, when GATED, dgate
    T,
    S,
    blocks,
    rows,
    grad_x_stride_b,
    grad_x_stride_t,
    grad_x_stride_s,
    grad_stride_b,
    grad_stride_t,
    grad_stride_s,
    x_stride_b,
    x_stride_t,
    x_stride_s,
    y_stride_b,
    y_stride_t,
    y_stride_s,
    gate_stride_b,
    gate_stride_t,
    scale_stride_b,
    scale_stride_t,
    GATED: tl.constexpr,
    C: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    STAGES: tl.constexpr,
    WIDE: tl.constexpr,
):
    frame = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * rows
    b, t = frame // T, frame % T
    GRAD_X += _frame(b, t, grad_x_stride_b, grad_x_stride_t)
    GRAD += _frame(b, t, grad_stride_b, grad_stride_t)
    X += _frame(b, t, x_stride_b, x_stride_t)
    Y += _frame(b, t, y_stride_b, y_stride_t)
    row = SCALE + _frame(b, t, scale_stride_b, scale_stride_t)
    factor0, factor1 = _load(row, C, C0, C1, WIDE)
    factor0 += 1
    factor1 += 1
    dshift0 = tl.zeros_like(factor0)
    dshift1 = tl.zeros_like(factor1)
    dscale0 = tl.zeros_like(factor0)
    dscale1 = tl.zeros_like(factor1)
    if GATED:
        row = GATE + _frame(b, t, gate_stride_b, gate_stride_t)
        gate0, gate1 = _load(row, C, C0, C1, WIDE)
        dgate0 = tl.zeros_like(gate0)
        dgate1 = tl.zeros_like(gate1)
    for s in tl.range(first, tl.minimum(first + rows, S), num_stages=STAGES):
        at = tl.cast(s, tl.int64)
        x0, x1 = _load(X + at * x_stride_s, C, C0, C1, WIDE)
        g0, g1 = _load(GRAD + at * grad_stride_s, C, C0, C1, WIDE)
        dx0, dx1 = _load(GRAD_X + at * grad_x_stride_s, C, C0, C1, WIDE)
        if GATED:
            y0, y1 = _load(Y + at * y_stride_s, C, C0, C1, WIDE)
        at += tl.cast(frame, tl.int64) * S
        mean = tl.load(MEAN + at)
        rstd = tl.load(RSTD + at)
        # Behind the end of a row h is no 0, but everything that it is multiplied with.
        h0 = (x0 - mean) * rstd
        h1 = (x1 - mean) * rstd
        dshift0 += g0
        dshift1 += g1
        dscale0 += g0 * h0
        dscale1 += g1 * h1
        u0 = g0 * factor0
        u1 = g1 * factor1
        mean, along = _means(u0, u1, u0 * h0, u1 * h1, C, C1)
        dx0 += (u0 - mean - h0 * along) * rstd
        dx1 += (u1 - mean - h1 * along) * rstd
        _store(DX + at * C, dx0, dx1, C, C0, C1)
        if GATED:
            dgate0 += dx0 * y0
            dgate1 += dx1 * y1
            _store(DY + at * C, dx0 * gate0, dx1 * gate1, C, C0, C1)
    PARTIAL += tl.cast(tl.program_id(0), tl.int64) * ((3 if GATED else 2) * C)
    _store(PARTIAL, dshift0, dshift1, C, C0, C1)
    _store(PARTIAL + C, dscale0, dscale1, C, C0, C1)
    if GATED:
        _store(PARTIAL + 2 * C, dgate0, dgate1, C, C0, C1)


@triton.jit
def sum_kernel(
    PARTIAL,  # [frames * rows, parts, C] contiguous
    DSHIFT,  # [frames, C] contiguous, as DSCALE and DGATE
    DSCALE,
    DGATE,  # not written where parts is 2
    C,
    parts,
    columns,  # blocks of columns
    rows,  # of a frame
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    part = (tl.program_id(0) // columns) % parts
    frame = tl.cast(tl.program_id(0) // columns // parts, tl.int64)
    c = (tl.program_id(0) % columns) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), PARTIAL.dtype.element_ty)
    for first in range(0, rows, ROWS):
        r = first + tl.arange(0, ROWS)
        source = ((frame * rows + r) * parts + part)[:, None] * C + c[None, :]
        inside = (r < rows)[:, None] & (c < C)[None, :]
        total += tl.load(PARTIAL + source, mask=inside, other=0.0)
    found = tl.sum(total, 0)
    target = frame * C + c
    if part == 0:
        tl.store(DSHIFT + target, found, mask=c < C)
    elif part == 1:
        tl.store(DSCALE + target, found, mask=c < C)
    else:
        tl.store(DGATE + target, found, mask=c < C)


FORWARD_ROWS = 8  # of a program: the modulation, 3 rows in float32, is read once for them all
# Row blocks of the backward pass, about: 8 programs for each multiprocessor of an H200. A block has at
# least 8 rows, so that its partial sums (3 rows in float32) stay well below what it moves.
BACKWARD_PROGRAMS, FEWEST_ROWS = 1024, 8
SUM_TILE = {"ROWS": 16, "COLUMNS": 128}  # 16 numbers in each lane of 4 warps


def parts_of(C: int) -> tuple[int, int]:
    """(C0, C1), powers of two that hold C channels; C1 may be 0.

    1152 channels are 1024 + 128; 2048 would leave 44 % of the lanes idle. The smaller part has two
    numbers for a lane at least: 4 bytes are the least that is copied while the program goes on.
    """
    whole = triton.next_power_of_2(C)
    rest = max(64, whole // 16, triton.next_power_of_2(max(1, C - whole // 2)))
    return (whole // 2, rest) if rest < whole // 2 else (whole, 0)


def _readable(tensor: Tensor) -> Tensor:
    """Channels side by side, else a copy."""
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _row_constants(C: int, blocks: tuning.Blocks, WIDE: tl.dtype) -> dict[str, object]:
    """What both kernels must know of a row."""
    C0, C1 = parts_of(C)
    return {"C": C, "C0": C0, "C1": C1, "STAGES": blocks.num_stages, "WIDE": WIDE}


def _blocks(direction: str, arch: int | None, C: int) -> tuning.Blocks:
    return tuning.pick(tuning.ADALN, arch, direction, sum(parts_of(C)))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def modulate(
    x: Tensor,  # [B, T, S, C], any strides
    y: Tensor | None,  # [B, T, S, C], any strides, any floating-point dtype
    gate: Tensor | None,  # [B, T, C], any strides
    shift: Tensor,  # as gate
    scale: Tensor,  # as gate
    *,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_out, out, mean, rstd): [B, T, S, C] twice and [B, T, S] twice, contiguous. One launch.

    Without y, x_out is empty: it is x. C <= MAX_CHANNELS.
    """
    B, T, S, C = x.shape
    out = x.new_empty(x.shape, dtype=out_dtype)
    x_out = x.new_empty(0 if y is None else x.shape)
    mean = x.new_empty((B, T, S), dtype=_wide(x))
    rstd = torch.empty_like(mean)
    if x.numel() == 0:
        return x_out, out, mean, rstd
    branch, gated = y is not None, gate is not None
    # What a kernel does not read, something of the right rank stands in for.
    x, shift, scale = _readable(x), _readable(shift), _readable(scale)
    y = x if y is None else _readable(y)
    gate = scale if gate is None else _readable(gate)
    blocks = triton.cdiv(S, FORWARD_ROWS)
    chosen = _blocks("forward", launch.architecture(x), C)
    constants = {"BRANCH": branch, "GATED": gated, "EPS": eps}
    constants |= _row_constants(C, chosen, launch.wide_of(x.dtype))
    with launch.on_device_of(x):
        forward_kernel[(B * T * blocks,)](
            x, y, gate, shift, scale, x_out if branch else out, out, mean, rstd,
            T, S, blocks, FORWARD_ROWS, *x.stride()[:3], *y.stride()[:3],
            *gate.stride()[:2], *shift.stride()[:2], *scale.stride()[:2],
            **constants, num_warps=chosen.num_warps, num_stages=chosen.num_stages,
        )  # fmt: skip
    return x_out, out, mean, rstd


def modulate_backward(
    grad_x_out: Tensor,  # [B, T, S, C], any strides
    grad_out: Tensor,  # [B, T, S, C], any strides, in the dtype of out
    x: Tensor,  # [B, T, S, C], x_out of the forward pass, or its x where there was no y
    y: Tensor | None,  # [B, T, S, C], any strides
    gate: Tensor | None,  # [B, T, C]; given if and only if y is
    scale: Tensor,  # as gate
    mean: Tensor,  # [B, T, S] of the forward pass
    rstd: Tensor,  # [B, T, S]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, gate, shift and scale: those of the tables wide and of the shape of scale.

    Without a gate, dy and dgate are empty: the gradient of y is that of x. Two launches.
    """
    B, T, S, C = x.shape
    gated = gate is not None
    parts = 3 if gated else 2
    dx = x.new_empty(x.shape)
    dy = y.new_empty(x.shape) if gated else x.new_empty(0)
    tables = [x.new_empty(scale.shape, dtype=_wide(x)) for _ in range(parts)]
    if x.numel() == 0:
        tables = [table.zero_() for table in tables]
    else:
        rows = min(S, max(FEWEST_ROWS, B * T * S // BACKWARD_PROGRAMS))
        blocks = triton.cdiv(S, rows)
        partial = x.new_empty((B * T * blocks, parts, C), dtype=_wide(x))
        grad_x_out, grad_out, x, scale = (_readable(t) for t in (grad_x_out, grad_out, x, scale))
        y, gate = (_readable(y), _readable(gate)) if gated else (x, scale)
        chosen = _blocks("backward", launch.architecture(x), C)
        constants = {"GATED": gated} | _row_constants(C, chosen, launch.wide_of(x.dtype))
        with launch.on_device_of(x):
            backward_kernel[(B * T * blocks,)](
                grad_x_out, grad_out, x, y, gate, scale, mean.contiguous(), rstd.contiguous(),
                dx, dy, partial, T, S, blocks, rows,
                *grad_x_out.stride()[:3], *grad_out.stride()[:3], *x.stride()[:3],
                *y.stride()[:3], *gate.stride()[:2], *scale.stride()[:2],
                **constants, num_warps=chosen.num_warps, num_stages=chosen.num_stages,
            )  # fmt: skip
            columns = triton.cdiv(C, SUM_TILE["COLUMNS"])
            sum_kernel[(B * T * parts * columns,)](
                partial, tables[0], tables[1], tables[-1], C, parts, columns, blocks, **SUM_TILE,
                num_warps=4,
            )  # fmt: skip
    dshift, dscale, *rest = tables
    return dx, dy, rest[0] if gated else tables[0].new_empty(0), dshift, dscale


# What training runs, so what must compile without a spill: (C, dtypes, branch). "mixed" is a float32
# stream with bfloat16 products, as under autocast. "added": a branch without a gate; "alone": none.
_SHIPPED = (
    *((C, dtypes, branch)
      for C in (1152, 768, 1536)  # STDiT3-XL, the latent action model, Wan 1.3B
      for dtypes in ("bf16", "mixed", "fp32")
      for branch in ("gated", "alone")),
    *((1536, dtypes, "added") for dtypes in ("bf16", "mixed", "fp32")),  # a caption's attention
    *((MAX_CHANNELS, dtypes, "gated") for dtypes in ("bf16", "mixed", "fp32")),
)  # fmt: skip


def configurations(arch: int | None = None) -> Iterator[tuning.Configuration]:
    """Every kernel as it is shipped for an architecture; T and S are arguments, not constants."""
    for C, dtypes, branch in _SHIPPED:
        stream, product = {"mixed": ("fp32", "bf16")}.get(dtypes, (dtypes, dtypes))
        pointers = dict.fromkeys(("X", "X_OUT", "GRAD_X", "DX"), stream)
        pointers |= dict.fromkeys(("Y", "OUT", "GRAD", "DY"), product)
        pointers |= dict.fromkeys(("GATE", "SHIFT", "SCALE", "MEAN", "RSTD", "PARTIAL"), "fp32")
        for direction, kernel in (("forward", forward_kernel), ("backward", backward_kernel)):
            constants = {"GATED": branch == "gated"}
            if direction == "forward":
                constants |= {"BRANCH": branch != "alone", "EPS": 1e-6}
            elif branch == "added":
                continue  # the same kernel as without a branch
            chosen = _blocks(direction, arch, C)
            made = tuning.configuration(
                f"adaln {direction} C={C} {dtypes} {branch}",
                kernel,
                chosen,
                constants | _row_constants(C, chosen, tl.float32),
                pointers={n: t for n, t in pointers.items() if n in kernel.arg_names},
            )
            # Every stride is C times something, and 16 divides each C above.
            strides = {name: 16 for name in kernel.arg_names if "_stride_" in name}
            yield replace(made, divisible={**made.divisible, **strides})
    made = tuning.configuration(
        "adaln sum",
        sum_kernel,
        tuning.Blocks(num_warps=4, reason="16 numbers in a lane"),
        dict(SUM_TILE),
        pointers=dict.fromkeys(("PARTIAL", "DSHIFT", "DSCALE", "DGATE"), "fp32"),
    )
    yield replace(made, divisible={**made.divisible, "C": 16})
