"""Gated residual, norm and per-frame modulation in Triton, forward and backward.

    x_out = x + gate y      m, r = mean and 1 / deviation of x_out over C      h = (x_out - m) r
    out = h (1 + scale) + shift

Backward, with g = d out, u = g (1 + scale) and means over C:

    dx = d x_out + r (u - mean(u) - h mean(u h))
    dy = dx gate     and, summed over the rows of a frame,     dgate = dx y    dshift = g    dscale = g h

A program takes some rows [C] of one frame, one after the other, with the modulation of that frame in
registers: a row is read once and written once, and what is not finite stays in its row. Sums over the
rows of a frame go in two passes, without atomics: every program writes its own partial sums, and a
second kernel adds them up in a fixed order.
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

MAX_CHANNELS = 8192  # a row stays in registers: 16 numbers of it in each lane of 16 warps


@triton.jit
def _clip_row(b, t, s, stride_b, stride_t, stride_s):
    """Offset of row (b, t, s) of a [B, T, S, C] tensor; 64 bits wide, as a clip may be that large."""
    wide_b = tl.cast(b, tl.int64)
    wide_t = tl.cast(t, tl.int64)
    return wide_b * stride_b + wide_t * stride_t + tl.cast(s, tl.int64) * stride_s


@triton.jit
def _frame_row(b, t, stride_b, stride_t):
    """Offset of row (b, t) of gate, shift or scale [B, T, C]; 64 bits wide as well."""
    return tl.cast(b, tl.int64) * stride_b + tl.cast(t, tl.int64) * stride_t


@triton.jit
def _modulation(ROW, c, inside, step: tl.constexpr, WIDE: tl.constexpr):
    """A row of gate, shift or scale, [CP]."""
    return tl.load(ROW + c * step, mask=inside, other=0.0).to(WIDE)


@triton.jit
def forward_kernel(
    X,  # [B, T, S, C]
    Y,  # [B, T, S, C]; not read without BRANCH
    GATE,  # [B, T, C]; not read without GATED
    SHIFT,  # as GATE
    SCALE,  # as GATE
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
    C: tl.constexpr,
    X_STEP: tl.constexpr,  # from channel to channel: 1, or 0 where one number is expanded
    Y_STEP: tl.constexpr,
    GATE_STEP: tl.constexpr,
    SHIFT_STEP: tl.constexpr,
    SCALE_STEP: tl.constexpr,
    BRANCH: tl.constexpr,
    GATED: tl.constexpr,
    EPS: tl.constexpr,
    CP: tl.constexpr,  # power of two >= C
    WIDE: tl.constexpr,  # dtype of sums
):
    frame = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * rows
    b = frame // T
    t = frame % T
    c = tl.arange(0, CP)
    inside = c < C
    row = _frame_row(b, t, shift_stride_b, shift_stride_t)
    shift = _modulation(SHIFT + row, c, inside, SHIFT_STEP, WIDE)
    row = _frame_row(b, t, scale_stride_b, scale_stride_t)
    factor = 1 + _modulation(SCALE + row, c, inside, SCALE_STEP, WIDE)
    if GATED:
        row = _frame_row(b, t, gate_stride_b, gate_stride_t)
        gate = _modulation(GATE + row, c, inside, GATE_STEP, WIDE)
    for s in range(first, tl.minimum(first + rows, S)):
        source = _clip_row(b, t, s, x_stride_b, x_stride_t, x_stride_s)
        target = (tl.cast(frame, tl.int64) * S + s) * C
        x = tl.load(X + source + c * X_STEP, mask=inside, other=0.0).to(WIDE)
        if BRANCH:
            branch = _clip_row(b, t, s, y_stride_b, y_stride_t, y_stride_s)
            y = tl.load(Y + branch + c * Y_STEP, mask=inside, other=0.0).to(WIDE)
            if GATED:
                y = y * gate
            # The norm reads what the next block will read: x_out as it is rounded.
            rounded = (x + y).to(X_OUT.dtype.element_ty)
            tl.store(X_OUT + target + c, rounded, mask=inside)
            x = tl.where(inside, rounded.to(WIDE), 0.0)
        per_row = tl.cast(frame, tl.int64) * S + s
        mean = tl.sum(x, 0) / C
        centred = tl.where(inside, x - mean, 0.0)
        tl.store(MEAN + per_row, mean)
        rstd = tl.rsqrt(tl.sum(centred * centred, 0) / C + EPS)
        out = centred * rstd * factor + shift
        tl.store(OUT + target + c, out.to(OUT.dtype.element_ty), mask=inside)
        tl.store(RSTD + per_row, rstd)


@triton.jit
def backward_kernel(
    GRAD_X,  # [B, T, S, C], of x_out
    GRAD,  # [B, T, S, C], of out
    X,  # [B, T, S, C], x_out of the forward pass
    Y,  # [B, T, S, C]; not read without GATED
    GATE,  # [B, T, C]; not read without GATED
    SCALE,  # as GATE
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
    C: tl.constexpr,
    GRAD_X_STEP: tl.constexpr,
    GRAD_STEP: tl.constexpr,
    X_STEP: tl.constexpr,
    Y_STEP: tl.constexpr,
    GATE_STEP: tl.constexpr,
    SCALE_STEP: tl.constexpr,
    GATED: tl.constexpr,
    LATE: tl.constexpr,  # dy and dgate in a second walk over the rows, from dx as it was written
    CP: tl.constexpr,
    WIDE: tl.constexpr,
):
    frame = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * rows
    b = frame // T
    t = frame % T
    c = tl.arange(0, CP)
    inside = c < C
    row = _frame_row(b, t, scale_stride_b, scale_stride_t)
    factor = 1 + _modulation(SCALE + row, c, inside, SCALE_STEP, WIDE)
    if GATED:
        row = _frame_row(b, t, gate_stride_b, gate_stride_t)
        if not LATE:
            gate = _modulation(GATE + row, c, inside, GATE_STEP, WIDE)
            dgate = tl.zeros((CP,), WIDE)
    dshift = tl.zeros((CP,), WIDE)
    dscale = tl.zeros((CP,), WIDE)
    last = tl.minimum(first + rows, S)
    for s in range(first, last):
        per_row = tl.cast(frame, tl.int64) * S + s
        source = _clip_row(b, t, s, x_stride_b, x_stride_t, x_stride_s)
        x = tl.load(X + source + c * X_STEP, mask=inside, other=0.0).to(WIDE)
        source = _clip_row(b, t, s, grad_stride_b, grad_stride_t, grad_stride_s)
        g = tl.load(GRAD + source + c * GRAD_STEP, mask=inside, other=0.0).to(WIDE)
        source = _clip_row(b, t, s, grad_x_stride_b, grad_x_stride_t, grad_x_stride_s)
        dx = tl.load(GRAD_X + source + c * GRAD_X_STEP, mask=inside, other=0.0).to(WIDE)
        rstd = tl.load(RSTD + per_row)
        h = tl.where(inside, (x - tl.load(MEAN + per_row)) * rstd, 0.0)
        dshift += g
        dscale += g * h
        u = tl.where(inside, g * factor, 0.0)
        along = tl.sum(u * h, 0) / C
        mean = tl.sum(u, 0) / C
        dx += (u - mean - h * along) * rstd
        target = per_row * C + c
        tl.store(DX + target, dx.to(DX.dtype.element_ty), mask=inside)
        if GATED and not LATE:
            source = _clip_row(b, t, s, y_stride_b, y_stride_t, y_stride_s)
            y = tl.load(Y + source + c * Y_STEP, mask=inside, other=0.0).to(WIDE)
            dgate += dx * y
            tl.store(DY + target, (dx * gate).to(DY.dtype.element_ty), mask=inside)
    partial = PARTIAL + tl.program_id(0).to(tl.int64) * ((3 if GATED else 2) * C) + c
    tl.store(partial, dshift, mask=inside)
    tl.store(partial + C, dscale, mask=inside)
    if GATED:
        if LATE:
            tl.debug_barrier()  # what follows reads the rows of dx that were written above
            gate = _modulation(GATE + row, c, inside, GATE_STEP, WIDE)
            dgate = tl.zeros((CP,), WIDE)
            for s in range(first, last):
                target = (tl.cast(frame, tl.int64) * S + s) * C + c
                dx = tl.load(DX + target, mask=inside, other=0.0).to(WIDE)
                source = _clip_row(b, t, s, y_stride_b, y_stride_t, y_stride_s)
                y = tl.load(Y + source + c * Y_STEP, mask=inside, other=0.0).to(WIDE)
                dgate += dx * y
                tl.store(DY + target, (dx * gate).to(DY.dtype.element_ty), mask=inside)
        tl.store(partial + 2 * C, dgate, mask=inside)


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


FORWARD_ROWS = 4  # of a program: the modulation, 3 rows in float32, is read once for them all
# Row blocks of the backward pass, about: 8 programs and more for each multiprocessor of an H200. A
# block has at least 8 rows, so that its partial sums (3 rows in float32) stay well below what it moves.
BACKWARD_PROGRAMS, FEWEST_ROWS = 2048, 8
HELD_CHANNELS = 4096  # above, three running sums, gate and scale do not fit in registers at once
SUM_TILE = {"ROWS": 16, "COLUMNS": 128}  # 16 numbers in each lane of 4 warps


def _readable(tensor: Tensor) -> Tensor:
    """Channels side by side, or one number for all of them; else a copy."""
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) in (0, 1) else tensor.contiguous()


def _step(tensor: Tensor) -> int:
    """From channel to channel."""
    return 0 if tensor.shape[-1] == 1 else tensor.stride(-1)


def _blocks(direction: str, arch: int | None, CP: int) -> tuning.Blocks:
    return tuning.pick(tuning.ADALN, arch, direction, CP)


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
    constants = {
        "C": C,
        "X_STEP": _step(x),
        "Y_STEP": _step(y),
        "GATE_STEP": _step(gate),
        "SHIFT_STEP": _step(shift),
        "SCALE_STEP": _step(scale),
        "BRANCH": branch,
        "GATED": gated,
        "EPS": eps,
        "CP": triton.next_power_of_2(C),
        "WIDE": launch.wide_of(x.dtype),
    }
    chosen = _blocks("forward", launch.architecture(x), constants["CP"])
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
        constants = {
            "C": C,
            "GRAD_X_STEP": _step(grad_x_out),
            "GRAD_STEP": _step(grad_out),
            "X_STEP": _step(x),
            "Y_STEP": _step(y),
            "GATE_STEP": _step(gate),
            "SCALE_STEP": _step(scale),
            "GATED": gated,
            "LATE": C > HELD_CHANNELS,
            "CP": triton.next_power_of_2(C),
            "WIDE": launch.wide_of(x.dtype),
        }
        chosen = _blocks("backward", launch.architecture(x), constants["CP"])
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


# (C, dtype, branch, gated): what is shipped, so what must compile without a spill.
_SHIPPED = tuple(
    (C, dtype, *how)
    for C, dtypes in (
        (1152, ("bf16", "fp16", "fp32")),  # STDiT3-XL
        (768, ("bf16", "fp32")),  # latent action model
        (1536, ("bf16", "fp32")),  # Wan
        (8192, ("bf16", "fp32")),  # the widest row
    )
    for dtype in dtypes
    for how in ((True, True), (True, False), (False, False))
)


def configurations(arch: int | None = None) -> Iterator[tuning.Configuration]:
    """Every kernel as it is shipped for an architecture; T and S are arguments, not constants."""
    for C, dtype, branch, gated in _SHIPPED:
        CP = triton.next_power_of_2(C)
        shared = {"C": C, "GATED": gated, "CP": CP, "WIDE": tl.float32}
        clips = ("X", "Y", "X_OUT", "OUT", "GRAD_X", "GRAD", "DX", "DY")
        tables = ("GATE", "SHIFT", "SCALE", "MEAN", "RSTD", "PARTIAL")
        pointers = dict.fromkeys(clips, dtype) | dict.fromkeys(tables, "fp32")
        how = "gated" if gated else "added" if branch else "no branch"
        for direction, kernel in (("forward", forward_kernel), ("backward", backward_kernel)):
            if direction == "backward" and branch and not gated:
                continue  # the same kernel as without a branch
            constants = {name: 1 for name in kernel.arg_names if name.endswith("_STEP")} | shared
            if direction == "forward":
                constants |= {"BRANCH": branch, "EPS": 1e-6}
            else:
                constants |= {"LATE": C > HELD_CHANNELS}
            made = tuning.configuration(
                f"adaln {direction} C={C} {dtype} {how}",
                kernel,
                _blocks(direction, arch, CP),
                constants,
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
