"""Random calls of every op: a result equal to the reference's or a clear error, never a crash.

Each call has random sizes (0 included), strides, dtypes and now and then a wrong argument.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

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


def random_call_of(op: str):
    """`random_call` of the op's own tests: a `Draw` -> a call without arguments that can be repeated."""
    path = Path(__file__).with_name(f"test_{op}.py")
    spec = importlib.util.spec_from_file_location(f"random_calls_{op}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.random_call


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
    makers = [(op, random_call_of(op)) for op in ops.names()]
    for seed in seeds:
        draw = Draw(seed)
        op, make = makers[seed % len(makers)]
        call = make(draw)
        wanted, got = outcome(call, "reference"), outcome(call, None)
        where = f"seed {seed}, {op}, {draw.dtype}"
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
