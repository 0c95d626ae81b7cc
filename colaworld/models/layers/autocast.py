"""Autocast off, for what must keep its dtype."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Inside, what is computed on the device of x keeps its dtype, whatever the caller set.

    The meta device has no autocast to turn off. It is asked for by name: torch.compile does not trace
    `torch.amp.is_autocast_available` in torch 2.11.
    """
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
