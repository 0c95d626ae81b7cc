"""`adaln`: gated residual, norm and per-frame modulation (adaptive layer norm).

The public function and its checks, and what autograd and the compiler must know of the op. The meaning is in `reference.py`, the kernels in
`csrc/cpu/adaln_kernel.h` and `kernels/adaln.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colaworld.ops import _cpu, _dispatch, _registry, _triton, reference
from colaworld.ops._checks import check_beside

# Dtypes of x, and of y and out, that the compiled kernels are made for: all equal, or what a training
# step has under autocast.
_CPU_DTYPES = {(dtype, dtype) for dtype in _cpu.DTYPES} | {(torch.float32, torch.bfloat16)}
_CHANNELS = 5120  # of Triton: the widest row that kernels/adaln.py keeps in registers


def _cpu_refuses(facts: _dispatch.CallInfo) -> str | None:
    reason = _cpu.refuses(facts)
    if reason is None and facts.shape[-1] == 0:
        reason = "C is 0, it needs at least one channel"
    return reason


def _triton_refuses(facts: _dispatch.CallInfo) -> str | None:
    reason = _triton.refuses(facts)
    if reason is None and not 1 <= facts.shape[-1] <= _CHANNELS:
        reason = f"C is {facts.shape[-1]}, it takes 1 to {_CHANNELS} channels"
    return reason


def _fake(x, y, gate, shift, scale, eps, out_dtype):
    per_row = x.new_empty(x.shape[:3], dtype=reference.compute_dtype(x.dtype))
    x_out = x.new_empty(0 if y is None else x.shape)
    return x_out, x.new_empty(x.shape, dtype=out_dtype), per_row, torch.empty_like(per_row)


def _fake_backward(grad_x_out, grad_out, x, y, gate, scale, mean, rstd):
    table = x.new_empty(scale.shape, dtype=mean.dtype)
    none = y is None
    dy = x.new_empty(0) if none else y.new_empty(x.shape)
    dgate = table.new_empty(0) if none else torch.empty_like(table)
    return x.new_empty(x.shape), dy, dgate, table, torch.empty_like(table)


def _save(ctx, inputs, output) -> None:
    x, y, gate, shift, scale, _, ctx.out_dtype = inputs
    x_out, _, mean, rstd = output
    ctx.y_dtype = None if y is None else y.dtype
    ctx.shift_dtype = shift.dtype
    # Without a gate the gradient of y is that of x, and y itself is not needed.
    kept = None if gate is None else y
    ctx.save_for_backward(x if y is None else x_out, kept, gate, scale, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _gradients(run, ctx, grad_x_out: Tensor | None, grad_out: Tensor | None, *_):
    x, y, gate, scale, mean, rstd = ctx.saved_tensors
    # Without a y, the first output is empty: what flows through x itself, autograd adds.
    if grad_x_out is None or ctx.y_dtype is None:
        grad_x_out = x.new_zeros(x.shape[3]).expand(x.shape)
    if grad_out is None:
        grad_out = x.new_zeros(x.shape[3], dtype=ctx.out_dtype).expand(x.shape)
    dx, dy, dgate, dshift, dscale = run(grad_x_out, grad_out, x, y, gate, scale, mean, rstd)
    if gate is None:
        dy = None if ctx.y_dtype is None else dx.to(ctx.y_dtype)
        dgate = None
    else:
        dgate = dgate.to(gate.dtype)
    return dx, dy, dgate, dshift.to(ctx.shift_dtype), dscale.to(scale.dtype), None, None


def _check_row(op: str, x: Tensor) -> None:
    """The op stands below the public function: what no kernel was written for stops here."""
    if x.ndim != 4 or not 1 <= x.shape[3] <= _CHANNELS:
        raise ValueError(
            f"{op}: x: expected [B, T, S, C] with 1 <= C <= {_CHANNELS}, got {list(x.shape)}"
        )


def _launch(x, y, gate, shift, scale, eps, out_dtype):
    from colaworld.kernels import adaln as kernels

    _check_row("adaln_triton", x)
    return kernels.modulate(x, y, gate, shift, scale, eps=eps, out_dtype=out_dtype)


def _launch_backward(grad_x_out, grad_out, x, y, gate, scale, mean, rstd):
    from colaworld.kernels import adaln as kernels

    _check_row("adaln_backward_triton", x)
    return kernels.modulate_backward(grad_x_out, grad_out, x, y, gate, scale, mean, rstd)


_BACKWARD = _registry.Op(
    "adaln_backward",
    "(Tensor grad_x_out, Tensor grad_out, Tensor x, Tensor? y, Tensor? gate, Tensor scale, "
    "Tensor mean, Tensor rstd) -> (Tensor dx, Tensor dy, Tensor dgate, Tensor dshift, "
    "Tensor dscale)",
    fake=_fake_backward,
    launch=_launch_backward,
)
_OP = _registry.Op(
    "adaln",
    "(Tensor x, Tensor? y, Tensor? gate, Tensor shift, Tensor scale, float eps, "
    "ScalarType out_dtype) -> (Tensor x_out, Tensor out, Tensor mean, Tensor rstd)",
    fake=_fake,
    launch=_launch,
    save=_save,
    gradients=_gradients,
    backward=_BACKWARD,
)


def _run_cpu(x, y, gate, shift, scale, *, eps, out_dtype) -> tuple[Tensor, Tensor]:
    wide = reference.compute_dtype(x.dtype)
    if (x.dtype, out_dtype) not in _CPU_DTYPES or (y is not None and y.dtype != out_dtype):
        # No kernel: torch adds the branch and casts, around the one that norms the wide stream.
        stream = x if y is None else reference.gated_residual(x, y, gate)
        (x,) = _cpu.converted(wide, stream)
        _, out = _run_cpu(x, None, None, shift, scale, eps=eps, out_dtype=wide)
        (out,) = _cpu.converted(out_dtype, out)
        return stream, out
    gate, shift, scale = (
        t if t is None or t.dtype in _cpu.DTYPES else t.to(wide) for t in (gate, shift, scale)
    )
    x_out, out, _, _ = _OP.compiled(x, y, gate, shift, scale, eps, out_dtype)
    return (x if y is None else x_out), out


def _run_triton(x, y, gate, shift, scale, *, eps, out_dtype) -> tuple[Tensor, Tensor]:
    x_out, out, _, _ = _OP.triton(x, y, gate, shift, scale, eps, out_dtype)
    return (x if y is None else x_out), out


_dispatch.register(
    "adaln",
    (
        _dispatch.Implementation("cpu", _run_cpu, _cpu_refuses),
        _dispatch.Implementation("triton", _run_triton, _triton_refuses),
        _dispatch.Implementation("reference", reference.adaln, _dispatch.always),
    ),
    example=(1, 2, 4, 1152),
)


def _dtype_of_out(x: Tensor) -> torch.dtype:
    """What the product behind `out` will compute in: the dtype of autocast, where that is on."""
    kind = x.device.type
    # As autocast does, leave float64 alone; the meta device has no autocast to ask for.
    if x.dtype == torch.float64 or kind == "meta" or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def adaln(
    x: Tensor,
    y: Tensor | None,
    *,
    gate: Tensor | None = None,
    shift: Tensor,
    scale: Tensor,
    eps: float = 1e-6,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """x_out = x + gate * y;  out = norm(x_out) * (1 + scale) + shift.

    Args:
        x: [B, T, S, C] the residual stream; any strides.
        y: [B, T, S, C] the branch to add, or None: then x_out is x.
        gate: [B, T, C] factor on the branch, per frame; None for 1. Needs a `y`.
        shift, scale: [B, T, C] modulation, per frame. All three may be expanded: the cpu
            implementation reads them where they stand.
        eps: added to the variance inside the norm, which is a layer norm without parameters.
        out_dtype: of `out`, and of the gradient that comes back for it. None: that of x or, under
            autocast, the dtype of autocast. A matrix product reads `out`, and autocast would cast
            it for that product: the same numbers, a pass over memory later.

    Returns:
        (x_out, out), both [B, T, S, C]; x_out in the dtype of x, also under autocast. Sums run in
        float32 (float64 for float64).

    Raises:
        ValueError: an argument of a wrong shape or on another device; an `x` or an `out_dtype`
            that is not floating-point; a forced implementation refuses.

    Source: DiT's adaLN-Zero block (Peebles and Xie 2023, section 3.2), here with one modulation
    per frame instead of one per sample.
    """
    if x.ndim != 4:
        raise ValueError(f"x: expected [B, T, S, C], got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected a floating-point tensor, got {x.dtype}")
    out_dtype = out_dtype or _dtype_of_out(x)
    if not out_dtype.is_floating_point:
        raise ValueError(f"out_dtype: expected a floating-point dtype, got {out_dtype}")
    if y is None and gate is not None:
        raise ValueError("gate: given without a branch y to multiply; pass y, or gate=None")
    B, T, _, C = x.shape
    if y is not None:
        check_beside("y", y, tuple(x.shape), "x", x)
    if gate is not None:
        check_beside("gate", gate, (B, T, C), "x", x)
    check_beside("shift", shift, (B, T, C), "x", x)
    check_beside("scale", scale, (B, T, C), "x", x)
    run = _dispatch.select("adaln", x)
    return run(x, y, gate, shift, scale, eps=eps, out_dtype=out_dtype)
