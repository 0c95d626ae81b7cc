"""The suites end to end at the smallest sizes: rows are whole, results judged, nothing invented."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace

import pytest
import torch

from colaworld import ops
from colaworld.cli.bench import suite
from colaworld.runs.build import build_trainer

case, runs, rows, shapes = suite("case"), suite("run"), suite("rows"), suite("shapes")
DEFINITIONS = suite("ops").DEFINITIONS


def measured(room, tiny_request, passing, *, only=("nano",), impls=("eager", "default", "cpu")):
    found = runs.run([room], tiny_request, only=only, impls=impls)
    assert passing, "the gate was asked"
    for row in found.rows:
        assert list(row)[: len(rows.FIELDS) + 1] == ["suite", *rows.FIELDS]
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
    json.dumps(found.rows)
    assert [r["op"] for r in found.rows[:2]] == ["copy", "matmul"]
    return found


def test_ops(tiny_request, passing) -> None:
    found = measured(
        "ops", tiny_request, passing, only=("nano.temporal", "nano.block/", "nano.codes")
    )
    seen = {(r["op"], r["impl"], r["mode"]) for r in found.rows[2:]}
    for op in ("st_attention", "adaln", "vector_quantize", "code_statistics"):
        assert {(op, "eager", "fwd"), (op, "eager", "fwd_bwd")} <= seen
        if "cpu" in ops.implementations(op) and ops.build_info() is not None:
            assert (op, "cpu", "fwd_bwd") in seen
    row = next(r for r in found.rows if r["op"] == "vector_quantize" and r["mode"] == "fwd")
    assert row["sizes"] == {"N": 12, "K": 8, "d": 8}
    moved = (2 * 12 * 8 + 8 * 8) * 4 + 12 * 8
    assert row["bytes"] == moved
    assert row["gb_s"] == pytest.approx(moved / row["p50_ms"] / 1e6, rel=1e-3)


def test_every_op_row_answers_to_float64(tiny_request) -> None:
    """A verify that says yes to everything would prove nothing: wrong results are found."""
    for d in DEFINITIONS.values():
        if not d.shapes:
            continue

        def wrong(inputs, call=d.call):
            out = call(inputs)
            name = next(n for n, t in out.items() if t.is_floating_point())
            return out | {name: out[name] + 0.01}

        liar = replace(d, baselines={"liar": lambda shape, mode, wrong=wrong: wrong})
        config = shapes.run_config("nano.cola", tiny_request.overrides)
        for toy in liar.cases([*d.shapes(config), d.tiny][:1], tiny_request):
            assert toy.verify("eager") is None
            assert toy.verify("liar"), toy.label


def test_a_wrong_gradient_is_found(tiny_request) -> None:
    adaln = DEFINITIONS["adaln"]

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad / 2

    def wrong(inputs):
        return adaln.call(inputs | {"gate": Halved.apply(inputs["gate"])})

    liar = replace(adaln, baselines={"liar": lambda shape, mode: wrong})
    shape = adaln.shapes(shapes.run_config("nano.cola", tiny_request.overrides))[0]
    forward, backward = liar.cases([shape], tiny_request)
    assert forward.verify("liar") is None
    assert "d gate is off by 5.00e-01" in backward.verify("liar")


def test_an_op_that_is_not_there_is_named(tiny_request, monkeypatch) -> None:
    monkeypatch.delattr(ops, "adaln")
    (skipped,) = DEFINITIONS["adaln"].cases([], tiny_request)
    assert (skipped.label, skipped.reason) == ("adaln", "this version of colaworld has no op adaln")


def test_a_package_that_is_not_there_is_named(tiny_request, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    (toy, *_), _ = runs.listed(["ops"], tiny_request, only=["vector_quantize/nano.codes"])
    ((_, found),) = runs.ready(toy, ["vector-quantize-pytorch"])
    assert "pip install 'colaworld[bench]'" in found.reason


def test_heavy_shapes_wait_to_be_named(tiny_request) -> None:
    cases, skipped = runs.listed(["ops"], tiny_request, only=["vector_quantize"])
    assert "bounded.codes" not in {c.shape for c in cases}
    assert any("--only bounded.codes" in s.reason for s in skipped)
    cases, _ = runs.listed(["ops"], tiny_request, only=["bounded.codes"])
    assert {c.shape for c in cases} == {"bounded.codes"}
    with pytest.raises(ValueError, match=r"--only nothing: names nothing; .*vector_quantize/"):
        runs.listed(["ops"], tiny_request, only=["nothing"])
    with pytest.raises(ValueError, match="no suite 'op'"):
        runs.listed(["op"], tiny_request)


def test_models(tiny_request, passing) -> None:
    found = measured("models", tiny_request, passing)
    assert {(r["op"], r["impl"]) for r in found.rows[2:]} == {
        (op, impl) for op in ("idm", "stdit3_pair", "world_model") for impl in ("eager", "default")
    }
    for row in found.rows[2:]:
        assert row["flops"] > 0 and row["rates"]["clips_s"] > 0


def test_models_are_judged() -> None:
    differs = suite("models").differs
    exact = {"out": torch.ones(4), "d a": torch.ones(4), "d b": torch.zeros(4)}
    assert differs(exact, exact, 1e-6) is None
    assert "out is off by 1.00e-02" in differs(exact | {"out": torch.full((4,), 1.01)}, exact, 1e-3)
    assert "d b is off" in differs(exact | {"d b": torch.full((4,), 0.1)}, exact, 1e-3)
    assert "no d b" in differs({k: exact[k] for k in ("out", "d a")}, exact, 1e-3)
    assert differs(exact | {"d a": torch.full((4,), torch.nan)}, exact, 1e-3)


def test_training(tiny_request, passing) -> None:
    found = measured("training", replace(tiny_request, peak_tflops=2.0), passing, only=())
    eager, default = found.rows[2:]
    assert (eager["impl"], default["impl"]) == ("eager", "default")
    for row in (eager, default):
        split = row["split_ms"]
        assert set(split) == set(suite("training").PARTS)
        assert all(split[part] > 0 for part in split)
        assert row["peak_tflops"] == 2.0
        assert row["mfu"] == pytest.approx(row["flops"] / row["p50_ms"] / 1e9 / 2, rel=1e-3)
        # 2 clips of 4 frames of 4 x 4 tokens
        assert row["rates"]["tokens_s"] == pytest.approx(64 * row["rates"]["samples_s"], rel=1e-2)


def test_the_step_is_that_of_the_loop(tiny, tmp_path) -> None:
    """Losses of the benchmark's step and of the Trainer, which it is made after, are equal."""
    training = suite("training")
    config = shapes.run_config("nano.naive_joint", tiny | {"training": {**tiny["training"]}})
    config = training.on_data(config, None)
    config = replace(config, training=replace(config.training, max_steps=3))
    build_trainer(config, out=tmp_path / "run").run()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    expected = [json.loads(line)["loss"] for line in lines]
    variant = suite("models").VARIANTS["default"]
    step = training.Step(config, variant=variant, dtype="float32", device="cpu")
    try:
        assert [step() for _ in range(3)] == pytest.approx(expected, rel=1e-6)
    finally:
        step.close()


