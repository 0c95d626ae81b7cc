"""Goals: numbers by hand, and that each is about something that is measured."""

from __future__ import annotations

import pytest

from benchmarks import shapes, training
from benchmarks.gpu import cases, goals
from benchmarks.ops import DEFINITIONS

GOALS, COMPILED = goals.table()
TEMPORAL = {"op": "st_attention", "shape": "stdit3-xl.b8.temporal", "dtype": "bfloat16"}
MODULATION = {"op": "adaln", "shape": "stdit3-xl.b8.autocast", "dtype": "bfloat16"}


def goal(what: str) -> goals.Goal:
    (found,) = [g for g in GOALS if what in g.what]
    return found


def row(impl: str, mode: str, p50: float, where=TEMPORAL, **fields) -> dict:
    return {**where, "impl": impl, "mode": mode, "p50_ms": p50, "bytes": 4000} | fields


def test_ratios_and_shares_by_hand() -> None:
    rows = [
        {"suite": "machine", "op": "copy", "shape": "roof", "dtype": "bfloat16", "gb_s": 4.0},
        row("cuda", "fwd", 0.002),
        row("triton", "fwd", 0.004),
        row("cuda", "fwd_bwd", 0.005, bytes=12000),
        row("triton", "fwd_bwd", 0.009, bytes=12000),
        row("compile", "fwd_bwd", 0.02, bytes=12000),
        row("compile:cudnn", "fwd_bwd", 0.015, bytes=12000),
        row("sdpa:flash", "fwd_bwd", 0.001, bytes=12000),  # eager around it: no rival
    ]
    assert goal("both passes").reached(rows) == pytest.approx(3.0)
    assert goal("forward, share").reached(rows) == pytest.approx(50.0)  # 4 kB in 2 us is 2 GB/s
    # Backward: 8 kB in 3 us (cuda) is 2.67 GB/s of 4.
    assert goal("attention backward").reached(rows) == pytest.approx(100 * 8 / 3 / 4)
    assert goal("both passes").line(rows).endswith("(goal at least 3 x): yes")
    assert goal("forward, share").line(rows).endswith("NO")
    assert "not measured" in goal("step over eager").line(rows)
    assert len(goals.lines(rows)) == len(GOALS)


def test_a_backward_alone_is_both_less_the_forward() -> None:
    of = MODULATION
    rows = [row("triton", "fwd", 1.0, of), row("triton", "fwd_bwd", 3.0, of)]
    rows += [row("compile", "fwd", 1.0, of), row("compile", "fwd_bwd", 4.0, of)]
    assert goal("modulation backward").reached(rows) == 1.5


def test_a_step_of_28_pairs_goes_before_one_of_8() -> None:
    def step(pairs: int, impl: str, p50: float, held: float, mfu: float) -> dict:
        where = {
            "op": "step",
            "shape": f"xl{pairs}.b8.joint",
            "dtype": "bfloat16",
            "sizes": {"pairs": pairs},
        }
        return row(impl, "fwd_bwd", p50, where, activation_mb=held, mfu=mfu)

    few = [step(8, "eager", 6.0, 30_720, 0.2), step(8, "default", 4.0, 20_480, 0.3)]
    few += [step(8, "default+compile", 3.0, 20_480, 0.4), step(8, "compile", 4.5, 25_000, 0.25)]
    assert goal("over eager").reached(few) == 2.0 and goal("step over compile").reached(few) == 1.5
    assert goal("MFU").reached(few) == pytest.approx(40.0)
    assert goal("less than eager").reached(few) == pytest.approx(10 * 28 / 8)  # 10 GB at 8 pairs
    more = [*few, step(28, "default", 10.0, 51_200, 0.5), step(28, "compile", 12.0, 0, 0.4)]
    assert goal("step over compile").reached(more) == 1.2
    assert goal("over eager").reached(more) == 2.0  # eager did not fit: the 8 pairs stand
    assert goal("MFU").reached(more) == pytest.approx(50.0)


def test_small_things_by_hand() -> None:
    step = {"op": "codebook_step", "shape": "lam.codes", "dtype": "float32"}
    assert goal("codebook's step").line([row("cuda", "fwd", 0.02, step)]).endswith("yes")
    large = {"op": "vector_quantize", "shape": "bounded.codes", "dtype": "float32"}
    rows = [
        row("cuda", "fwd", 1, large, peak_mb=300.0),
        row("triton", "fwd", 1, large, peak_mb=9.0),
    ]
    assert goal("memory beside").reached(rows) == 9.0


def test_a_goal_names_sizes_that_are_measured() -> None:
    measured = {(op, shape) for op, shape, _ in cases.GOALS}
    measured |= {("step", f"xl{pairs}.b8.joint") for pairs in (8, 28)}
    for one in GOALS:
        assert {(one.op, shape) for shape in one.shapes} <= measured, one.what
        assert (one.at_least is None) != (one.at_most is None)
        assert set(one.over) <= {*COMPILED, "eager"}
    for op, name, _ in (*cases.GOALS, *cases.BASELINES, *cases.TUNED):
        assert DEFINITIONS[op].shape(name)
    config = training.xl(28)
    assert config.model.backbone.depth == 28 and config.training.batch_size == 8
    assert config.model.backbone.width == shapes.XL_WIDTH
    assert config.model.idm.dim == shapes.LAM_DIM
    heads = shapes.XL_HEADS
    assert (config.model.backbone.heads, heads["D"]) == (heads["H"], shapes.XL_WIDTH // heads["H"])
