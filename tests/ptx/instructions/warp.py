"""Exchanges within a warp: shuffles, votes, sums, matches. Waiting for the lanes is in `control.py`."""

from __future__ import annotations

import numpy as np

from ptx import formats
from ptx.formats import Array
from ptx.parse import Pair
from ptx.program import Decode, Run, instruction

_LANES = 32


def lanes(values: Array, m) -> Array:
    """[warps, 32]"""
    return np.broadcast_to(values, m.total).reshape(-1, _LANES)


@instruction("shfl")
def shfl(decode: Decode) -> Run:
    ins = decode.ins
    mode = ins.fields[1]
    if mode not in ("up", "down", "bfly", "idx"):
        raise decode.unknown()
    results = [decode.target(part) for part in decode.parts(0)]
    assert len(results) == (2 if isinstance(ins.operands[0], Pair) else 1)
    x, by, bounds = (decode.source(i, "b32") for i in (1, 2, 3))
    lane = np.arange(_LANES)

    def run(m, mask):
        value = lanes(x(m), m)
        b, c = lanes(by(m), m).astype(np.int64) & 31, lanes(bounds(m), m).astype(np.int64)
        segment, clamp = (c >> 8) & 31, c & 31
        most = (lane & segment) | (clamp & ~segment)
        least = lane & segment
        if mode == "up":
            source = lane - b
            inside = source >= most
        else:
            source = {"down": lane + b, "bfly": lane ^ b, "idx": least | (b & ~segment)}[mode]
            inside = source <= most
        source = np.where(inside, source, lane)
        if mask is not None:
            here = mask.reshape(-1, _LANES)
            if (here & ~np.take_along_axis(here, source, 1)).any():
                m.note("a shuffle reads a lane that does not take part")
        results[0](m, np.take_along_axis(value, source, 1).reshape(-1), mask)
        if len(results) > 1:
            results[1](m, np.broadcast_to(inside, value.shape).reshape(-1), mask)

    return run


@instruction("vote")
def vote(decode: Decode) -> Run:
    ins = decode.ins
    put, x = decode.target(0), decode.source(1, "pred")

    def run(m, mask):
        p = lanes(x(m), m)
        here = np.ones_like(p) if mask is None else mask.reshape(-1, _LANES)
        if ins.has("ballot"):
            made = ((p & here) << np.arange(_LANES, dtype=np.uint64)).sum(1).astype(np.uint32)
        elif ins.has("any"):
            made = (p & here).any(1)
        elif ins.has("all"):
            made = (p | ~here).all(1)
        else:
            made = (p | ~here).all(1) | (~p | ~here).all(1)
        put(m, np.repeat(made, _LANES), mask)

    return run


@instruction("activemask")
def activemask(decode: Decode) -> Run:
    put = decode.target(0)

    def run(m, mask):
        here = np.ones(m.total, bool) if mask is None else mask
        made = (here.reshape(-1, _LANES) << np.arange(_LANES, dtype=np.uint64)).sum(1)
        put(m, np.repeat(made.astype(np.uint32), _LANES), mask)

    return run


@instruction("redux")
def redux(decode: Decode) -> Run:
    ins = decode.ins
    kind = ins.type
    functions = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
        "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    name = ins.fields[1]
    if name not in functions or kind not in ("u32", "s32", "b32"):
        raise decode.unknown()
    put, x = decode.target(0), decode.source(1, kind)
    of = formats.OF[kind]
    limits = np.iinfo(of)
    neutral = {"min": limits.max, "max": limits.min, "and": -1 if kind == "s32" else limits.max}

    def run(m, mask):
        value = lanes(x(m), m)
        if mask is not None:
            value = np.where(mask.reshape(-1, _LANES), value, of(neutral.get(name, 0)))
        made = functions[name].reduce(value, axis=1, dtype=of)
        put(m, np.repeat(made, _LANES), mask)

    return run


@instruction("elect")
def elect(decode: Decode) -> Run:
    """One lane of those that take part: the lowest."""
    results = [decode.target(part) for part in decode.parts(0)]

    def run(m, mask):
        here = np.ones((m.warps, _LANES), bool) if mask is None else mask.reshape(-1, _LANES)
        first = here.argmax(1)
        results[0](m, np.repeat(first.astype(np.uint32), _LANES), mask)
        if len(results) > 1:
            results[1](m, m.lane == np.repeat(first, _LANES), mask)

    return run
