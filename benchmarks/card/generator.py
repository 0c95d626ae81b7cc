"""Models at the paper's size: a pair of STDiT3-XL blocks, the IDM at 224 px, a whole joint step.

Each in four ways: the reference ops, these compiled, ours, ours compiled. Not here: single ops
(`ops.py`), and what a joint step is made of (`joint.py`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from .. import machine, models, shapes, timing
from ..arms import ARMS
from ..case import Skipped, require_compiler
from . import stage
from .joint import JointConfig, Step
from .stage import Asked, Found, Point, Wrong

DTYPE = "bfloat16"
# The largest relative difference of the first loss from the reference's: 56 blocks in bfloat16.
LOSS_BOUND = 2e-2
OUT_OF_MEMORY = "out of memory"
_SAMPLES = 7  # of a step, which takes half a second


def points(asked: Asked) -> Iterable[Point]:
    yield Point("joint", lambda: joint(asked), seconds=60)
    for what, shape, config in shapes.card_models():
        for mode in ("fwd_bwd",) if what == "idm" else ("fwd", "fwd_bwd"):
            case = models.case_of(what, config, shape, DTYPE, mode, asked.device)
            yield Point(case.label, lambda case=case: stage.of_case(case, asked), seconds=15)


def joint(asked: Asked, config: JointConfig | None = None) -> Iterator[Found]:
    """The rows of `ways`; where one of them did not fit into the memory, all again with half the clips."""
    config = config or JointConfig()
    too_large = False
    for one in ways(asked, config):
        too_large |= isinstance(one, Skipped) and one.reason.startswith(OUT_OF_MEMORY)
        yield one
    if too_large and config.clips > 1:
        gc.collect()  # what was compiled refers to itself
        if asked.device.startswith("cuda"):
            torch.cuda.empty_cache()
        yield from joint(asked, replace(config, clips=config.clips // 2))


def ways(asked: Asked, config: JointConfig) -> Iterator[Found]:
    """One row for each way: time, launches, activation memory, peak, and the share of the measured
    matrix product (MFU)."""
    shape = f"xl.b{config.clips}.joint"
    step = Step(config, device=asked.device, dtype=DTYPE)
    batch = step.batch()
    good, facts, expected = {}, {}, None
    for name, arm in ARMS.items():
        label = f"step/{shape}/{DTYPE}/fwd_bwd/{name}"
        if arm.compiled:
            require_compiler(asked.device)
        try:
            first = step(name, arm, batch)
        except torch.OutOfMemoryError as error:
            step.optimizer.zero_grad(set_to_none=True)
            yield Skipped(label, f"{OUT_OF_MEMORY}: {stage.first_line(error)}")
            continue
        except RuntimeError as error:
            yield Wrong(label, stage.first_line(error))
            continue
        expected = first if expected is None else expected
        if not abs(first - expected) <= LOSS_BOUND * abs(expected):
            yield Wrong(label, f"its loss is {first:.6g}, the reference's {expected:.6g}")
            continue

        def call(name: str = name) -> float:
            return step(name, ARMS[name], batch)

        good[name] = [call]
        launches = timing.launches(call, asked.device)
        peak = timing.peak_mb(call, asked.device)
        facts[name] = {
            "launches": launches,
            "peak_mb": peak,
            "activation_mb": step.activation_mb,
        }
    if not good:
        return
    flops = step.flops(ARMS["eager"])
    roof = peak_product(asked)
    times = timing.interleaved(good, samples=min(_SAMPLES, asked.samples), device=asked.device)
    for name, found in times.items():
        reached = flops / found[1] / 1e9
        yield stage.row(
            "card",
            "step",
            name,
            shape=shape,
            sizes={"B": config.clips, "T": config.frames, "pairs": config.backbone.depth},
            dtype=DTYPE,
            mode="fwd_bwd",
            times=found,
            flops=flops,
            tflops=float(f"{reached:.4g}"),
            peak_tflops=roof,
            mfu=float(f"{reached / roof:.4g}"),
            **facts[name],
        )


def peak_product(asked: Asked) -> float:
    """TFLOP/s of a matrix product on this device now."""
    rows = machine.roofs(asked.device, DTYPE, samples=5)
    return next(row["tflops"] for row in rows if row["op"] == "matmul")


if __name__ == "__main__":
    sys.exit(stage.main(points, __doc__))
