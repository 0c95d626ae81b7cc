"""The joint step at the paper's size, at sizes of a test: one model, every way of running it."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import run, training
from benchmarks.case import Request
from benchmarks.gpu import stages
from benchmarks.gpu.cases import joint_config
from benchmarks.models import VARIANTS
from colaworld.training.blocks import blocks


@pytest.fixture
def config():
    return joint_config(8, dry=True)


def cases(config, **more) -> dict:
    request = Request(samples=1, measured_tflops={"float32": 2.0}, **more)
    return {next(iter(c.providers)): c for c in training.joint(config, request, "float32")}


def test_a_row_for_each_way_that_needs_no_compiler(config) -> None:
    listed = cases(config)
    assert tuple(listed) == training.ORDER and training.ORDER[0] == "default+compile"
    rows = []
    for name in ("default", "eager"):
        found = run.measure(listed[name], Request(samples=1))
        assert found.failed == []
        rows += found.rows
    assert [row["impl"] for row in rows] == ["default", "eager"]
    assert rows[0]["flops"] == rows[1]["flops"] > 0
    assert rows[0]["mfu"] == pytest.approx(rows[0]["flops"] / rows[0]["p50_ms"] / 1e9 / 2, rel=1e-3)
    assert rows[0]["sizes"] == {"B": 2, "T": 3, "pairs": 1}


def test_a_loss_that_is_not_the_reference_s_is_a_failure(config, monkeypatch) -> None:
    right = training.Step.loss_of

    def wrong(self, batch):
        return right(self, batch) * (1 if self.variant == VARIANTS["eager"] else 1.5)

    monkeypatch.setattr(training.Step, "loss_of", wrong)
    (failed,) = run.measure(cases(config)["default"], Request(samples=1)).failed
    assert failed.label.endswith("/default") and "the reference's" in failed.reason


def step(config) -> training.Step:
    batch = training.clip_batch(config, "cpu")
    model = training.WorldModel(
        config.model, parts=config.parts(), tokenizer=training.GivenLatents()
    )
    return training.Step(
        config, variant=VARIANTS["eager"], dtype="float32", device="cpu", batches=itertools.repeat(batch),
        model=training.nonzero(model),
    )  # fmt: skip


def test_a_step_reaches_every_part(config) -> None:
    made = step(config)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    made()
    moved = {
        n.partition(".")[0] for n, p in made.model.named_parameters() if (p != before[n]).any()
    }
    assert moved == {"idm", "quantizer", "conditioner", "backbone"}


def test_one_way_after_another_leaves_nothing_behind(config) -> None:
    made = step(config)
    assert all("forward" not in block.__dict__ for block in blocks(made.model).values())
    made.use(VARIANTS["compile"])
    assert all("forward" in block.__dict__ for block in blocks(made.model).values())
    made.use(VARIANTS["default"])
    assert all("forward" not in block.__dict__ for block in blocks(made.model).values())


def test_a_call_runs_in_its_own_way_verified_or_not(config, monkeypatch) -> None:
    used = []
    right = training.Step.__call__

    def call(self):
        used.append(self.variant)
        return right(self)

    monkeypatch.setattr(training.Step, "__call__", call)
    for name, case in cases(config).items():
        if "compile" not in name:
            stages.once(case, name)
            assert used.pop() == VARIANTS[name]


def test_operations_are_counted_on_one_clip_and_stay_the_same(config) -> None:
    made = step(config)
    found = made.flops()
    made()
    assert made.flops() == found and found % 2 == 0
    assert all(parameter.grad is None for parameter in made.model.parameters())
    loss = made.loss_of(training.clip_batch(config, "cpu"))
    assert loss == made.loss_of(training.clip_batch(config, "cpu")) and torch.isfinite(
        torch.tensor(loss)
    )


@pytest.mark.slow
def test_every_way_gives_the_reference_s_loss(config) -> None:
    for name, case in cases(config).items():
        assert case.verify(name) is None, name
