"""What the GPU kernels are meant to reach, beside what the rows of a run say they reached.

Ratios are of medians of one run. A backward pass alone is the time of both less that of the forward.
Not here: measuring (the other files).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..rows import Row

OURS = ("cuda", "triton")
TEMPORAL, BLOCK = "stdit3-xl.b8.temporal", "stdit3-xl.b8.block"


@dataclass(frozen=True)
class Goal:
    """One number and the least (or most) it should be."""

    what: str
    wanted: float
    unit: str
    reached: Callable[[Sequence[Row]], float | None]  # None: a row is missing
    at_most: bool = False

    def line(self, rows: Sequence[Row]) -> str:
        """`what: reached 3.2 x (goal at least 3 x): yes`."""
        value = self.reached(rows)
        side = "at most" if self.at_most else "at least"
        goal = f"(goal {side} {self.wanted:g} {self.unit})"
        if value is None:
            return f"{self.what}: not measured {goal}"
        met = value <= self.wanted if self.at_most else value >= self.wanted
        return f"{self.what}: {value:.3g} {self.unit} {goal}: {'yes' if met else 'NO'}"


def _one(rows: Sequence[Row], **wanted: str) -> Row | None:
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def _ms(rows: Sequence[Row], impl: str, **wanted: str) -> float | None:
    """Median of an implementation; in mode "bwd" that of both passes less the forward."""
    if wanted["mode"] != "bwd":
        row = _one(rows, impl=impl, **wanted)
        return None if row is None else row["p50_ms"]
    both, forward = (_ms(rows, impl, **{**wanted, "mode": m}) for m in ("fwd_bwd", "fwd"))
    return None if both is None or forward is None else max(both - forward, 1e-9)


def fastest(rows: Sequence[Row], impls: Sequence[str], **wanted: str) -> float | None:
    """The smallest median among the implementations that have one."""
    times = [t for name in impls if (t := _ms(rows, name, **wanted)) is not None]
    return min(times, default=None)


def _over(rivals: Sequence[str], ours: Sequence[str], **wanted: str) -> Callable:
    def reached(rows: Sequence[Row]) -> float | None:
        theirs, best = fastest(rows, rivals, **wanted), fastest(rows, ours, **wanted)
        return None if theirs is None or best is None else theirs / best

    return reached


def _of_copy(op: str, shape: str, mode: str) -> Callable:
    """Per cent of the measured copy; bytes of a backward are those of both less the forward's."""

    def reached(rows: Sequence[Row]) -> float | None:
        copy = _one(rows, suite="machine", op="copy", dtype="bfloat16")
        where = {"op": op, "shape": shape, "dtype": "bfloat16"}
        best = fastest(rows, OURS, mode=mode, **where)
        moved = {m: _one(rows, mode=m, **where) for m in ("fwd", "fwd_bwd")}
        if copy is None or best is None or not all(moved.values()):
            return None
        size = moved["fwd"]["bytes"]
        size = size if mode == "fwd" else moved["fwd_bwd"]["bytes"] - size
        return 100 * size / best / 1e6 / copy["gb_s"]

    return reached


# The joint step, with as many clips as everybody had memory for.
_CLIPS = (8, 4, 2, 1)


def _step(rivals: Sequence[str]) -> Callable:
    def reached(rows: Sequence[Row]) -> float | None:
        for clips in _CLIPS:
            where = {"op": "step", "shape": f"xl.b{clips}.joint", "mode": "fwd_bwd"}
            value = _over(rivals, ("default", "default+compile"), **where)(rows)
            if value is not None:
                return value
        return None

    return reached


def _saved(rows: Sequence[Row]) -> float | None:
    """GB of activations that a step of 8 clips of ours holds less than the eager one; where eager did
    not fit, from fewer clips, since activations go with their number."""
    for clips in _CLIPS:
        theirs, ours = (
            _one(rows, op="step", shape=f"xl.b{clips}.joint", impl=impl)
            for impl in ("eager", "default")
        )
        rows_ = (theirs, ours)
        if all(row is not None and row["activation_mb"] is not None for row in rows_):
            return (theirs["activation_mb"] - ours["activation_mb"]) / 1024 * 8 / clips
    return None


def _microseconds(rows: Sequence[Row]) -> float | None:
    where = {"op": "vector_quantize", "shape": "lam.codes", "mode": "fwd"}
    best = fastest(rows, OURS, **where)
    return None if best is None else 1e3 * best


def _bounded(rows: Sequence[Row]) -> float | None:
    where = {"op": "vector_quantize", "shape": "bounded.codes", "mode": "fwd"}
    peaks = [r["peak_mb"] for name in OURS if (r := _one(rows, impl=name, **where))]
    return min(peaks, default=None)


_TEMPORAL = {"op": "st_attention", "shape": TEMPORAL, "dtype": "bfloat16"}
# Without compile of the eager reference, which holds torch's attention inside, nobody else is left.
_RIVALS = ("compile", "sdpa:flash", "sdpa:efficient", "sdpa:cudnn")
GOALS = (
    Goal(
        "temporal attention over compile and the best SDPA, both passes", 3.0, "x",
        _over(_RIVALS, OURS, mode="fwd_bwd", **_TEMPORAL),
    ),
    Goal("temporal attention forward, share of the copy", 75, "%", _of_copy("st_attention", TEMPORAL, "fwd")),
    Goal("temporal attention backward, share of the copy", 60, "%", _of_copy("st_attention", TEMPORAL, "bwd")),
    Goal(
        "modulation backward over compile", 1.4, "x",
        _over(("compile",), OURS, op="adaln", shape=BLOCK, dtype="bfloat16", mode="bwd"),
    ),
    Goal("quantisation at the size of a batch", 25, "us", _microseconds, at_most=True),
    Goal("quantisation at N 1M K 8192, memory beside its inputs", 256, "MB", _bounded, at_most=True),
    Goal("joint step over compile", 1.15, "x", _step(("compile",))),
    Goal("joint step over eager", 1.6, "x", _step(("eager",))),
    Goal("activations of a joint step of 8 clips, less than eager", 25, "GB", _saved),
)  # fmt: skip


def lines(rows: Sequence[Row]) -> list[str]:
    """One line for each goal."""
    return [goal.line(rows) for goal in GOALS]
