"""Arithmetic and comparisons of integers and of floating point numbers.

`.approx` and `.full` are computed like their exact kin: a GPU's own last bits are not imitated. A
fused multiply-add of float32 is one of float64 rounded once more, which differs from a single rounding
about once in 2^29. Not here: bit fiddling (`bits.py`), conversions (`convert.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx import formats
from ptx.program import Decode, Run, instruction

_HALVES = {"bf16", "f16", "bf16x2", "f16x2"}
_WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _flush(ins, function: Callable) -> Callable:
    """With .ftz, numbers below the smallest normal one are zero, operands and results."""
    if "ftz" not in ins.fields:
        return function
    tiny = np.float32(2.0**-126)

    def flush(x):
        return np.where(np.abs(x) < tiny, np.copysign(np.float32(0), x), x)

    return lambda *operands: flush(function(*map(flush, operands)))


def _relu(ins, function: Callable) -> Callable:
    if not ins.has("relu"):
        return function
    return lambda *operands: np.fmax(function(*operands), 0)


def _float(ins, kind: str) -> Callable:
    """The function of an instruction on float32 or float64."""
    of = formats.OF[kind]
    wide = np.float64 if kind == "f32" else np.longdouble

    def fma(x, y, z):
        return (np.asarray(x).astype(wide) * y + z).astype(of)

    nan = ins.has("NaN")
    functions = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
        "fma": fma,
        "mad": fma,
        "neg": lambda x: -x,
        "abs": np.abs,
        "max": np.maximum if nan else np.fmax,
        "min": np.minimum if nan else np.fmin,
        "sqrt": np.sqrt,
        "rcp": lambda x: of(1) / x,
        "rsqrt": lambda x: (1 / np.sqrt(np.asarray(x).astype(np.float64))).astype(of),
        "ex2": lambda x: np.exp2(np.asarray(x).astype(np.float64)).astype(of),
        "lg2": lambda x: np.log2(np.asarray(x).astype(np.float64)).astype(of),
        "sin": lambda x: np.sin(np.asarray(x).astype(np.float64)).astype(of),
        "cos": lambda x: np.cos(np.asarray(x).astype(np.float64)).astype(of),
        "tanh": lambda x: np.tanh(np.asarray(x).astype(np.float64)).astype(of),
        "copysign": lambda x, y: np.copysign(y, x),
    }
    function = functions[ins.name]
    if ins.has("sat"):
        plain = function
        function = lambda *operands: np.clip(np.nan_to_num(plain(*operands)), of(0), of(1))  # noqa: E731
    return _flush(ins, _relu(ins, function))


def _integer(ins, kind: str) -> Callable:
    def divided(x, y):
        if (np.asarray(y) == 0).any():
            y = np.where(y == 0, 1, y).astype(formats.OF[kind])  # a GPU gives some number
        quotient = x // y
        if kind[0] == "s":  # towards zero, not down
            inexact = (quotient * y != x) & ((x < 0) != (y < 0))
            quotient = quotient + inexact.astype(formats.OF[kind])
        return quotient, y

    functions = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "mad": lambda x, y, z: x * y + z,
        "div": lambda x, y: divided(x, y)[0],
        "rem": lambda x, y: x - divided(x, y)[0] * divided(x, y)[1],
        "neg": lambda x: -x,
        "abs": np.abs,
        "max": np.maximum,
        "min": np.minimum,
        "sad": lambda x, y, z: z + np.maximum(x, y) - np.minimum(x, y),
    }
    return functions[ins.name]


def _half(ins, kind: str) -> Callable:
    """On one or two 16-bit floating point numbers in a register, each result rounded once."""
    bf16 = kind.startswith("bf")
    ins_of_float = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "fma": lambda x, y, z: x.astype(np.float64) * y + z,
        "neg": lambda x: -x,
        "abs": np.abs,
        "max": np.maximum if ins.has("NaN") else np.fmax,
        "min": np.minimum if ins.has("NaN") else np.fmin,
        "ex2": np.exp2,
        "tanh": np.tanh,
    }
    function = _relu(ins, ins_of_float[ins.name])

    def run(*operands):
        wide = []
        for bits in operands:
            halves = np.ascontiguousarray(bits).view(np.uint16)
            wide.append(
                formats.from_bf16(halves) if bf16 else halves.view(np.float16).astype(np.float32)
            )
        made = function(*wide)
        if bf16:
            halves = formats.to_bf16(made.astype(np.float32))
        else:
            halves = made.astype(np.float16).view(np.uint16)
        return np.ascontiguousarray(halves).view(np.uint32 if kind.endswith("x2") else np.uint16)

    return run


@instruction(
    "add", "sub", "mul", "mad", "fma", "div", "rem", "neg", "abs", "max", "min", "sad", "sqrt",
    "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "copysign",
)  # fmt: skip
def arithmetic(decode: Decode) -> Run:
    ins = decode.ins
    kind = ins.type
    if ins.has("cc"):
        raise decode.unknown()
    if ins.name in ("mul", "mad") and ins.has("wide"):
        return _wide(decode)
    if ins.name in ("mul", "mad") and ins.has("hi"):
        return _high(decode)
    try:
        if kind in _HALVES:
            function = _half(ins, kind)
            kind = {"bf16": "b16", "f16": "b16"}.get(kind, "b32")
            function = _whole(function)
        elif kind in ("f32", "f64"):
            function = _float(ins, kind)
        else:
            function = _integer(ins, kind)
    except KeyError:
        raise decode.unknown() from None
    return _of(decode, function, kind)


def _whole(function: Callable) -> Callable:
    """Literals stand for every thread."""

    def run(*operands):
        most = max(np.size(x) for x in operands)
        return function(*(np.broadcast_to(x, most) for x in operands))

    return run


def _of(decode: Decode, function: Callable, kind: str) -> Run:
    """An instruction of one, two or three operands of one type."""
    put = decode.target(0)
    sources = [decode.source(i, kind) for i in range(1, len(decode.ins.operands))]
    if len(sources) == 1:
        (x,) = sources
        return lambda m, mask: put(m, function(x(m)), mask)
    if len(sources) == 2:
        x, y = sources
        return lambda m, mask: put(m, function(x(m), y(m)), mask)
    if len(sources) == 3:
        x, y, z = sources
        return lambda m, mask: put(m, function(x(m), y(m), z(m)), mask)
    raise decode.unknown()


def _wide(decode: Decode) -> Run:
    kind = decode.ins.type
    wide = _WIDE[kind]
    of = formats.OF[wide]
    put, x, y = decode.target(0), decode.source(1, kind), decode.source(2, kind)
    if decode.ins.name == "mul":
        return lambda m, mask: put(m, x(m).astype(of) * y(m).astype(of), mask)
    z = decode.source(3, wide)
    return lambda m, mask: put(m, x(m).astype(of) * y(m).astype(of) + z(m), mask)


def _high(decode: Decode) -> Run:
    """The upper half of a product."""
    kind = decode.ins.type
    put, x, y = decode.target(0), decode.source(1, kind), decode.source(2, kind)
    of = formats.OF[kind]
    z = decode.source(3, kind) if decode.ins.name == "mad" else lambda m: of(0)
    if kind in _WIDE:
        wide = formats.OF[_WIDE[kind]]
        shift = wide(8 * formats.size_of(kind))
        return lambda m, mask: put(
            m, ((x(m).astype(wide) * y(m).astype(wide)) >> shift).astype(of) + z(m), mask
        )

    def product(m):
        pairs = zip(
            np.broadcast_to(x(m), m.total).tolist(), np.broadcast_to(y(m), m.total).tolist(),
            strict=True,
        )  # fmt: skip
        return np.array([a * b >> 64 for a, b in pairs], of) + z(m)

    return lambda m, mask: put(m, product(m), mask)


@instruction("dp4a")
def dp4a(decode: Decode) -> Run:
    """A sum of four products of bytes."""
    ins = decode.ins
    a, b = (np.int8 if f == "s32" else np.uint8 for f in ins.fields[-2:])
    put = decode.target(0)
    x, y, z = decode.source(1, "b32"), decode.source(2, "b32"), decode.source(3, "s32")

    def run(m, mask):
        left = np.ascontiguousarray(np.broadcast_to(x(m), m.total)).view(a).reshape(-1, 4)
        right = np.ascontiguousarray(np.broadcast_to(y(m), m.total)).view(b).reshape(-1, 4)
        put(m, (left.astype(np.int32) * right).sum(1).astype(np.int32) + z(m), mask)

    return run


_ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip


def comparison(how: str, kind: str) -> Callable:
    """The function of a setp's first field."""
    if kind in formats.FLOATING:
        if how == "nan":
            return lambda x, y: np.isnan(x) | np.isnan(y)
        if how == "num":
            return lambda x, y: ~(np.isnan(x) | np.isnan(y))
        if how == "ne":  # ordered: false for NaN
            return lambda x, y: (x < y) | (x > y)
        if how.endswith("u") and how[:-1] in _ORDERED:
            inner = _ORDERED[how[:-1]]
            return lambda x, y: inner(x, y) | np.isnan(x) | np.isnan(y)
    return _ORDERED[how]


