"""What the GPU kernels are meant to reach, beside what the rows of a run say they reached.

Ratios are of medians of one run; a backward pass alone is the time of both passes less that of the
forward. Needs no torch. Not here: measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..rows import Row

OURS = ("cuda", "triton")
TEMPORAL = {"op": "st_attention", "shape": "stdit3-xl.b8.temporal"}
MODULATION = {"op": "adaln", "shape": "stdit3-xl.b8.autocast"}
PROLOGUE = {"op": "qkv_norm_rope", "shape": "stdit3-xl.b8.spatial"}
# torch's attention with norm and rotation compiled around it; the eager ones are slower.
RIVALS = (
    "compile",
    "compile:cudnn",
    "compile:flash",
    "cudnn",
    "flex",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
)
_STEPS = ("xl28.b8.joint", "xl8.b8.joint")  # the larger one where it was measured
_PAIRS = 28


@dataclass(frozen=True)
class Goal:
    """One number and the least (or most) it should be."""

    what: str
    wanted: float
    unit: str
    reached: Callable[[Sequence[Row]], float | None]  # None: a row is missing
    at_most: bool = False

    def line(self, rows: Sequence[Row]) -> str:
        """`what: 3.2 x (goal at least 3 x): yes`."""
        value = self.reached(rows)
        side = "at most" if self.at_most else "at least"
        goal = f"(goal {side} {self.wanted:g} {self.unit})"
        if value is None:
            return f"{self.what}: not measured {goal}"
        met = value <= self.wanted if self.at_most else value >= self.wanted
        return f"{self.what}: {value:.3g} {self.unit} {goal}: {'yes' if met else 'NO'}"


def find(rows: Sequence[Row], **wanted: str) -> Row | None:
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def fastest(rows: Sequence[Row], impls: Sequence[str], **wanted: str) -> float | None:
    """The smallest median among the implementations that have one, in ms."""
    times = [t for name in impls if (t := _ms(rows, name, **wanted)) is not None]
    return min(times, default=None)


def _ms(rows: Sequence[Row], impl: str, **wanted: str) -> float | None:
    """Median of an implementation; in mode "bwd" that of both passes less the forward."""
    if wanted["mode"] != "bwd":
        row = find(rows, impl=impl, **wanted)
        return None if row is None else row["p50_ms"]
    both, forward = (_ms(rows, impl, **{**wanted, "mode": m}) for m in ("fwd_bwd", "fwd"))
    return None if both is None or forward is None else max(both - forward, 1e-9)


def _over(rivals: Sequence[str], ours: Sequence[str] = OURS, **wanted: str) -> Callable:
    def reached(rows: Sequence[Row]) -> float | None:
        theirs, best = fastest(rows, rivals, **wanted), fastest(rows, ours, **wanted)
        return None if theirs is None or best is None else theirs / best

    return reached


def _of_copy(mode: str, **where: str) -> Callable:
    """Per cent of the measured copy; bytes of a backward are those of both less the forward's."""

    def reached(rows: Sequence[Row]) -> float | None:
        copy = find(rows, suite="machine", op="copy", dtype="bfloat16")
        best = fastest(rows, OURS, mode=mode, **where)
        forward, both = (find(rows, mode=m, **where) for m in ("fwd", "fwd_bwd"))
        if copy is None or best is None or forward is None or (mode == "bwd" and both is None):
            return None
        size = forward["bytes"] if mode == "fwd" else both["bytes"] - forward["bytes"]
        return 100 * size / best / 1e6 / copy["gb_s"]

    return reached


def _small(op: str, shape: str, field: str, scale: float) -> Callable:
    """The smallest value of a field among ours."""

    def reached(rows: Sequence[Row]) -> float | None:
        found = [find(rows, op=op, shape=shape, mode="fwd", impl=i) for i in (*OURS, "default")]
        return min((scale * row[field] for row in found if row is not None), default=None)

    return reached


def _step(rivals: Sequence[str]) -> Callable:
    def reached(rows: Sequence[Row]) -> float | None:
        ours = ("default", "default+compile")
        values = (_over(rivals, ours, op="step", shape=s, mode="fwd_bwd")(rows) for s in _STEPS)
        return next((value for value in values if value is not None), None)

    return reached


def _mfu(rows: Sequence[Row]) -> float | None:
    for shape in _STEPS:
        found = [find(rows, op="step", shape=shape, impl=i) for i in ("default+compile", "default")]
        shares = [100 * row["mfu"] for row in found if row is not None and row.get("mfu")]
        if shares:
            return max(shares)
    return None


def _saved(rows: Sequence[Row]) -> float | None:
    """GB of activations that a step of ours holds less than the eager one, at 28 pairs of blocks: what
    fewer hold, times so many more."""
    for shape in _STEPS:
        theirs, ours = (find(rows, op="step", shape=shape, impl=i) for i in ("eager", "default"))
        if theirs is not None and ours is not None:
            less = theirs["activation_mb"] - ours["activation_mb"]
            return less / 1024 * _PAIRS / ours["sizes"]["pairs"]
    return None


GOALS = (
    Goal("temporal attention over the best compiled rival, both passes", 3.0, "x", _over(RIVALS, mode="fwd_bwd", **TEMPORAL)),
    Goal("temporal attention forward, share of the copy", 75, "%", _of_copy("fwd", **TEMPORAL)),
    Goal("temporal attention backward, share of the copy", 60, "%", _of_copy("bwd", **TEMPORAL)),
    Goal("modulation backward over compile, as training runs it", 1.4, "x", _over(("compile",), mode="bwd", **MODULATION)),
    Goal("norm and rotation forward over compile", 1.0, "x", _over(("compile",), mode="fwd", **PROLOGUE)),
    Goal("norm and rotation backward over compile", 1.2, "x", _over(("compile",), mode="bwd", **PROLOGUE)),
    Goal("a codebook's step at the size of a batch", 25, "us", _small("codebook_step", "lam.codes", "p50_ms", 1e3), True),
    Goal("quantisation at N 1M K 8192, memory beside its inputs", 256, "MB", _small("vector_quantize", "bounded.codes", "peak_mb", 1), True),
    Goal("joint step over compile", 1.15, "x", _step(("compile",))),
    Goal("joint step over eager", 1.6, "x", _step(("eager",))),
    Goal("joint step, share of the measured product (MFU)", 50, "%", _mfu),
    Goal("activations of a joint step at 28 pairs, less than eager", 25, "GB", _saved),
)  # fmt: skip


def lines(rows: Sequence[Row]) -> list[str]:
    """One line for each goal."""
    return [goal.line(rows) for goal in GOALS]
