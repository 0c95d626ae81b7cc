"""The types of PTX as numpy knows them, and the number formats that numpy lacks.

A register holds bits: an unsigned integer of its width, or a bool for a predicate. An instruction
looks at them as its own type says. bfloat16 has no numpy type; its bits are uint16 until widened.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray

OF: dict[str, type] = {
    "pred": np.bool_,
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16, "bf16": np.uint16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "f16x2": np.uint32, "bf16x2": np.uint32, "tf32": np.uint32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip
BITS: dict[int, type] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED: dict[int, type] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
FLOATING = frozenset({"f16", "bf16", "f32", "f64"})


def size_of(kind: str) -> int:
    """Bytes of a number of this type in memory."""
    return np.dtype(OF[kind]).itemsize


def bits_of(values: Array) -> Array:
    """The same bits as unsigned integers (a predicate as it is)."""
    if values.dtype == np.bool_ or values.dtype.kind == "u":
        return values
    return values.view(BITS[values.dtype.itemsize])


def from_bf16(bits: Array) -> Array:
    """float32 of the bits of bfloat16."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    """The bits of bfloat16 of float32 values, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def to_tf32(bits: Array) -> Array:
    """The bits of float32 rounded to ten bits of mantissa, ties away from zero (cvt.rna)."""
    return (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def as_tf32(bits: Array) -> Array:
    """float32 as a tensor core reads it for tf32: the lowest thirteen bits are not looked at."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def immediate(text: str, kind: str) -> np.generic | None:
    """The number that a literal stands for in an instruction of this type; None if it is none."""
    if text[:2] in ("0f", "0F"):
        bits = np.uint32(int(text[2:], 16))
    elif text[:2] in ("0d", "0D"):
        bits = np.uint64(int(text[2:], 16))
    else:
        try:
            number = int(text.removesuffix("U"), 0)
        except ValueError:
            return None
        if kind == "pred":
            return np.bool_(number != 0)
        size = size_of(kind)
        bits = BITS[size](number & ((1 << (8 * size)) - 1))
    return bits.view(OF[kind]) if bits.itemsize == size_of(kind) else bits