@instruction("setp", "set")
def setp(decode: Decode) -> Run:
    ins = decode.ins
    kind = ins.type
    results = [decode.target(part) for part in decode.parts(0)]
    try:
        compare = comparison(ins.fields[0], kind)
    except KeyError:
        raise decode.unknown() from None
    wide = formats.from_bf16 if kind == "bf16" else lambda x: x
    x, y = decode.source(1, kind), decode.source(2, kind)
    joins = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    join = next((joins[f] for f in ins.fields[1:-1] if f in joins), None)
    third = decode.source(3, "pred") if join is not None else None
    if ins.name == "set":
        raise decode.unknown()

    def run(m, mask):
        plain = compare(wide(x(m)), wide(y(m)))
        if join is None:
            found, other = plain, ~plain
        else:
            found, other = join(plain, third(m)), join(~plain, third(m))
        results[0](m, found, mask)
        if len(results) > 1:
            results[1](m, other, mask)

    return run


@instruction("testp")
def testp(decode: Decode) -> Run:
    tests = {
        "finite": np.isfinite, "infinite": np.isinf, "notanumber": np.isnan,
        "number": lambda x: ~np.isnan(x),
    }  # fmt: skip
    if decode.ins.fields[0] not in tests:
        raise decode.unknown()
    test, put, x = tests[decode.ins.fields[0]], decode.target(0), decode.source(1, decode.ins.type)
    return lambda m, mask: put(m, test(x(m)), mask)


@instruction("selp")
def selp(decode: Decode) -> Run:
    kind = decode.ins.type
    put = decode.target(0)
    x, y, p = decode.source(1, kind), decode.source(2, kind), decode.source(3, "pred")
    return lambda m, mask: put(m, np.where(p(m), x(m), y(m)), mask)


@instruction("slct")
def slct(decode: Decode) -> Run:
    kind, of = decode.ins.fields[-2:]
    put = decode.target(0)
    x, y, c = decode.source(1, kind), decode.source(2, kind), decode.source(3, of)
    return lambda m, mask: put(m, np.where(c(m) >= 0, x(m), y(m)), mask)
