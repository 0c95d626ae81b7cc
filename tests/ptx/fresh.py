"""Which tensors hold memory that nobody has written: what `torch.empty` gave, until something fills it.

A TorchDispatchMode, so it sees every operation while it is on. Kernels mark what they write number by
number; an operation of torch's own that writes to a tensor, or makes one, counts as filling all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ptx.formats import Array

_EMPTY = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}


@dataclass
class Flags:
    written: Array  # bool, of each granule
    granule: int  # bytes


class Fresh(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, Flags] = {}  # address of a storage -> what of it was written

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        tensors = [x for x in tree_leaves(found) if type(x) is torch.Tensor]
        if function in _EMPTY:
            for x in tensors:
                self.add(x)
        elif function.namespace != "colaworld":  # our own ops are their kernels
            written = list(tensors) if not _is_view(function) else []
            if function._schema.is_mutable:
                named = dict(zip((a.name for a in function._schema.arguments), args, strict=False))
                named |= kwargs
                for argument in function._schema.arguments:
                    if argument.alias_info is not None and argument.alias_info.is_write:
                        written += [
                            x
                            for x in tree_leaves(named.get(argument.name))
                            if type(x) is torch.Tensor
                        ]
            for x in written:
                self.of.pop(address_of(x), None)
        return found

    def add(self, x: torch.Tensor) -> None:
        """Poison a new tensor: NaN, or a large number."""
        if x.device.type != "cpu" or x.untyped_storage().nbytes() == 0:
            return
        poison(x)
        count = -(-x.untyped_storage().nbytes() // x.element_size())
        self.of[address_of(x)] = Flags(np.zeros(count, bool), x.element_size())


def address_of(x: torch.Tensor) -> int:
    """Of the storage behind a tensor."""
    return x.untyped_storage().data_ptr()


def bytes_of(x: torch.Tensor) -> Array:
    """The whole storage behind a CPU tensor; writing to it writes to the tensor."""
    import ctypes

    storage = x.untyped_storage()
    if storage.nbytes() == 0:
        return np.zeros(0, np.uint8)
    pointer = ctypes.cast(storage.data_ptr(), ctypes.POINTER(ctypes.c_uint8))
    return np.ctypeslib.as_array(pointer, (storage.nbytes(),))


def poison(x: torch.Tensor) -> None:
    """NaN, or the largest integer, into the whole storage of a CPU tensor."""
    raw = bytes_of(x)
    raw[:] = 0xFF
    if not x.dtype.is_floating_point and x.dtype != torch.bool:
        raw[x.element_size() - 1 :: x.element_size()] = 0x7F  # little-endian: the sign


def _is_view(function) -> bool:
    return any(
        r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns
    )
