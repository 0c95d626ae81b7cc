"""The stages for a GPU, run on the CPU at tiny sizes: their order, rows, and what they do about errors."""

from __future__ import annotations

import pytest
import torch

from benchmarks import rows as files
from benchmarks import run, shapes, timing
from benchmarks.card import attention, ceilings, generator, goals, smallest, stage
from benchmarks.card import ops as card_ops
from benchmarks.card.joint import JointConfig, Step
from benchmarks.case import Case, Skipped, Unavailable
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.conditioning import ConditionerConfig
from colaworld.models.latent_action.idm import IDMConfig
from colaworld.models.latent_action.quantizers import QuantizerConfig

CPU = stage.Asked(device="cpu", samples=1)


def point(label: str, *found, error: Exception | None = None, seconds: float = 0.0) -> stage.Point:
    def measure():
        if error is not None:
            raise error
        return found

    return stage.Point(label, measure, seconds)


def made(impl: str, p50: float = 1.0, **fields):
    sizes = {"n": 1}
    row = stage.row(
        "card", "launch", impl, shape="one", sizes=sizes, dtype="float32", mode="fwd",
        times=(p50, p50, p50),
    )  # fmt: skip
    return row | fields


def test_a_point_that_fails_is_told_and_the_next_one_runs() -> None:
    points = [
        point("good", made("a")),
        point("bad", error=ValueError("no such thing\nand more")),
        point("absent", error=Unavailable("not here")),
        point("full", error=torch.OutOfMemoryError("too much")),
        point("long", made("b"), seconds=1e6),
        point("last", made("c")),
    ]
    found = list(stage.found(points, CPU))
    assert [type(one) for one in found] == [dict, stage.Wrong, Skipped, Skipped, Skipped, dict]
    assert found[1].reason == "ValueError: no such thing"
    assert found[2].reason == "not here" and found[3].reason.startswith("out of memory")
    assert found[4].label == "long" and "are left" in found[4].reason


def test_the_rows_of_a_stage_are_those_of_the_benchmarks(tmp_path, capsys) -> None:
    out = tmp_path / "new" / "rows.json"
    argv = ["--out", str(out), "--device", "cpu", "--samples", "1"]
    assert stage.main(lambda asked: [point("good", made("a"))], "About.", argv) == 0
    (row,) = files.read(out)
    assert row["impl"] == "a" and list(row)[1:] == list(files.FIELDS)
    bad = [point("good", made("a")), point("bad", error=RuntimeError("broken"))]
    assert stage.main(lambda asked: bad, "About.", argv) == 1
    said = capsys.readouterr().out
    assert "WRONG bad: RuntimeError: broken" in said and len(files.read(out)) == 1


