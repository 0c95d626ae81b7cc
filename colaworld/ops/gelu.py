"""`gelu`: the activation of the MLPs, in its tanh form.

The public function and its checks, and what autograd and the compiler must know of the op. The meaning is in `reference.py`, the kernel in
`csrc/cpu/gelu_kernel.h`. On a GPU torch's own runs, which the compiler fuses with what stands beside it.
"""

from __future__ import annotations

from torch import Tensor

from colaworld.ops import _cpu, _dispatch, _registry, reference


def _fake(x):
    return x.new_empty(x.shape)


def _fake_backward(grad, x):
    return x.new_empty(x.shape)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(run, ctx, grad: Tensor):
    return run(grad, *ctx.saved_tensors)


_BACKWARD = _registry.Op("gelu_backward", "(Tensor grad, Tensor x) -> Tensor", fake=_fake_backward)
_OP = _registry.Op(
    "gelu",
    "(Tensor x) -> Tensor",
    fake=_fake,
    save=_save,
    gradients=_gradients,
    backward=_BACKWARD,
)


def _run_cpu(x: Tensor) -> Tensor:
    return _OP.compiled(x)


_dispatch.register(
    "gelu",
    (
        _dispatch.Implementation("cpu", _run_cpu, _cpu.refuses),
        _dispatch.Implementation("reference", reference.gelu, _dispatch.always),
    ),
    example=(1, 2, 4, 4608),
)


def gelu(x: Tensor) -> Tensor:
    """x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.

    Args:
        x: any shape and strides.

    Returns:
        The same shape and dtype; computed in float32 (float64 for float64).

    Raises:
        ValueError: `x` is not floating-point; a forced implementation refuses.

    Source: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.
    """
    if not x.is_floating_point():
        raise ValueError(f"x: expected a floating-point tensor, got {x.dtype}")
    return _dispatch.select("gelu", x)(x)
