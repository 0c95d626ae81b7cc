"""cvt: from one type to another, with its rounding."""

from __future__ import annotations

import numpy as np

from ptx import formats
from ptx.formats import Array
from ptx.program import Decode, Run, instruction

_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@instruction("cvt")
def cvt(decode: Decode) -> Run:
    ins = decode.ins
    kinds = [f for f in ins.fields if f in formats.OF]
    if len(kinds) != 2 or ins.has("satfinite"):
        raise decode.unknown()
    to, of = kinds
    if to in ("bf16x2", "f16x2"):
        return _two(decode, to)
    put, x = decode.target(0), decode.source(1, of)
    rounding = next((_TO_INTEGER[f] for f in ins.fields if f in _TO_INTEGER), None)
    saturate, relu = ins.has("sat"), ins.has("relu")
    toward_zero = ins.has("rz")

    def run(m, mask):
        value = x(m)
        if of == "bf16":
            value = formats.from_bf16(np.asarray(value))
        put(m, _converted(value, of, to, rounding, saturate, relu, toward_zero), mask)

    if toward_zero and to not in ("bf16", "f16", "f32"):
        raise decode.unknown()
    return run


def _converted(
    value: Array, of: str, to: str, rounding, saturate: bool, relu: bool, toward_zero: bool
) -> Array:
    target = formats.OF[to]
    if to == "tf32":
        return formats.to_tf32(np.asarray(value).view(np.uint32))
    if rounding is not None:
        value = rounding(value)
    if relu:
        value = np.fmax(value, 0)
    if to in formats.FLOATING:
        if saturate:
            value = np.clip(np.nan_to_num(value, nan=0.0), 0, 1)
        if toward_zero and of in formats.FLOATING:
            return _toward_zero(value, to)
        return (
            formats.to_bf16(np.asarray(value, np.float32)) if to == "bf16" else value.astype(target)
        )
    if of in formats.FLOATING:  # out of range: the nearest there is; NaN: 0
        limits = np.iinfo(target)
        wide = np.asarray(value).astype(np.longdouble)
        wide = np.where(np.isnan(wide), 0, np.clip(wide, limits.min, limits.max))
        return wide.astype(target)
    if saturate:
        limits = np.iinfo(target)
        low = max(int(limits.min), int(np.iinfo(value.dtype).min))
        high = min(int(limits.max), int(np.iinfo(value.dtype).max))
        value = np.clip(value, value.dtype.type(low), value.dtype.type(high))
    return value.astype(target)


def _toward_zero(value: Array, to: str) -> Array:
    if to == "bf16":
        return (np.asarray(value, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    near = value.astype(formats.OF[to])
    over = np.abs(near.astype(np.float64)) > np.abs(np.asarray(value).astype(np.float64))
    return np.where(over, np.nextafter(near, formats.OF[to](0)), near)


def _two(decode: Decode, to: str) -> Run:
    """cvt.rn.bf16x2.f32 d, high, low"""
    if not decode.ins.has("rn") or decode.ins.type != "f32":
        raise decode.unknown()
    put, high, low = decode.target(0), decode.source(1, "f32"), decode.source(2, "f32")
    relu = decode.ins.has("relu")

    def half(value: Array) -> Array:
        if relu:
            value = np.fmax(value, np.float32(0))
        if to == "bf16x2":
            return formats.to_bf16(value)
        return np.asarray(value, np.float32).astype(np.float16).view(np.uint16)

    def run(m, mask):
        made = np.empty((m.total, 2), np.uint16)
        made[:, 0], made[:, 1] = half(low(m)), half(high(m))
        put(m, made.view(np.uint32)[:, 0], mask)

    return run
