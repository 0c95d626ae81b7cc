"""Calls of the kernels that nvcc compiled, against float64: every kernel of them, every dtype.

Lengths from 1 to 32, head dims, with and without norm, rotation and causality, addresses as little aligned
as the kernels take, more pairs than places. Not here: running them (`coverage.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from colaworld.ops import reference
from ptx import native_driver
from ptx.cases import Case, Found, draw, gradients, short_name, widened
from ptx.native_driver import Native

# The CUDA C++ kernels multiply float32 numbers as they are.
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Attention:
    D: int
    T: int
    causal: bool = False
    norm: bool = True
    rope: bool = True
    aligned: bool = True  # or at the least that the kernels take
    S: int = 2
    H: int = 3
    resident: int = 2


ATTENTION_HALF = (
    *(Attention(D, T) for D in (64, 72, 96, 128) for T in (16, 32)),
    Attention(72, 5, causal=True, aligned=False),
    Attention(72, 1),
    Attention(72, 11, norm=False),
    Attention(72, 19, causal=True, rope=False),
    Attention(64, 7, causal=True, norm=False, rope=False, aligned=False),
    Attention(64, 17, causal=True),
    Attention(96, 6, causal=True, S=1, H=1),
    Attention(96, 27, norm=False),
    Attention(128, 8, rope=False),
    Attention(128, 31, causal=True, aligned=False),
    Attention(72, 8, S=5, H=3, resident=1),  # more pairs than warps: each works on several
)
ATTENTION_FLOAT = (
    Attention(64, 16), Attention(72, 32), Attention(8, 1), Attention(24, 7, causal=True),
    Attention(64, 17, causal=True, norm=False), Attention(128, 9, rope=False, resident=1),
    Attention(40, 21, norm=False, rope=False, aligned=False),
)  # fmt: skip
# (N, K, d): rows that fill no tile, codebooks beyond one tile, channels beyond one slice,
# rows enough for several parts.
QUANTIZE = (
    (70, 65, 33),
    (40, 70, 17),
    (40, 70, 24),
    (130, 5, 32),
    (65, 130, 7),
    (1, 1, 1),
    (40, 70, 130),
)
STATISTICS = ((200, 5, 3), (333, 8, 32), (130, 9, 130), (1, 1, 1), (70, 700, 16), (8300, 6, 20))
MANY = (1 << 15, 3, 4)  # from so many rows on a thread takes eight


def cases(native: Native) -> Iterator[Case]:
    for dtype in (*HALF, torch.float32):
        for of in ATTENTION_FLOAT if dtype == torch.float32 else ATTENTION_HALF:
            yield attention(native, of, dtype)
        for sizes in (*QUANTIZE, MANY):
            yield nearest(native, sizes, dtype)
        for sizes in STATISTICS:
            yield sums(native, sizes, dtype)


def attention(native: Native, of: Attention, dtype: torch.dtype) -> Case:
    def run() -> list[Found]:
        shape = (1, of.T, of.S, of.H, of.D)
        qkv = draw(1, of.T, of.S, 3, of.H, of.D, dtype=dtype)
        grad = draw(*shape, dtype=dtype, seed=1)
        weights = [1 + 0.3 * draw(of.D, seed=s) if of.norm else None for s in (2, 3)]
        angles = draw(of.T, of.D // 2, seed=4)
        tables = [angles.cos(), angles.sin()] if of.rope else [None, None]
        options = {"causal": of.causal, "eps": 1e-3, "scale": 0.9 * of.D**-0.5}
        skew = 0 if of.aligned else native_driver.attention_alignment(dtype)
        where = {"skew": skew, "resident": of.resident}
        rest = (*weights, *tables)
        got = native.attention(qkv, *rest, **options, **where)
        got += native.attention(qkv, *rest, grad=grad, **options, **where)

        def exact(wide: bool):
            to = widened if wide else (lambda x: x)
            turned = [to(t) for t in tables]
            function = lambda q, a, b: reference.st_attention(  # noqa: E731
                q, a, b, *turned, temporal=True, **options
            )
            outs, grads = gradients(function, [to(qkv), *map(to, weights)], [to(grad)])
            return [*outs, *grads]

        names = ("out", "qkv", "q_weight", "k_weight")
        found = [Found(*f) for f in zip(names, got, exact(False), exact(True), strict=False)]
        if of.T == 1:  # the softmax of one score has no gradient: what is left is rounding
            found = [f for f in found if f.name == "out"]
        return found

    how = [n for n in ("causal",) if getattr(of, n)]
    how += [f"no {n}" for n in ("norm", "rope") if not getattr(of, n)]
    label = " ".join(
        [f"{of.H}x{of.D} T={of.T}", *how, *([] if of.aligned else ["least alignment"])]
    )
    return Case("attention", label, short_name(dtype), run)


def nearest(native: Native, sizes: tuple[int, int, int], dtype: torch.dtype) -> Case:
    N, K, d = sizes

    def run() -> list[Found]:
        z, codebook = draw(N, d, dtype=dtype), draw(K, d, dtype=dtype, seed=1)
        codes, indices = native.nearest(z, codebook)
        assert torch.equal(codes, codebook[indices]), "codes are not the entries of the indices"
        distance = torch.cdist(z.double(), codebook.double())
        chosen, least = distance.gather(1, indices[:, None])[:, 0], distance.min(1).values
        plain = distance.gather(1, reference.nearest_code(z, codebook)[:, None])[:, 0]
        return [Found("distance", chosen, plain, least)]

    return Case("vector_quantize", f"N={N} K={K} d={d}", short_name(dtype), run)


def sums(native: Native, sizes: tuple[int, int, int], dtype: torch.dtype) -> Case:
    N, K, d = sizes

    def run() -> list[Found]:
        z = draw(N, d, dtype=dtype)
        indices = torch.randint(K, (N,), generator=torch.Generator().manual_seed(1))
        got = native.sums(z, indices, K, counts=True)
        exact = reference.code_statistics(z.double(), indices, K, True)
        return [Found("sums", got, reference.code_statistics(z, indices, K, True), exact)]

    return Case("code_statistics", f"N={N} K={K} d={d}", short_name(dtype), run)