def test_data(tiny_request, passing) -> None:
    found = measured("data", tiny_request, passing, only=("loader",), impls=())
    assert {(r["shape"], r["impl"]) for r in found.rows[2:]} == {
        (shape, impl)
        for shape in ("nano.first", "nano.steady")
        for impl in ("threads:0", "threads:1")
    }
    for row in found.rows[2:]:
        assert row["headroom"] == pytest.approx(
            row["rates"]["clips_s"] / row["step_clips_s"], rel=1e-2
        )


def test_rollout(tiny_request, passing) -> None:
    found = measured(
        "rollout", tiny_request, passing, only=("steps3.",), impls=("eager", "default")
    )
    assert {(r["shape"], r["impl"]) for r in found.rows[2:]} == {
        (f"nano.steps3.batch{b}", impl) for b in (1, 2) for impl in ("eager", "default")
    }
    for row in found.rows[2:]:
        frames = row["sizes"]["B"] * 1 / row["p50_ms"] * 1e3
        assert row["rates"]["frames_s"] == pytest.approx(frames, rel=1e-2)


@pytest.mark.slow
def test_one_more_frame_and_many_candidates(tiny_request, passing, monkeypatch) -> None:
    rollout, config = suite("rollout"), shapes.run_config("nano.cola", tiny_request.overrides)
    found = [shape for make, shape in rollout.listed(config) if make is rollout.candidates]
    assert all(s.heavy and s.sizes["n"] == 64 and s.sizes["T"] == 10 for s in found)
    monkeypatch.setattr(rollout, "CANDIDATES", 2)
    monkeypatch.setattr(rollout, "HORIZON", 3)
    found = measured(
        "rollout", tiny_request, passing, only=("behind2/", "behind16/", "nano.slides"), impls=()
    )
    assert {(r["shape"], r["impl"]) for r in found.rows[2:]} == {
        *itertools.product(("nano.behind2", "nano.behind16"), ("recomputed", "exact", "keep")),
        *itertools.product(("nano.slides",), ("alone", "batch", "shared")),
    }
    counts = {r["shape"]: r["rates"]["frames_s"] * r["p50_ms"] / 1e3 for r in found.rows[2:]}
    assert counts == pytest.approx(
        {"nano.behind2": 1, "nano.behind16": 1, "nano.slides": 6}, rel=1e-2
    )


