"""Random calls of every op: a result equal to the reference's or a clear error, never a crash.

Each call has random sizes (0 included), strides, dtypes and now and then a wrong argument.
"""

from __future__ import annotations

import random

import pytest
import torch

from colaworld import ops

pytestmark = pytest.mark.skipif(
    ops.build_info() is None, reason=f"no compiled ops: {ops.why_not_compiled()}"
)

# Twice what sums in another order differ by at these sizes, in units of the dtype's precision.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Draw:
    """Random tensors with random strides, from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.random.choice(DTYPES)

    def size(self, most: int = 9) -> int:
        return self.random.choice([0, 1, 2, 3, self.random.randint(1, most)])

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Contiguous, a slice of something larger, steps of 2, permuted memory, or expanded."""
        kind = self.random.choice(["plain", "slice", "step", "permuted", "expanded", "shape"])
        if kind == "shape" and shape and self.random.random() < 0.15:  # a wrong size
            axis = self.random.randrange(len(shape))
            shape = (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
        make = lambda *s: torch.randn(*s, generator=self.generator).to(dtype or self.dtype)  # noqa: E731
        if kind == "slice":
            return make(*(n + 2 for n in shape))[tuple(slice(1, n + 1) for n in shape)]
        if kind == "step":
            return make(*(2 * n for n in shape))[tuple(slice(0, 2 * n, 2) for n in shape)]
        if kind == "permuted":
            order = self.random.sample(range(len(shape)), len(shape))
            back = sorted(range(len(shape)), key=order.__getitem__)
            return make(*(shape[axis] for axis in order)).permute(back)
        if kind == "expanded" and shape:
            axis = self.random.randrange(len(shape))
            return make(*shape[:axis], 1, *shape[axis + 1 :]).expand(shape)
        return make(*shape)

    def maybe(self, *shape: int) -> torch.Tensor | None:
        return self.tensor(*shape) if self.random.random() < 0.7 else None

    def rope(self, length: int, pairs: int):
        if self.random.random() < 0.4:
            return None
        angles = torch.rand(length, pairs, generator=self.generator).to(self.dtype)
        return angles.cos(), angles.sin()


def st_attention(draw: Draw):
    B, T, S, H = draw.size(3), draw.size(), draw.size(), draw.size(3)
    D = draw.random.choice([1, 2, 8, 8, 16, 24, 7])
    axis = draw.random.choice(["temporal", "spatial"])
    length = T if axis == "temporal" else S
    qkv = draw.tensor(B, T, S, 3, H, D)
    options = {
        "axis": axis,
        "causal": draw.random.random() < 0.5,
        "q_weight": draw.maybe(D),
        "k_weight": draw.maybe(D),
        "rope": draw.rope(length, max(1, D // 2)),
    }
    return lambda: (ops.st_attention(qkv, **options),)


def qk_norm_rope(draw: Draw):
    B, L, H = draw.size(3), draw.size(), draw.size(3)
    D = draw.random.choice([2, 8, 16, 6, 7])
    norm = draw.random.choice(["head", "across", "none"])
    width = H * D if norm == "across" else D
    q, k = draw.tensor(B, L, H, D), draw.tensor(B, L, H, D)
    options = {
        "q_weight": None if norm == "none" else draw.tensor(width),
        "k_weight": None if norm == "none" else draw.tensor(width),
        "norm": norm,
        "rope": draw.rope(L, max(1, D // 2)),
    }
    return lambda: ops.qk_norm_rope(q, k, **options)


def qkv_norm_rope(draw: Draw):
    B, L, H = draw.size(3), draw.size(), draw.size(3)
    D = draw.random.choice([2, 8, 16, 6, 7])
    norm = draw.random.random() < 0.5
    options = {
        "q_weight": draw.tensor(D) if norm else None,
        "k_weight": draw.tensor(D) if norm else None,
        "rope": draw.rope(L, max(1, D // 2)),
    }
    qkv = draw.tensor(B, L, 3, H, D)
    return lambda: ops.qkv_norm_rope(qkv, **options)


def adaln(draw: Draw):
    B, T, S, C = draw.size(3), draw.size(4), draw.size(), draw.random.choice([1, 3, 8, 17, 64])
    x, y = draw.tensor(B, T, S, C), draw.maybe(B, T, S, C)
    gate = draw.maybe(B, T, C)
    shift, scale = draw.tensor(B, T, C), draw.tensor(B, T, C)
    return lambda: ops.adaln(x, y, gate=gate, shift=shift, scale=scale)


def vector_quantize(draw: Draw):
    N, K, d = draw.size(40), draw.size(40), draw.size(20)
    z, codebook = draw.tensor(N, d), draw.tensor(K, d)

    def call():
        codes, indices = ops.vector_quantize(z, codebook)
        assert torch.equal(codes, codebook[indices])
        # Ties may be named differently: compare distances, not indices.
        return ((z.double() - codes.double()).square().sum(1),)

    return call


def code_statistics(draw: Draw):
    N, K, d = draw.size(40), draw.size(20), draw.size(20)
    z = draw.tensor(N, d)
    high = max(1, K + (draw.random.random() < 0.1))
    indices = torch.randint(high, (N,), generator=draw.generator)
    return lambda: (ops.code_statistics(z, indices, K),)


OPS = (st_attention, qk_norm_rope, qkv_norm_rope, adaln, vector_quantize, code_statistics)


def test_every_op_is_here() -> None:
    # update_codebook writes in place: a call cannot be made again
    assert {op.__name__ for op in OPS} | {"update_codebook"} == set(ops.names())


def outcome(call, implementation: str | None):
    try:
        if implementation is None:
            return call()
        with ops.force(implementation):
            return call()
    except ValueError as error:  # anything else is a crash
        assert str(error), "an error without words"
        return error


def run(seeds: range) -> dict[str, int]:
    seen = {"equal": 0, "refused": 0}
    for seed in seeds:
        draw = Draw(seed)
        make = OPS[seed % len(OPS)]
        call = make(draw)
        wanted, got = outcome(call, "reference"), outcome(call, None)
        where = f"seed {seed}, {make.__name__}, {draw.dtype}"
        if isinstance(wanted, ValueError) or isinstance(got, ValueError):
            assert isinstance(wanted, ValueError) and isinstance(got, ValueError), (
                f"{where}: reference {wanted!r}, ours {got!r}"
            )
            seen["refused"] += 1
            continue
        for a, b in zip(wanted, got, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, where
            size = a.double().norm() + 1e-3
            assert (a.double() - b.double()).norm() <= TOLERANCE[draw.dtype] * size, where
        seen["equal"] += 1
    return seen


def test_ten_thousand_calls() -> None:
    seen = run(range(10_000))
    assert seen["equal"] > 5_000 and seen["refused"] > 500, seen
