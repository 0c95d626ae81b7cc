"""`adaln`: gated residual, norm and per-frame modulation (adaptive layer norm).

The public function and its checks, and what autograd and the compiler must know of the op. The meaning is in `reference.py`, the kernels in
`csrc/cpu/adaln_kernel.h` and `kernels/adaln.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from colaworld.ops import _cpu, _dispatch, _registry, _triton, reference
from colaworld.ops._checks import check_beside

_CHANNELS = 8192  # of Triton: the widest row that kernels/adaln.py keeps in registers


def _cpu_refuses(facts: _dispatch.Facts) -> str | None:
    reason = _cpu.refuses(facts)
    if reason is None and facts.shape[-1] == 0:
        reason = "C is 0, it needs at least one channel"
    return reason


def _triton_refuses(facts: _dispatch.Facts) -> str | None:
    reason = _triton.refuses(facts)
    if reason is None and not 1 <= facts.shape[-1] <= _CHANNELS:
        reason = f"C is {facts.shape[-1]}, it takes 1 to {_CHANNELS} channels"
    return reason


def _fake(x, y, gate, shift, scale, index, eps, rms):
    per_row = x.new_empty(x.shape[:3], dtype=reference.compute_dtype(x.dtype))
    x_out = x.new_empty(0 if y is None else x.shape)
    return x_out, x.new_empty(x.shape), per_row, torch.empty_like(per_row)


def _fake_backward(grad_x_out, grad_out, x, y, gate, scale, index, mean, rstd, rms):
    table = x.new_empty(scale.shape, dtype=mean.dtype)
    none = y is None
    dy = x.new_empty(0) if none else y.new_empty(x.shape)
    dgate = table.new_empty(0) if none else torch.empty_like(table)
    return x.new_empty(x.shape), dy, dgate, table, torch.empty_like(table)


def _save(ctx, inputs, output) -> None:
    x, y, gate, shift, scale, index, _, ctx.rms = inputs
    x_out, _, mean, rstd = output
    ctx.y_dtype = None if y is None else y.dtype
    ctx.shift_dtype = shift.dtype
    # Without a gate the gradient of y is that of x, and y itself is not needed.
    kept = None if gate is None else y
    ctx.save_for_backward(x if y is None else x_out, kept, gate, scale, index, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _gradients(run, ctx, grad_x_out: Tensor | None, grad_out: Tensor | None, *_):
    x, y, gate, scale, index, mean, rstd = ctx.saved_tensors
    # Without a y, the first output is empty: what flows through x itself, autograd adds.
    if grad_x_out is None or ctx.y_dtype is None:
        grad_x_out = x.new_zeros(()).expand(x.shape)
    if grad_out is None:
        grad_out = x.new_zeros(()).expand(x.shape)
    dx, dy, dgate, dshift, dscale = run(
        grad_x_out, grad_out, x, y, gate, scale, index, mean, rstd, ctx.rms
    )
    if gate is None:
        dy = None if ctx.y_dtype is None else dx.to(ctx.y_dtype)
        dgate = None
    else:
        dgate = dgate.to(gate.dtype)
    return dx, dy, dgate, dshift.to(ctx.shift_dtype), dscale.to(scale.dtype), None, None, None


def _check_row(op: str, x: Tensor) -> None:
    """The op stands below the public function: what no kernel was written for stops here."""
    if x.ndim != 4 or not 1 <= x.shape[3] <= _CHANNELS:
        raise ValueError(
            f"{op}: x: expected [B, T, S, C] with 1 <= C <= {_CHANNELS}, got {list(x.shape)}"
        )


def _launch(x, y, gate, shift, scale, index, eps, rms):
    from colaworld.kernels import adaln as kernels

    _check_row("adaln_triton", x)
    return kernels.modulate(x, y, gate, shift, scale, index, eps=eps, rms=rms)


def _launch_backward(grad_x_out, grad_out, x, y, gate, scale, index, mean, rstd, rms):
    from colaworld.kernels import adaln as kernels

    _check_row("adaln_backward_triton", x)
    return kernels.modulate_backward(
        grad_x_out, grad_out, x, y, gate, scale, index, mean, rstd, rms=rms
    )


_BACKWARD = _registry.Op(
    "adaln_backward",
    "(Tensor grad_x_out, Tensor grad_out, Tensor x, Tensor? y, Tensor? gate, Tensor scale, "
    "Tensor? index, Tensor mean, Tensor rstd, bool rms) -> (Tensor dx, Tensor dy, Tensor dgate, "
    "Tensor dshift, Tensor dscale)",
    fake=_fake_backward,
    launch=_launch_backward,
)
_OP = _registry.Op(
    "adaln",
    "(Tensor x, Tensor? y, Tensor? gate, Tensor shift, Tensor scale, Tensor? index, float eps, "
    "bool rms) -> (Tensor x_out, Tensor out, Tensor mean, Tensor rstd)",
    fake=_fake,
    launch=_launch,
    save=_save,
    gradients=_gradients,
    backward=_BACKWARD,
    constants=("index",),
)


def _run_cpu(x, y, gate, shift, scale, index, *, eps, rms) -> tuple[Tensor, Tensor]:
    wide = reference.compute_dtype(x.dtype)
    # The kernel reads a y of the dtype of x, and float32 beside bfloat16 either way round.
    mixed = {torch.float32, torch.bfloat16}
    if y is not None and y.dtype != x.dtype and {x.dtype, y.dtype} != mixed:
        y = y.to(wide)
    gate, shift, scale = (
        t if t is None or t.dtype in _cpu.DTYPES else t.to(wide) for t in (gate, shift, scale)
    )
    x_out, out, _, _ = _OP.compiled(x, y, gate, shift, scale, index, eps, rms)
    return (x if y is None else x_out), out


def _run_triton(x, y, gate, shift, scale, index, *, eps, rms) -> tuple[Tensor, Tensor]:
    x_out, out, _, _ = _OP.triton(x, y, gate, shift, scale, index, eps, rms)
    return (x if y is None else x_out), out


_dispatch.register(
    "adaln",
    (
        _dispatch.Implementation("cpu", _run_cpu, _cpu_refuses),
        _dispatch.Implementation("triton", _run_triton, _triton_refuses),
        _dispatch.Implementation("reference", reference.adaln, _dispatch.always),
    ),
)


def adaln(
    x: Tensor,
    y: Tensor | None,
    *,
    gate: Tensor | None = None,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None = None,
    eps: float = 1e-6,
    norm: Literal["layer", "rms"] = "layer",
) -> tuple[Tensor, Tensor]:
    """x_out = x + gate * y;  out = norm(x_out) * (1 + scale) + shift.

    Args:
        x: [B, T, S, C] the residual stream; any strides.
        y: [B, T, S, C] the branch to add, or None: then x_out is x.
        gate: [B, T, C] factor on the branch, per frame; None for 1. Needs a `y`.
        shift, scale: [B, T, C] modulation, per frame. All three may be expanded: the cpu
            implementation reads them where they stand.
        index: [B, T] int64. When given, gate, shift and scale are tables [M, C], and frame (b, t)
            uses their row index[b, t]: frames that share a modulation share its row.
        eps: added to the variance (mean square) inside the norm.
        norm: "layer" subtracts the mean over C, "rms" does not. Neither has parameters.

    Returns:
        (x_out, out), both [B, T, S, C] in the dtype of x; sums run in float32 (float64 for float64).

    Raises:
        ValueError: an argument of a wrong shape, device or value (an index outside of 0 .. M - 1
            included; the triton implementation does not wait for its values, and such a frame
            becomes NaN); a forced implementation refuses.

    Source: DiT's adaLN-Zero block (Peebles and Xie 2023, section 3.2), here with one modulation
    per frame instead of one per sample.
    """
    if x.ndim != 4:
        raise ValueError(f"x: expected [B, T, S, C], got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected a floating-point tensor, got {x.dtype}")
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm: expected 'layer' or 'rms', got {norm!r}")
    if y is None and gate is not None:
        raise ValueError("gate: given without a branch y to multiply; pass y, or gate=None")
    B, T, _, C = x.shape
    table: tuple[int, ...] = (B, T, C)
    if index is not None:
        check_beside("index", index, (B, T), "x", x)
        if index.dtype != torch.int64:
            raise ValueError(f"index: expected int64, got {index.dtype}")
        if scale.ndim != 2 or scale.shape[1] != C:
            raise ValueError(
                f"scale: expected [M, {C}] as an index is given, got {list(scale.shape)}"
            )
        table = (scale.shape[0], C)
    if y is not None:
        check_beside("y", y, tuple(x.shape), "x", x)
    if gate is not None:
        check_beside("gate", gate, table, "x", x)
    check_beside("shift", shift, table, "x", x)
    check_beside("scale", scale, table, "x", x)
    run = _dispatch.select("adaln", x)
    return run(x, y, gate, shift, scale, index, eps=eps, rms=norm == "rms")
