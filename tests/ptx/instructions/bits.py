"""Moves and bits: mov, logic, shifts, fields of bits, permutations of bytes."""

from __future__ import annotations

import numpy as np

from ptx import formats
from ptx.memory import SHARED_WINDOW
from ptx.parse import Name, Vector
from ptx.program import Decode, Run, instruction

_U32 = np.uint32


@instruction("mov", "cvta")
def mov(decode: Decode) -> Run:
    ins = decode.ins
    kind = ins.type
    if ins.name == "cvta":
        return _cvta(decode)
    if isinstance(ins.operands[0], Vector):
        return _unpack(decode)
    if isinstance(ins.operands[1], Vector):
        return _pack(decode)
    put, x = decode.target(0), decode.source(1, kind)
    if isinstance(ins.operands[1], Name) and ins.operands[1].text in ("%clock", "%clock64"):
        return lambda m, mask: put(m, formats.OF[kind](m.now), mask)
    return lambda m, mask: put(m, x(m), mask)


def _cvta(decode: Decode) -> Run:
    """Generic addresses of global memory are the addresses themselves; shared memory has a window."""
    ins = decode.ins
    put, x = decode.target(0), decode.source(1, ins.type)
    if not ins.has("shared", "shared::cta"):
        return lambda m, mask: put(m, x(m), mask)
    window = np.uint64(SHARED_WINDOW)
    if ins.has("to"):
        return lambda m, mask: put(m, x(m) - window, mask)
    return lambda m, mask: put(m, x(m) + window, mask)


