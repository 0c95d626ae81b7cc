"""Registers an op once for both of its kernels' homes: C++ and CUDA, and Triton.

An op lives in torch's dispatcher under two names with one schema:

    colaworld::<name>           kernels in the compiled library (csrc/), for CPU and CUDA tensors
    colaworld::<name>_triton    its twin, launched from Python, for CUDA tensors

Schema, fake and gradient are given once, here, and hold for both. `Op.compiled` and `Op.triton` run
them: through the dispatcher while a graph is traced, below autograd otherwise, since the dispatcher's
Python layer costs 10 to 20 microseconds a call, most of the time at the smallest sizes.
Not here: the choice of an implementation (`_dispatch.py`) and what a kernel can take (`_cpu.py`,
`_cuda.py`, `_triton.py`, and the op's own file).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from colaworld.ops import _native, _triton

_functorch = torch._C._functorch
# Entered as `with _below_autograd():`, for calls that record nothing or that a Function records.
_below_autograd = torch._C._AutoDispatchBelowAutograd

ALL: list[Op] = []  # every op, in the order of their definition


class Op:
    """One op: `compiled` and `triton` call its two kernels, positionally, by the schema.

    `compiled` is None without a compiled library, `triton` where triton is not installed or the op has
    no twin.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        fake: Callable[..., Any],
        launch: Callable[..., Any] | None = None,
        save: Callable[..., None] | None = None,
        gradients: Callable[..., Any] | None = None,
        backward: Op | None = None,
        constants: Sequence[str] = (),
        compiled: bool = True,
    ) -> None:
        """Define `colaworld::<name>`, and `colaworld::<name>_triton` if there is a `launch`.

        Args:
            name: of the op.
            schema: what follows the name, "(Tensor x, float eps) -> Tensor".
            fake: inputs -> outputs without values, with the kernels' shapes and strides.
            launch: inputs -> outputs, by Triton; None when there is no twin.
            save: (ctx, inputs, output), keeps what the gradient reads.
            gradients: (ctx, *grads) -> one gradient or None for each input; with a `backward` its
                first argument is that op's function, (run, ctx, *grads). None: the op has no
                derivative, as a backward op.
            backward: the op that computes the gradient.
            constants: names of tensors without a derivative.
            compiled: whether csrc/ has kernels for it.
        """
        self.name, self.launch = name, launch
        ALL.append(self)
        self._save, self._gradients, self._backward = save, gradients, backward
        arguments = torch._C.parse_schema(f"{name}{schema}").arguments
        self._differentiated = tuple(
            i
            for i, argument in enumerate(arguments)
            if str(argument.type) in ("Tensor", "Optional[Tensor]")
            and argument.name not in constants
        )
        self.compiled: Any = None  # runs the library's kernels; None without them
        self.triton: Any = None
        their = (None, None) if backward is None else (backward.compiled, backward.triton)
        if compiled and _native.AVAILABLE:
            self._define(name, schema, fake, their[0])
            self.compiled = self._runner(name, their[0])
        if launch is not None and _triton.INSTALLED:
            twin = f"{name}_triton"
            self._define(twin, schema, fake, their[1])
            torch.library.impl(f"colaworld::{twin}", _triton.DEVICES, launch)
            self.triton = self._runner(twin, their[1])

    def _define(self, name: str, schema: str, fake: Callable, backward: Callable | None) -> None:
        op = f"colaworld::{name}"
        torch.library.define(op, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(op, fake)
        torch.library.register_autograd(op, self._gradient(backward), setup_context=self._save)

    def _gradient(self, backward: Callable | None) -> Callable[..., Any]:
        """What autograd calls: (ctx, *grads)."""
        if self._gradients is None:
            return self._no_second_derivative
        if self._backward is None:
            return self._gradients
        gradients = self._gradients
        return lambda ctx, *grads: gradients(backward, ctx, *grads)

    def _no_second_derivative(self, ctx, *_):
        forward = self.name.removesuffix("_backward")
        raise NotImplementedError(
            f"{forward}: the compiled and Triton implementations have no second derivative; compute "
            f"it within colaworld.ops.force('reference')"
        )

    def _runner(self, name: str, backward: Callable | None) -> Callable[..., Any]:
        """The function that runs `colaworld::<name>`, by the shortest way that loses no gradient."""
        call = getattr(torch.ops.colaworld, name).default
        save, gradient = self._save, self._gradient(backward)
        name_of_op, differentiated = self.name, self._differentiated

        class Recorded(torch.autograd.Function):
            """The op in eager mode, with the gradient that is registered on it."""

            @staticmethod
            def forward(ctx, *inputs):
                with _below_autograd():
                    output = call(*inputs)
                if save is not None:
                    save(ctx, inputs, output)
                return output

            backward = staticmethod(gradient)

        def run(*inputs):
            if torch.compiler.is_compiling():
                return call(*inputs)
            if _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
                refuse_transforms(name_of_op, [inputs[i] for i in differentiated], inputs)
                return call(*inputs)
            if torch.is_grad_enabled():
                for i in differentiated:
                    if inputs[i] is not None and inputs[i].requires_grad:
                        return Recorded.apply(*inputs)
            with _below_autograd():
                return call(*inputs)

        return run


def refuse_transforms(
    op: str, differentiated: Sequence[Tensor | None], inputs: Sequence[object]
) -> None:
    """NotImplementedError where a kernel would lose a derivative: forward mode, and torch.func.

    The gradients that are registered are reverse mode's; the tangent of an input that has no
    derivative is rightly left behind.

    Args:
        op: the name in the message.
        differentiated: the inputs with a derivative.
        inputs: all of them.
    """
    wrapped = any(
        isinstance(t, Tensor) and _functorch.is_functorch_wrapped_tensor(t) for t in inputs
    )
    dual = forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in differentiated if t is not None
    )
    if wrapped or dual:
        what = "torch.func transforms (grad, jvp, vmap ...)" if wrapped else "forward-mode AD"
        raise NotImplementedError(
            f"{op}: {what}: the compiled and Triton implementations have reverse-mode gradients only; "
            "compute it within colaworld.ops.force('reference')"
        )