def test_planning(tiny_request, passing, monkeypatch) -> None:
    planning = suite("planning")
    found = list(planning.listed(shapes.run_config("nano.cola", tiny_request.overrides)))
    assert [(s.sizes["n"], s.sizes["h"], s.heavy) for s in found] == [
        *((50, 2, False), (200, 2, True), (50, 10, True), (200, 10, True))
    ]
    monkeypatch.setattr(planning, "CANDIDATES", (3, 7))
    measured_rows = measured("planning", tiny_request, passing, only=("nano.n3",), impls=()).rows[
        2:
    ]
    assert [(r["shape"], r["impl"]) for r in measured_rows] == [
        ("nano.n3", impl) for impl in ("plain", "one-by-one", "shared")
    ]
    for row in measured_rows:
        assert row["rates"]["calls_s"] == pytest.approx(6 / row["p50_ms"] * 1e3, rel=1e-2)
        assert row["s_per_decision"] == pytest.approx(row["p50_ms"] / 1e3, rel=1e-2)


def test_planning_is_judged_and_takes_few_samples(tiny_request, monkeypatch) -> None:
    """Another noise is another world: its costs are not those of the plain loop."""
    planning = suite("planning")
    monkeypatch.setattr(planning, "CANDIDATES", (3,))
    (one,), _ = runs.listed(["planning"], tiny_request, only=["nano.n3"])
    assert one.verify("shared") is None and one.verify("one-by-one") is None
    monkeypatch.setattr(planning.Setup, "noise", lambda self: torch.Generator().manual_seed(9))
    assert "cost is off by" in one.verify("shared")
    monkeypatch.undo()
    one = replace(one, providers={"shared": lambda: [lambda: None]}, verify=None)
    (row,) = runs.measure(one, replace(tiny_request, samples=20)).rows
    assert row["samples"] == planning.MOST


def test_a_video_model_plans_nothing(tiny_request) -> None:
    request = replace(tiny_request, recipe="nano.pretrain", overrides={})
    cases, (skipped,) = runs.listed(["planning"], request)
    assert not cases and "without actions plans nothing" in skipped.reason


def test_an_implementation_nobody_has_is_an_error(tiny_request, passing) -> None:
    with pytest.raises(ValueError, match=r"--impl fast: nobody of that name; have .*eager"):
        runs.run(["ops"], tiny_request, only=["nano.codes"], impls=["fast"])


def test_pytest_benchmark_runs_the_same_definitions(passing, tmp_path, monkeypatch) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # in a worker it would time nothing
    gate = suite("gate")
    root = gate.repository()
    seen: list[str] = []

    class Collect:
        def pytest_collection_modifyitems(self, items) -> None:
            seen.extend(item.callspec.id for item in items)

    options = ["-q", "-p", "no:cacheprovider", "--bench-rounds", "1", "--rootdir", str(root)]
    options += ["-k", "vector_quantize and nano.codes and fwd_bwd and eager", "-m", ""]
    target = tmp_path / "out.json"
    options += ["--benchmark-json", str(target), "--import-mode=importlib"]
    status = pytest.main([str(root / "benchmarks"), *options], plugins=[Collect()])
    assert status == 0
    cases, _ = runs.listed(case.SUITES, case.Request(samples=1))
    expected = {f"{c.label}/{impl}" for c in cases for impl in c.providers}
    assert seen and set(seen) <= expected
    (entry,) = json.loads(target.read_text())["benchmarks"]
    assert entry["extra_info"]["op"] == "vector_quantize" and entry["extra_info"]["impl"] == "eager"
    assert passing == [DEFINITIONS["vector_quantize"].tests]
