"""The card's own ceilings: copy, matrix product, and what one launch costs.

Everything else is held against these. Not here: the ops.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch

from .. import machine, timing
from . import stage
from .stage import Asked, Found, Point

# As many launches of nothing much as make a millisecond and more: what one costs by itself is lost
# in the clock.
LAUNCHES = 200


def points(asked: Asked) -> Iterable[Point]:
    for dtype in ("bfloat16",) if asked.quick else ("bfloat16", "float32"):
        yield Point(f"roofs/{dtype}", lambda dtype=dtype: roofs(asked, dtype), seconds=2)
    yield Point("launch", lambda: launch(asked), seconds=2)


def roofs(asked: Asked, dtype: str) -> Iterable[Found]:
    """Rows `copy` (GB/s) and `matmul` (TFLOP/s, of random numbers)."""
    yield from machine.roofs(asked.device, dtype, samples=asked.samples)


def launch(asked: Asked) -> Iterable[Found]:
    """Milliseconds of one small kernel among many: as Python starts it, and within a CUDA graph."""
    x = torch.zeros(32, device=asked.device)

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1)

    calls = {"torch": [many]}
    if asked.device.startswith("cuda"):
        many()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            many()
        calls["cuda graph"] = [graph.replay]
    times = timing.interleaved(calls, samples=asked.samples, device=asked.device)
    for name, found in times.items():
        yield stage.row(
            "card",
            "launch",
            name,
            shape="one",
            sizes={"n": x.numel()},
            dtype="float32",
            mode="fwd",
            times=tuple(round(t / LAUNCHES, 6) for t in found),
        )


if __name__ == "__main__":
    sys.exit(stage.main(points, __doc__))