def test_without_the_device_a_stage_does_nothing(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "rows.json"
    assert stage.main(lambda asked: [], "About.", ["--out", str(out)]) == 2
    assert not out.exists() and "no CUDA device" in capsys.readouterr().out


def case_of(**faults) -> Case:
    def judge(name: str) -> str | None:
        if isinstance(faults[name], Exception):
            raise faults[name]
        return faults[name]

    def provider():
        return [lambda: None]

    return Case(
        suite="ops", op="adaln", shape="x", sizes={"B": 1}, dtype="float32", mode="fwd",
        providers=dict.fromkeys(faults, provider), judge=judge,
    )  # fmt: skip


def test_what_is_wrong_is_left_out_and_the_rest_is_timed() -> None:
    case = case_of(eager=None, cuda="off by one", triton=RuntimeError("x"), layer_norm=None)
    found = list(stage.of_case(case, CPU))
    assert [(one.label, one.reason) for one in found if isinstance(one, stage.Wrong)] == [
        ("adaln/x/float32/fwd/cuda", "its results are wrong: off by one"),
        ("adaln/x/float32/fwd/triton", "RuntimeError: x"),
    ]
    assert [one["impl"] for one in found if isinstance(one, dict)] == ["eager", "layer_norm"]
    case = case_of(flex=RuntimeError("refuses"), cdist=Unavailable("large"), other="wrong")
    assert all(isinstance(one, Skipped) for one in stage.of_case(case, CPU))


def test_the_ceilings_and_the_cost_of_a_launch(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.machine._COPIED", {"cpu": 1 << 12})
    monkeypatch.setattr("benchmarks.machine._SIDE", {"cpu": 8})
    found = list(stage.found(ceilings.points(CPU), CPU))
    assert [(r["suite"], r["op"], r["dtype"]) for r in found] == [
        ("machine", "copy", "bfloat16"), ("machine", "matmul", "bfloat16"),
        ("machine", "copy", "float32"), ("machine", "matmul", "float32"),
        ("card", "launch", "float32"),
    ]  # fmt: skip
    assert 0 < found[-1]["p50_ms"] < 1  # of one kernel, not of the many that were timed


def test_attention_is_judged_against_float64(monkeypatch) -> None:
    tiny = shapes.Shape("tiny", {"N": 3, "n": 5, "H": 2, "D": 8}, "a test")
    names = ("sdpa:math", "sdpa:flash", "sdpa:cudnn")
    case = attention.case(tiny, "fwd_bwd", names, CPU, dtype="float32")
    assert case.flops == 7 * 2 * 3 * 2 * 5 * 5 * 8 and case.bytes_moved == 12 * 3 * 5 * 2 * 8 * 4
    found = list(stage.of_case(case, CPU))
    assert {r["impl"] for r in found if isinstance(r, dict)} >= {"sdpa:math"}
    assert not any(isinstance(one, stage.Wrong) for one in found)
    case = attention.case(tiny, "fwd", ("off",), CPU, dtype="float32")
    right = attention.named
    monkeypatch.setattr(
        attention, "named", lambda name: (lambda q, k, v: v) if name == "off" else right(name)
    )
    assert "out is off by" in case.judge("off")


def test_the_sizes_that_the_goals_are_about() -> None:
    assert [s.name for s in shapes.card_attention()] == [
        "2048x16x72", "128x256x72", "32x1024x72", "16x1280x128",
    ]  # fmt: skip
    assert shapes.card_attention()[-1].sizes["H"] == 12
    labels = [p.label for p in card_ops.points(CPU)]
    assert labels[:2] == [
        "st_attention/stdit3-xl.b8.temporal/bfloat16/fwd",
        "st_attention/stdit3-xl.b8.temporal/bfloat16/fwd_bwd",
    ]
    assert "vector_quantize/bounded.codes/float32/fwd" in labels
    assert len(labels) == 2 * len(shapes.card_ops(quick=False))
    quick = [p.label for p in card_ops.points(stage.Asked(device="cpu", quick=True))]
    assert labels[: len(quick)] == quick
    pair, idm = shapes.card_models()
    assert pair[2].model.backbone.width == 1152 and pair[1].sizes["B"] == 8
    assert idm[2].model.idm == IDMConfig.paper()


TINY = JointConfig(
    backbone=STDiT3Config(depth=1, width=16, heads=2, in_channels=4),
    idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=4, matching=0),
    conditioner=ConditionerConfig(depth=1, heads=2, per_block=False),
    quantizer=QuantizerConfig(codebook_size=4, data_start=False),
    clips=2, frames=3, latent=4, pixels=8,
)  # fmt: skip


def test_a_joint_step_in_every_way_that_needs_no_compiler(monkeypatch) -> None:
    arms = {name: generator.ARMS[name] for name in ("eager", "default")}
    monkeypatch.setattr(generator, "ARMS", arms)
    monkeypatch.setattr(generator, "DTYPE", "float32")
    monkeypatch.setattr(generator, "peak_product", lambda asked: 2.0)
    found = list(generator.joint(CPU, TINY))
    assert [row["impl"] for row in found] == ["eager", "default"]
    first = found[0]
    assert first["flops"] > 0 and first["mfu"] == pytest.approx(first["tflops"] / 2.0, rel=1e-3)
    assert first["sizes"] == {"B": 2, "T": 3, "pairs": 1}


def test_a_step_changes_no_weight_and_reaches_every_part() -> None:
    step = Step(TINY, device="cpu", dtype="float32")
    before = {n: p.detach().clone() for n, p in step.model.named_parameters()}
    arm, batch = generator.ARMS["eager"], step.batch()
    losses = [step("eager", arm, batch) for _ in range(2)]
    assert losses[0] == losses[1]
    gradients = {n: p.grad for n, p in step.model.named_parameters()}
    for name, parameter in step.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    for part in ("idm", "conditioner", "backbone", "quantizer"):
        assert any(
            g is not None and g.abs().sum() > 0 for n, g in gradients.items() if n.startswith(part)
        ), part


def test_a_way_that_is_compiled_leaves_the_others_as_they_were() -> None:
    step = Step(TINY, device="cpu", dtype="float32")
    step.wear("compile", generator.ARMS["compile"])
    compiled = [module._compiled_call_impl for module in step.model.regions()]
    assert all(one is not None for one in compiled)
    step.wear("eager", generator.ARMS["eager"])
    assert all(module._compiled_call_impl is None for module in step.model.regions())
    step.wear("compile", generator.ARMS["compile"])
    again = [module._compiled_call_impl for module in step.model.regions()]
    assert all(a is b for a, b in zip(again, compiled, strict=True))


def test_a_loss_that_is_not_the_reference_s_is_wrong(monkeypatch) -> None:
    monkeypatch.setattr(generator, "DTYPE", "float32")
    arms = {name: generator.ARMS[name] for name in ("eager", "default")}
    monkeypatch.setattr(generator, "ARMS", arms)
    right = Step.__call__
    monkeypatch.setattr(
        Step, "__call__", lambda self, name, *rest: right(self, name, *rest) * (1 + (name != "eager"))
    )  # fmt: skip
    monkeypatch.setattr(generator, "peak_product", lambda asked: 1.0)
    found = list(generator.joint(CPU, TINY))
    (wrong,) = [one for one in found if isinstance(one, stage.Wrong)]
    assert wrong.label.endswith("/default") and "the reference's" in wrong.reason
    assert [row["impl"] for row in found if isinstance(row, dict)] == ["eager"]


def test_what_does_not_fit_is_measured_again_with_half_the_clips(monkeypatch) -> None:
    monkeypatch.setattr(generator, "DTYPE", "float32")
    arms = {name: generator.ARMS[name] for name in ("eager", "default")}
    monkeypatch.setattr(generator, "ARMS", arms)
    monkeypatch.setattr(generator, "peak_product", lambda asked: 1.0)
    right = Step.__call__

    def call(self, name, arm, batch):
        if name == "eager" and self.config.clips > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(self, name, arm, batch)

    monkeypatch.setattr(Step, "__call__", call)
    found = list(generator.joint(CPU, TINY))
    (skipped,) = [one for one in found if isinstance(one, Skipped)]
    assert skipped.label == "step/xl.b2.joint/float32/fwd_bwd/eager"
    rows = [(r["shape"], r["impl"]) for r in found if isinstance(r, dict)]
    assert rows == [
        ("xl.b2.joint", "default"), ("xl.b1.joint", "eager"), ("xl.b1.joint", "default"),
    ]  # fmt: skip


def test_launches_are_kernels_and_not_copies() -> None:
    events = [("kernel", "CUDA"), ("Memset (Device)", "CUDA"), ("Memcpy HtoD", "CUDA")]
    assert timing.count_launches([*events, ("aten::add", "CPU")]) == 2
    assert timing.launches(lambda: None, "cpu") is None


def test_the_smallest_calls_run_every_op(capsys) -> None:
    assert smallest.main(["--device", "cpu"]) == 0
    said = capsys.readouterr().out
    ran = {line.split()[2] for line in said.splitlines() if line.startswith("ran ")}
    if not ran:
        pytest.skip("no fused implementation on this machine")
    assert ran == {"st_attention", "qk_norm_rope", "adaln", "vector_quantize", "code_statistics"}


def goal(what: str) -> goals.Goal:
    return next(g for g in goals.GOALS if what in g.what)


def test_goals_by_hand() -> None:
    def row(impl, mode, p50, **fields):
        base = {"op": "st_attention", "shape": goals.TEMPORAL, "dtype": "bfloat16"}
        return base | {"impl": impl, "mode": mode, "p50_ms": p50, "bytes": 4000} | fields

    rows = [
        {"suite": "machine", "op": "copy", "dtype": "bfloat16", "gb_s": 4.0},
        row("cuda", "fwd", 0.002),
        row("triton", "fwd", 0.004),
        row("cuda", "fwd_bwd", 0.005, bytes=12000),
        row("triton", "fwd_bwd", 0.009, bytes=12000),
        row("compile", "fwd_bwd", 0.02, bytes=12000),
        row("sdpa:cudnn", "fwd_bwd", 0.015, bytes=12000),
    ]
    assert goal("both passes").reached(rows) == pytest.approx(3.0)
    assert goal("forward, share").reached(rows) == pytest.approx(50.0)  # 4 kB in 2 us is 2 GB/s
    # Backward: 8 kB in 3 us (cuda) is 2.67 GB/s of 4.
    assert goal("attention backward").reached(rows) == pytest.approx(100 * 8 / 3 / 4)
    assert "yes" in goal("both passes").line(rows) and "NO" in goal("forward, share").line(rows)
    assert "not measured" in goal("joint step over eager").line(rows)
    steps = [
        {"op": "step", "shape": "xl.b4.joint", "mode": "fwd_bwd", "impl": impl, "p50_ms": p50,
         "activation_mb": held}
        for impl, p50, held in (("eager", 6.0, 60_000), ("default", 4.0, 30_000),
                                ("default+compile", 3.0, 30_000), ("compile", 4.0, 50_000))
    ]  # fmt: skip
    assert goal("over eager").reached(steps) == 2.0
    assert goal("step over compile").reached(steps) == pytest.approx(4 / 3)
    assert goal("less than eager").reached(steps) == pytest.approx(2 * 30_000 / 1024)  # of 4 clips
    nothing = [step | {"activation_mb": None} for step in steps]  # a CPU does not tell
    assert goal("less than eager").reached(nothing) is None
    codes = {"op": "vector_quantize", "shape": "lam.codes", "mode": "fwd", "impl": "cuda"}
    assert goal("of a batch").line([codes | {"p50_ms": 0.02}]).endswith("yes")


def test_a_goal_names_sizes_that_are_measured() -> None:
    measured = {(op, shape) for op, shape, _ in shapes.card_ops(quick=False)}
    assert {("st_attention", goals.TEMPORAL), ("adaln", goals.BLOCK)} <= measured
    assert run.OURS[2:4] == ("triton", "cuda")
