"""Floating-point operations of the ops that multiply matrices, for torch's FlopCounterMode.

    with FlopCounterMode(custom_mapping=FLOPS) as counter: ...    by module
    with FlopCount() as count: ...                                 the sum alone

As torch counts its own: a multiplication and an addition are two, only products of matrices count, and
masked scores count as computed. Norms, rotations and statistics, which move bytes, are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

import colaworld.ops  # noqa: F401  # defines them


def attention_flops(queries: int, keys: int, rows: int, width: int, *, products: int) -> int:
    """Of `rows` attentions of `queries` to `keys`, heads of `width`: forward has two products, backward
    five (scores again, and the gradients of v, of the scores, of q and of k)."""
    return products * 2 * rows * queries * keys * width


def _st_attention(qkv: Sequence[int], *arguments: Any, **_: Any) -> int:
    temporal = arguments[4]
    B, T, S, _three, H, D = qkv
    length, rows = (T, B * S * H) if temporal else (S, B * T * H)
    return attention_flops(length, length, rows, D, products=2)


def _st_attention_backward(
    grad: Sequence[int], qkv: Sequence[int], *arguments: Any, **_: Any
) -> int:
    return _st_attention(qkv, *arguments) // 2 * 5


def _vector_quantize(z: Sequence[int], codebook: Sequence[int], **_: Any) -> int:
    return 2 * z[0] * z[1] * codebook[0]


_FORMULAS: dict[str, Callable[..., int]] = {
    "st_attention": _st_attention,
    "st_attention_backward": _st_attention_backward,
    "vector_quantize": _vector_quantize,
}
FLOPS = {
    getattr(torch.ops.colaworld, name + twin): formula
    for name, formula in _FORMULAS.items()
    for twin in ("", "_triton")
    if hasattr(torch.ops.colaworld, name + twin)
}
"""By op: its count from the shapes of its arguments. Without the compiled library its ops are absent."""


class FlopCount(TorchDispatchMode):
    """Sums operations as FlopCounterMode does, without its hooks, which keep tensors alive: for a trace
    that counts memory too."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        formula = _REGISTRY.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=made)
        return made


_REGISTRY = {**flop_registry, **{op: shape_wrapper(formula) for op, formula in FLOPS.items()}}