def _unpack(decode: Decode) -> Run:
    """mov.b32 {low, high}, x"""
    size = formats.size_of(decode.ins.type)
    puts, x = decode.targets(0), decode.source(1, f"b{8 * size}")
    part = formats.BITS[size // len(puts)]

    def run(m, mask):
        pieces = np.ascontiguousarray(np.broadcast_to(x(m), m.total)).view(part)
        pieces = pieces.reshape(m.total, len(puts))
        for i, put in enumerate(puts):
            put(m, pieces[:, i].copy(), mask)

    return run


def _pack(decode: Decode) -> Run:
    """mov.b32 x, {low, high}"""
    size = formats.size_of(decode.ins.type)
    parts = decode.parts(1)
    each = size // len(parts)
    put, xs = decode.target(0), [decode.source(p, f"b{8 * each}") for p in parts]

    def run(m, mask):
        made = np.empty((m.total, len(xs)), formats.BITS[each])
        for i, x in enumerate(xs):
            made[:, i] = x(m)
        put(m, made.view(formats.BITS[size])[:, 0], mask)

    return run


@instruction("and", "or", "xor", "not", "cnot")
def logic(decode: Decode) -> Run:
    kind, name = decode.ins.type, decode.ins.name
    put, x = decode.target(0), decode.source(1, kind)
    if name == "not":
        return lambda m, mask: put(m, ~x(m), mask)
    if name == "cnot":
        return lambda m, mask: put(m, (x(m) == 0).astype(formats.OF[kind]), mask)
    y = decode.source(2, kind)
    if name == "and":
        return lambda m, mask: put(m, x(m) & y(m), mask)
    if name == "or":
        return lambda m, mask: put(m, x(m) | y(m), mask)
    return lambda m, mask: put(m, x(m) ^ y(m), mask)


@instruction("shl", "shr")
def shift(decode: Decode) -> Run:
    """Amounts beyond the width shift everything out."""
    kind = decode.ins.type
    of = formats.OF[kind]
    width = 8 * formats.size_of(kind)
    put, x, amount = decode.target(0), decode.source(1, kind), decode.source(2, "u32")
    left = decode.ins.name == "shl"
    signed = kind[0] == "s"

    def run(m, mask):
        value, by = x(m), amount(m)
        beyond = by >= width
        by = np.minimum(by, _U32(width - 1)).astype(of)
        made = value << by if left else value >> by
        if not signed or left:
            made = np.where(beyond, of(0), made)
        put(m, made, mask)

    return run


@instruction("shf")
def shf(decode: Decode) -> Run:
    """A funnel shift of two words."""
    ins = decode.ins
    put = decode.target(0)
    low, high, amount = (decode.source(i, "u32") for i in (1, 2, 3))
    left, wrap = ins.has("l"), ins.has("wrap")
    wide = np.uint64

    def run(m, mask):
        by = amount(m)
        by = (by & _U32(31) if wrap else np.minimum(by, _U32(32))).astype(wide)
        both = (high(m).astype(wide) << wide(32)) | low(m).astype(wide)
        made = (both << by) >> wide(32) if left else both >> by
        put(m, (made & wide(0xFFFFFFFF)).astype(_U32), mask)

    return run


@instruction("lop3")
def lop3(decode: Decode) -> Run:
    put = decode.target(0)
    x, y, z = (decode.source(i, "b32") for i in (1, 2, 3))
    table = int(decode.constant(decode.ins.operands[4].text, "u32"))

    def run(m, mask):
        a, b, c = x(m), y(m), z(m)
        made = np.zeros(m.total, _U32)
        for row in range(8):
            if table >> row & 1:
                made |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        put(m, made, mask)

    return run


@instruction("prmt")
def prmt(decode: Decode) -> Run:
    """Four bytes picked out of eight."""
    if decode.ins.type != "b32" or len(decode.ins.fields) > 1:
        raise decode.unknown()
    put = decode.target(0)
    x, y, how = (decode.source(i, "b32") for i in (1, 2, 3))

    def run(m, mask):
        words = np.empty((m.total, 2), _U32)
        words[:, 0], words[:, 1] = x(m), y(m)
        source = words.view(np.uint8)
        select = np.broadcast_to(how(m), m.total)
        made = np.empty((m.total, 4), np.uint8)
        for i in range(4):
            which = select >> _U32(4 * i)
            byte = source[m.all, which & _U32(7)]
            sign = np.where(byte & 128, np.uint8(255), np.uint8(0))
            made[:, i] = np.where(which & _U32(8), sign, byte)
        put(m, made.view(_U32)[:, 0], mask)

    return run


@instruction("bfe")
def bfe(decode: Decode) -> Run:
    """A field of bits, with its sign for a signed type."""
    kind = decode.ins.type
    of = formats.OF[kind]
    width = 8 * formats.size_of(kind)
    unsigned = formats.BITS[width // 8]
    put, x = decode.target(0), decode.source(1, f"b{width}")
    start, length = decode.source(2, "u32"), decode.source(3, "u32")

    def run(m, mask):
        value = np.broadcast_to(x(m), m.total)
        at, count = start(m) & _U32(255), np.minimum(length(m) & _U32(255), _U32(width))
        shifted = np.where(
            at < width, value >> np.minimum(at, width - 1).astype(unsigned), unsigned(0)
        )
        keep = _low_bits(count, width)
        made = shifted & keep
        if kind[0] == "s":
            top = np.minimum(at + np.maximum(count, _U32(1)) - _U32(1), _U32(width - 1))
            sign = (value >> top.astype(unsigned)) & unsigned(1)
            inside = np.minimum(count, np.where(at < width, width - at, 0))
            made = np.where((count > 0) & (sign == 1), made | ~_low_bits(inside, width), made)
        put(m, made.view(of), mask)

    return run


def _low_bits(count, width: int):
    """A mask of so many low bits."""
    of = formats.BITS[width // 8]
    full = of((1 << width) - 1)
    return np.where(
        count >= width, full, ~(full << np.minimum(count, np.uint32(width - 1)).astype(of))
    )


@instruction("bfi")
def bfi(decode: Decode) -> Run:
    width = 8 * formats.size_of(decode.ins.type)
    of = formats.BITS[width // 8]
    kind = f"b{width}"
    put, x, y = decode.target(0), decode.source(1, kind), decode.source(2, kind)
    start, length = decode.source(3, "u32"), decode.source(4, "u32")

    def run(m, mask):
        at, count = start(m) & _U32(255), length(m) & _U32(255)
        by = np.minimum(at, _U32(width - 1)).astype(of)
        field = np.where(at < width, _low_bits(count, width) << by, of(0))
        put(m, ((x(m) << by) & field) | (y(m) & ~field), mask)

    return run


@instruction("bmsk")
def bmsk(decode: Decode) -> Run:
    put, start, length = decode.target(0), decode.source(1, "u32"), decode.source(2, "u32")

    def run(m, mask):
        at = start(m)
        made = _low_bits(length(m), 32) << np.minimum(at, _U32(31))
        put(m, np.where(at < 32, made, _U32(0)), mask)

    return run


@instruction("brev", "clz", "popc", "bfind")
def counting(decode: Decode) -> Run:
    """Reversed bits, leading zeros, ones, the highest bit."""
    ins = decode.ins
    width = 8 * formats.size_of(ins.type)
    put, x = decode.target(0), decode.source(1, f"b{width}")

    def bits(m):  # [threads, width], lowest first
        value = np.ascontiguousarray(np.broadcast_to(x(m), m.total))
        return np.unpackbits(value.view(np.uint8).reshape(m.total, -1), axis=1, bitorder="little")

    def highest(m):  # -1 for 0
        of = bits(m)
        return np.where(of.any(1), width - 1 - of[:, ::-1].argmax(1), -1)

    if ins.name == "brev":
        return lambda m, mask: put(
            m,
            np.packbits(bits(m)[:, ::-1], axis=1, bitorder="little").view(formats.BITS[width // 8])[
                :, 0
            ],
            mask,
        )
    if ins.name == "popc":
        return lambda m, mask: put(m, bits(m).sum(1).astype(_U32), mask)
    if ins.name == "clz":
        return lambda m, mask: put(m, (width - 1 - highest(m)).astype(_U32), mask)
    if ins.type[0] == "s":
        raise decode.unknown()
    if ins.has("shiftamt"):
        return lambda m, mask: put(
            m, np.where(highest(m) < 0, -1, width - 1 - highest(m)).astype(np.int32), mask
        )
    return lambda m, mask: put(m, highest(m).astype(np.int32), mask)
