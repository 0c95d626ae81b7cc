"""mma.sync: products of 16 x K by K x 8 on the tensor cores, the sums in float32.

Products and sums run in float64 and are rounded once: a tensor core rounds more often, in an order
that is its own, and is not imitated. tf32 operands lose their thirteen lowest bits.
"""

from __future__ import annotations

import re

import numpy as np

from ptx import formats
from ptx.formats import Array
from ptx.instructions.warp import lanes
from ptx.program import Decode, Run, instruction


def halves(words: Array, kind: str) -> Array:
    """[..., 2] float32 of words of two 16-bit numbers."""
    bits = np.ascontiguousarray(words)[..., None].view(np.uint16)
    return formats.from_bf16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def operand_a(registers: list[Array], kind: str) -> Array:
    """[warps, 16, K] of the registers [warps, 32] of the first operand.

    Register i holds rows g + 8 (i % 2) and the K block i / 2; g = lane / 4.
    """
    stacked = np.stack(registers)  # [2 K blocks x 2, warps, 32]
    count, warps = stacked.shape[:2]
    if kind == "tf32":
        x = formats.as_tf32(stacked).reshape(count // 2, 2, warps, 8, 4, 1)
    else:
        x = halves(stacked, kind).reshape(count // 2, 2, warps, 8, 4, 2)
    return x.transpose(2, 1, 3, 0, 4, 5).reshape(warps, 16, -1)


def operand_b(registers: list[Array], kind: str) -> Array:
    """[warps, K, 8] of the registers of the second operand: column g, K block i."""
    stacked = np.stack(registers)
    count, warps = stacked.shape[:2]
    if kind == "tf32":
        x = formats.as_tf32(stacked).reshape(count, warps, 8, 4, 1)
    else:
        x = halves(stacked, kind).reshape(count, warps, 8, 4, 2)
    return x.transpose(1, 0, 3, 4, 2).reshape(warps, -1, 8)


def accumulator(registers: list[Array]) -> Array:
    """[warps, 16, 8] of four registers: rows g and g + 8, columns 2 (lane % 4) and the next."""
    x = np.stack(registers).view(np.float32)
    warps = x.shape[1]
    return x.reshape(2, 2, warps, 8, 4).transpose(2, 0, 3, 4, 1).reshape(warps, 16, 8)


def of_accumulator(product: Array) -> Array:
    """The inverse: [4, threads]."""
    warps = product.shape[0]
    x = product.reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3)
    return np.ascontiguousarray(x).reshape(4, -1)


@instruction("mma")
def mma(decode: Decode) -> Run:
    ins = decode.ins
    shape = next((f for f in ins.fields if re.fullmatch(r"m16n8k\d+", f)), None)
    kinds = ins.fields[-4:]
    if shape is None or kinds[0] != "f32" or kinds[3] != "f32" or kinds[1] != kinds[2]:
        raise decode.unknown()
    kind = kinds[1]
    if kind not in ("bf16", "f16", "tf32") or not ins.has("row") or not ins.has("col"):
        raise decode.unknown()
    puts = decode.targets(0)
    a, b, c = (decode.sources(i, "b32") for i in (1, 2, 3))
    words = int(shape[6:]) // (4 if kind == "tf32" else 8)  # K blocks
    if (len(puts), len(a), len(b), len(c)) != (4, 2 * words, words, 4):
        raise decode.unknown()

    def run(m, mask):
        left = operand_a([lanes(x(m), m) for x in a], kind)
        right = operand_b([lanes(x(m), m) for x in b], kind)
        start = accumulator([lanes(x(m), m) for x in c])
        product = (left.astype(np.float64) @ right.astype(np.float64) + start).astype(np.float32)
        for put, made in zip(puts, of_accumulator(product), strict=True):
            put(m, made, mask)

    return run
