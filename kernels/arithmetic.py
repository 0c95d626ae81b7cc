"""Arithmetic that more than one file of kernels needs, in Triton. Not here: launches (`launch.py`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, PIN: tl.constexpr):
    """a b in float32, rounded before it is added up; PIN: not in Triton's interpreter.

    The lanes of a sum swap what they have and add it. Left alone, the compiler makes that addition
    and the product one instruction: a lane then adds its own product unrounded to another's rounded
    one, and lanes that hold the same sum differ in its last bit.
    """
    if PIN:
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return a * b
