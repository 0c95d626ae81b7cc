"""The short way into a compiled op for a call that is not being traced.

The dispatcher's Python layer for autograd costs 10 to 20 microseconds a call, which is most of the
time at the smallest sizes. An eager call that needs no gradient goes below it; one that does is
recorded by an autograd.Function of the op's own, from the same two functions that are registered
with the dispatcher. Below autograd there is no forward mode and no torch.func, so what would lose a
derivative there is refused first. Not here: any op.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch = torch._C._functorch


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd would record a call with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def through_dispatcher() -> bool:
    """Whether a call must reach the op itself: a graph is traced, or a transform is under way.

    A Function that torch.func can see through binds its arguments by inspection, 20 microseconds a
    call; the ops' own do not, and stay out of its way.
    """
    return torch.compiler.is_compiling() or _functorch.peek_interpreter_stack() is not None


def refuse_transforms(
    op: str, *tensors: Tensor | None, constant: Sequence[Tensor | None] = (), beside: str = ""
) -> None:
    """NotImplementedError where a kernel would lose a derivative, or a torch.func transform.

    Args:
        op: the name in the message.
        tensors: inputs with a derivative: neither dual numbers nor wrapped by a transform.
        constant: inputs without one, so that a tangent of theirs is rightly left behind.
        beside: what the reference needs as well.
    """
    if torch.compiler.is_compiling():
        return
    wrapped = _functorch.peek_interpreter_stack() is not None and any(
        _functorch.is_functorch_wrapped_tensor(t) for t in (*tensors, *constant) if t is not None
    )
    dual = forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in tensors if t is not None
    )
    if wrapped or dual:
        what = "torch.func transforms (grad, jvp, vmap ...)" if wrapped else "forward-mode AD"
        raise NotImplementedError(
            f"{op}: {what}: the compiled and Triton implementations have reverse-mode gradients "
            f"only; compute it within colaworld.ops.force('reference'){beside}"
        )


# Entered as `with below_autograd():`, for calls that record nothing or that a Function records.
below_autograd = torch._C._AutoDispatchBelowAutograd
