"""The short way into a compiled op for a call that is not being traced.

The dispatcher's Python layer for autograd costs 10 to 20 microseconds a call, which is most of the
time at the smallest sizes. An eager call that needs no gradient goes below it; one that does is
recorded by an autograd.Function of the op's own, from the same two functions that are registered
with the dispatcher. Not here: any op.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd would record a call with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


# Entered as `with below_autograd():`, for calls that record nothing or that a Function records.
below_autograd = torch._C._AutoDispatchBelowAutograd
