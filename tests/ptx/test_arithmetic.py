"""Instructions on single numbers against formulas of numpy, python and torch, on the edges of their types."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptx import formats
from ptx.faults import Unknown
from ptx.small import elementwise, run


def edges(kind: str) -> np.ndarray:
    """Every pair of these meets: see `pairs`."""
    if kind in ("f32", "f64"):
        of = formats.OF[kind]
        return np.array(
            [0.0, -0.0, 1.0, -1.0, 0.1, 3.7, -2.5, 1e-42, 3e38, np.inf, -np.inf, np.nan], of
        )
    limits = np.iinfo(formats.OF[kind])
    some = [0, 1, 2, 7, 100, limits.max, limits.max - 1, limits.max // 2]
    some += [limits.min, limits.min + 1, -1, -7, -100] if limits.min else []
    return np.array(some, formats.OF[kind])


def pairs(kind: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(edges(kind), edges(kind))
    return x.ravel(), y.ravel()


def wrapped(values: list[int], kind: str) -> np.ndarray:
    """Python's integers as this type holds them."""
    bits = 8 * formats.size_of(kind)
    return np.array([v % (1 << bits) for v in values], np.uint64).astype(
        formats.BITS[bits // 8]
    ).view(formats.OF[kind])  # fmt: skip


def toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGERS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "div": toward_zero,
    "rem": lambda a, b: a - b * toward_zero(a, b),
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name, kind) -> None:
    x, y = pairs(kind)
    if name in ("div", "rem"):
        x, y = x[y != 0], y[y != 0]
    wanted = wrapped(
        [INTEGERS[name](a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)], kind
    )
    assert (elementwise(f"{name}.{kind}", (kind, kind), kind, x, y) == wanted).all()


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_and_high_products(kind) -> None:
    x, y = pairs(kind)
    bits = 8 * formats.size_of(kind)
    wide = f"{kind[0]}{2 * bits}"
    exact = [a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert (elementwise(f"mul.wide.{kind}", (kind, kind), wide, x, y) == wrapped(exact, wide)).all()
    high = wrapped([e >> bits for e in exact], kind)
    assert (elementwise(f"mul.hi.{kind}", (kind, kind), kind, x, y) == high).all()
    third = np.resize(edges(wide), len(x))
    more = wrapped([e + c for e, c in zip(exact, third.tolist(), strict=True)], wide)
    found = elementwise(f"mad.wide.{kind}", (kind, kind, wide), wide, x, y, third)
    assert (found == more).all()


def test_high_products_of_64_bits() -> None:
    x, y = pairs("s64")
    wanted = [a * b >> 64 for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert (elementwise("mul.hi.s64", ("s64", "s64"), "s64", x, y) == wrapped(wanted, "s64")).all()


def same(got: np.ndarray, wanted: np.ndarray) -> bool:
    """To the last bit, any NaN like any other."""
    return np.array_equal(got, wanted, equal_nan=True) and np.array_equal(
        np.signbit(got[~np.isnan(got)]), np.signbit(wanted[~np.isnan(wanted)])
    )


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_floats(kind) -> None:
    x, y = pairs(kind)
    with np.errstate(all="ignore"):
        for name, wanted in {
            "add": x + y, "sub": x - y, "mul": x * y, "div.rn": x / y, "min": np.fmin(x, y),
            "max": np.fmax(x, y),
        }.items():  # fmt: skip
            found = elementwise(f"{name}.{kind}", (kind, kind), kind, x, y)
            if name in ("min", "max"):  # of zeros of two signs either may come
                found, wanted = found + formats.OF[kind](0), wanted + formats.OF[kind](0)
            assert same(found, wanted), name
        one = edges(kind)
        for name, wanted in {
            "neg": -one, "abs": np.abs(one), "sqrt.rn": np.sqrt(one), "rcp.rn": 1 / one,
        }.items():  # fmt: skip
            assert same(elementwise(f"{name}.{kind}", (kind,), kind, one), wanted), name


def test_a_fused_product_is_rounded_once() -> None:
    x = np.array([1 + 2**-12, 3.0, 1e20], np.float32)
    y = np.array([1 + 2**-12, 1 / 3, 1e20], np.float32)
    z = np.array([-1 - 2**-11, -1.0, -1e38], np.float32)
    wanted = np.array([2**-24, math.fma(3.0, float(y[1]), -1.0) if hasattr(math, "fma") else 2.0**-25, np.inf], np.float32)  # fmt: skip
    assert same(elementwise("fma.rn.f32", ("f32",) * 3, "f32", x, y, z), wanted)


def test_flush_to_zero() -> None:
    x = np.array([1e-42, -1e-42, 2e-38], np.float32)
    found = elementwise("mul.ftz.f32", ("f32", "f32"), "f32", x, np.float32([1, 1, 0.25]))
    assert same(found, np.float32([0, -0.0, 0]))
    assert same(elementwise("mul.f32", ("f32", "f32"), "f32", x, np.float32([1, 1, 1])), x)


def test_functions() -> None:
    x = np.array([0.5, 1.0, 2.0, 9.0, 0.01, 100.0], np.float32)
    for name, wanted in {
        "ex2.approx.f32": np.exp2(x), "lg2.approx.f32": np.log2(x),
        "rsqrt.approx.f32": 1 / np.sqrt(x), "sin.approx.f32": np.sin(x),
        "cos.approx.f32": np.cos(x), "tanh.approx.f32": np.tanh(x),
        "sqrt.approx.ftz.f32": np.sqrt(x), "rcp.approx.ftz.f32": 1 / x,
    }.items():  # fmt: skip
        np.testing.assert_allclose(elementwise(name, ("f32",), "f32", x), wanted, rtol=3e-7)


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_pairs_of_halves(kind, dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(64, generator=g).to(dtype) for _ in range(3))
    words = [v.view(torch.int16).numpy().view(np.uint32) for v in (x, y, z)]

    def values(found):
        return torch.from_numpy(found.view(np.int16).copy()).view(dtype)

    of = lambda name, n: values(elementwise(f"{name}.{kind}x2", ("b32",) * n, "b32", *words[:n]))  # noqa: E731
    assert torch.equal(of("add", 2), x + y)
    assert torch.equal(of("mul", 2), x * y)
    assert torch.equal(of("max", 2), torch.maximum(x, y))
    assert torch.equal(of("neg", 1), -x)
    fused = (x.double() * y.double() + z.double()).float().to(dtype)
    assert torch.equal(of("fma.rn", 3), fused)


COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@pytest.mark.parametrize("kind", ["s32", "u64", "f32"])
@pytest.mark.parametrize("how", COMPARISONS)
def test_comparisons(how, kind) -> None:
    x, y = pairs(kind)
    listed = list(zip(x.tolist(), y.tolist(), strict=True))
    plain = np.array([eval(f"a {COMPARISONS[how]} b", {"a": a, "b": b}) for a, b in listed])
    nan = np.array([a != a or b != b for a, b in listed])
    found = elementwise(f"setp.{how}.{kind}", (kind, kind), "pred", x, y)
    assert (found == (plain & ~nan)).all()
    if kind == "f32":
        found = elementwise(f"setp.{how}u.{kind}", (kind, kind), "pred", x, y)
        assert (found == (plain | nan)).all()


def test_comparisons_with_nan_alone_and_joined_to_a_predicate() -> None:
    x, y = pairs("f32")
    nan = np.isnan(x) | np.isnan(y)
    assert (elementwise("setp.nan.f32", ("f32", "f32"), "pred", x, y) == nan).all()
    assert (elementwise("setp.num.f32", ("f32", "f32"), "pred", x, y) == ~nan).all()
    p = np.arange(len(x)) % 3 == 0
    kinds = ("f32", "f32", "pred")
    assert (elementwise("setp.lt.and.f32", kinds, "pred", x, y, p) == ((x < y) & p)).all()
    assert (elementwise("setp.lt.or.f32", kinds, "pred", x, y, p) == ((x < y) | p)).all()
    assert (elementwise("selp.f32", kinds, "f32", x, y, p).view("u4") == np.where(p, x, y).view("u4")).all()  # fmt: skip


CONVERSIONS = [
    ("cvt.rn.f32.s32", "s32", "f32", lambda x: x.astype(np.float32)),
    ("cvt.rn.f32.s64", "s64", "f32", lambda x: x.astype(np.float32)),
    ("cvt.u64.u32", "u32", "u64", lambda x: x.astype(np.uint64)),
    ("cvt.s64.s32", "s32", "s64", lambda x: x.astype(np.int64)),
    ("cvt.u32.u64", "u64", "u32", lambda x: x.astype(np.uint32)),
    ("cvt.s32.s16", "s16", "s32", lambda x: x.astype(np.int32)),
    ("cvt.u16.u32", "u32", "u16", lambda x: x.astype(np.uint16)),
    ("cvt.f64.f32", "f32", "f64", lambda x: x.astype(np.float64)),
    ("cvt.rn.f16.f32", "f32", "f16", lambda x: x.astype(np.float16)),
]


@pytest.mark.parametrize(("opcode", "of", "to", "formula"), CONVERSIONS)
def test_conversions(opcode, of, to, formula) -> None:
    x = edges(of)
    with np.errstate(all="ignore"):
        assert np.array_equal(elementwise(opcode, (of,), to, x), formula(x), equal_nan=to[0] == "f")


def test_conversion_to_integers_rounds_and_saturates() -> None:
    x = np.array([0.5, 1.5, -0.5, -1.5, 2.7, -2.7, 3e9, -3e9, np.nan, np.inf], np.float32)
    limits = np.iinfo(np.int32)
    big = [limits.max, limits.min, 0, limits.max]
    for mode, wanted in {
        "rni": [0, 2, 0, -2, 3, -3], "rzi": [0, 1, 0, -1, 2, -2], "rmi": [0, 1, -1, -2, 2, -3],
        "rpi": [1, 2, 0, -1, 3, -2],
    }.items():  # fmt: skip
        assert elementwise(f"cvt.{mode}.s32.f32", ("f32",), "s32", x).tolist() == wanted + big


def test_conversions_to_halves_against_torch() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.cat(
        [torch.randn(60, generator=g) * 100, torch.tensor([torch.nan, torch.inf, 1e-40, 3.4e38])]
    )
    bits = lambda t: t.view(torch.int16).numpy().view(np.uint16)  # noqa: E731
    found = elementwise("cvt.rn.bf16.f32", ("f32",), "bf16", x.numpy())
    wanted = bits(x.bfloat16())
    number = ~x.isnan().numpy()
    assert (found[number] == wanted[number]).all() and found[60] == 0x7FFF
    back = elementwise("cvt.f32.bf16", ("bf16",), "f32", wanted)
    assert np.array_equal(back, x.bfloat16().float().numpy(), equal_nan=True)
    y = x.flip(0)
    for kind, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        found = elementwise(f"cvt.rn.{kind}x2.f32", ("f32", "f32"), "b32", x.numpy(), y.numpy())
        high, low = found >> np.uint32(16), found & np.uint32(0xFFFF)
        keep = number & ~y.isnan().numpy()
        assert (high == bits(x.to(dtype)))[keep].all() and (low == bits(y.to(dtype)))[keep].all()


def test_tf32_keeps_ten_bits_of_mantissa() -> None:
    x = np.array([1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -(1 + 2**-11), 3.0], np.float32)
    found = elementwise("cvt.rna.tf32.f32", ("f32",), "b32", x).view(np.float32)
    assert found.tolist() == [1 + 2**-10, 1 + 2**-10, 1.0, -(1 + 2**-10), 3.0]


def test_logic_and_shifts() -> None:
    x, y = pairs("u32")
    two = ("b32", "b32")
    assert (elementwise("and.b32", two, "b32", x, y) == (x & y)).all()
    assert (elementwise("or.b32", two, "b32", x, y) == (x | y)).all()
    assert (elementwise("xor.b32", two, "b32", x, y) == (x ^ y)).all()
    assert (elementwise("not.b32", two[:1], "b32", x) == ~x).all()
    by = np.resize(np.array([0, 1, 5, 31, 32, 40], np.uint32), len(x))
    ints = [(int(a), int(b)) for a, b in zip(x, by, strict=True)]
    assert elementwise("shl.b32", two, "b32", x, by).tolist() == [(a << b) % 2**32 for a, b in ints]
    assert elementwise("shr.u32", two, "u32", x, by).tolist() == [a >> b for a, b in ints]
    signed = [(int(np.int32(np.uint32(a).view(np.int32))), b) for a, b in ints]
    assert elementwise("shr.s32", ("s32", "b32"), "s32", x.view(np.int32), by).tolist() == [
        a >> b for a, b in signed
    ]
    z = x[::-1].copy()
    table = elementwise("lop3.b32", ("b32",) * 4, "b32", x, y, z, "0xCA")  # (x & y) | (~x & z)
    assert (table == ((x & y) | (~x & z))).all()


def test_funnel_shifts() -> None:
    x, y = pairs("u32")
    by = np.resize(np.array([0, 1, 13, 31, 32, 35], np.uint32), len(x))
    rows = [(int(a), int(b), int(c)) for a, b, c in zip(x, y, by, strict=True)]
    three = ("b32",) * 3
    left = [((h << 32 | lo) << (c % 32) >> 32) % 2**32 for lo, h, c in rows]
    assert elementwise("shf.l.wrap.b32", three, "b32", x, y, by).tolist() == left
    right = [((h << 32 | lo) >> min(c, 32)) % 2**32 for lo, h, c in rows]
    assert elementwise("shf.r.clamp.b32", three, "b32", x, y, by).tolist() == right


@pytest.mark.parametrize(("start", "length"), [(0, 8), (4, 15), (28, 8), (3, 0), (0, 32), (31, 1)])
def test_fields_of_bits(start, length) -> None:
    x = edges("u32")
    field = [(int(v) >> start) % (1 << length) for v in x]
    found = elementwise("bfe.u32", ("u32", "b32", "b32"), "u32", x, str(start), str(length))
    assert found.tolist() == field
    signed = []
    for v in x.tolist():  # as the manual writes it down, bit by bit
        sign = v >> min(start + length - 1, 31) & 1 if length else 0
        bits = [v >> start + i & 1 if i < length and start + i <= 31 else sign for i in range(32)]
        signed.append(sum(b << i for i, b in enumerate(bits[:31])) - (bits[31] << 31))
    found = elementwise(
        "bfe.s32", ("s32", "b32", "b32"), "s32", x.view(np.int32), str(start), str(length)
    )
    assert found.tolist() == signed
    y = x[::-1].copy()
    keep = (((1 << length) - 1) << start) % 2**32
    wanted = [
        ((int(a) << start) & keep) | (int(b) & ~keep % 2**32) for a, b in zip(x, y, strict=True)
    ]
    kinds = ("b32", "b32", "b32", "b32")
    assert elementwise("bfi.b32", kinds, "b32", x, y, str(start), str(length)).tolist() == wanted


def test_counting_bits_and_permuting_bytes() -> None:
    x = np.concatenate([edges("u32"), np.array([0x12345678, 0x80000001], np.uint32)])
    ints = [int(v) for v in x]
    assert elementwise("popc.b32", ("b32",), "u32", x).tolist() == [bin(v).count("1") for v in ints]
    assert elementwise("clz.b32", ("b32",), "u32", x).tolist() == [
        32 - v.bit_length() for v in ints
    ]
    assert elementwise("brev.b32", ("b32",), "b32", x).tolist() == [
        int(f"{v:032b}"[::-1], 2) for v in ints
    ]
    highest = [v.bit_length() - 1 if v else 0xFFFFFFFF for v in ints]
    assert elementwise("bfind.u32", ("u32",), "u32", x).tolist() == highest
    amount = [32 - v.bit_length() if v else 0xFFFFFFFF for v in ints]
    assert elementwise("bfind.shiftamt.u32", ("u32",), "u32", x).tolist() == amount
    y = x[::-1].copy()
    both = [int(a) | int(b) << 32 for a, b in zip(x, y, strict=True)]
    byte = lambda v, i: v >> 8 * i & 255  # noqa: E731
    wanted = [byte(v, 0) | byte(v, 7) << 8 | byte(v, 2) << 16 | byte(v, 5) << 24 for v in both]
    assert elementwise("prmt.b32", ("b32",) * 3, "b32", x, y, "0x5270").tolist() == wanted
    sign = elementwise("prmt.b32", ("b32",) * 3, "b32", x, y, "0xBBBB")  # of the fourth byte
    assert sign.tolist() == [0xFFFFFFFF if v >> 31 else 0 for v in ints]


def test_packing() -> None:
    x = np.array([0x12345678, 0xFFFF0001], np.uint32).repeat(16)
    body = """
    mad.wide.u32 %d10, %r0, 4, %d0;
    ld.global.b32 %r10, [%d10];
    mov.b32 {%h0, %h1}, %r10;
    mov.b32 %r11, {%h1, %h0};
    st.global.b32 [%d10], %r11;
    """
    (found,) = run(body, [x])
    assert (found == (x >> 16 | x << 16)).all()


@pytest.mark.parametrize(
    "text", ["frobnicate.b32 %r3, %r4", "cvt.rn.satfinite.e4m3x2.f32 %h1, %r2, %r3", "add.cc.u32 %r3, %r4, %r5"]
)  # fmt: skip
def test_what_is_unknown_is_named(text) -> None:
    with pytest.raises(Unknown, match=text.split()[0].replace(".", r"\.")):
        run(text + ";", [])
