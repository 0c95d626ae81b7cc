"""How long a run takes: the products of a step, and what is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colaworld.recipes import recipe
from colaworld.runs import duration
from colaworld.runs.build import build_model
from colaworld.runs.duration import SHARES, check_time, step_operations

CPU = torch.device("cpu")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "training_cpu.json"
ROWS = [row for row in json.loads(RESULTS.read_text()) if row["shape"] == "nano.cola.joint"]


@pytest.fixture(scope="module")
def nano():
    config = recipe("nano.cola")
    return config, build_model(config, weights=False)


def test_products_are_near_those_that_were_counted(nano) -> None:
    config, model = nano
    joint = config.scheduled()[-1]
    found = step_operations(config, model, joint, height=28, width=36)
    assert len(ROWS) == 4
    assert 0.85 < found / ROWS[0]["flops"] < 1.15
    assert all(SHARES[0] < row["mfu"] < SHARES[1] for row in ROWS)


def test_attention_grows_with_the_square_of_a_frame(nano) -> None:
    """By hand: 12 operations a token, key and channel in each of 4 + 2 spatial blocks, the rest linear."""
    config, model = nano
    joint = config.scheduled()[-1]
    small, large = (
        step_operations(config, model, joint, height=s * 28, width=s * 36) for s in (1, 8)
    )
    tokens, keys = 2016 * 64, 63 * 64
    spatial = 12 * tokens * keys * (4 * 96 + 2 * 64)
    before = 12 * 2016 * 63 * (4 * 96 + 2 * 64)
    assert (large - spatial) / (small - before) == pytest.approx(64, rel=0.02)


def test_only_what_a_phase_runs_through_counts(nano) -> None:
    config, model = nano
    warmup, joint = config.scheduled()
    size = {"height": 28, "width": 36}
    both = [step_operations(config, model, phase, **size) for phase in (warmup, joint)]
    assert 0.65 < both[0] / both[1] < 0.8  # no gradient of the video model's weights
    again = replace(config, training=replace(config.training, recompute="blocks"))
    assert 1.3 < step_operations(again, model, joint, **size) / both[1] < 1.34
    halves = replace(config, training=replace(config.training, batch_size=4, accumulate=4))
    assert step_operations(halves, model, joint, **size) == 2 * both[1]
    stages = recipe("nano.two_stage")
    model = build_model(stages, weights=False)
    lam, world = (step_operations(stages, model, phase, **size) for phase in stages.scheduled())
    assert lam < world / 2


def test_the_whole_run_and_a_step_are_said(nano, caplog) -> None:
    config, model = nano
    phases = [replace(p, steps=n) for p, n in zip(config.scheduled(), (100, 300), strict=True)]
    seconds = [step_operations(config, model, p, height=28, width=36) / 1e10 for p in phases]
    said = check_time(config, model, phases, height=28, width=36, device=CPU, rate=1e10)
    whole = 100 * seconds[0] + 300 * seconds[1]
    low, high = (f"{whole / share / 60:.0f}" for share in reversed(SHARES))
    assert said.startswith(f"about {low} to {high} minutes for 400 steps at most (")
    assert " s a step of joint), a guess; the first rows tell more" in said
    later = {"phase": 1, "step": 299}
    said = check_time(
        config, model, phases, height=28, width=36, device=CPU, rate=1e10, progress=later
    )
    assert " s for 1 steps (" in said and not caplog.records
    late = {"phase": 1, "step": 300}
    assert check_time(config, model, phases, height=28, width=36, device=CPU, progress=late) is None
    gpu = torch.device("cuda")
    assert check_time(config, model, phases, height=28, width=36, device=gpu) is None


def test_steps_of_minutes_are_warned_of_with_what_helps(nano, caplog) -> None:
    config, model = nano
    said = check_time(
        config, model, config.scheduled(), height=240, width=320, device=CPU, rate=1e11
    )
    assert "hours for " in said or "days for " in said
    assert (
        "a step of joint takes about 1.2 to 3.9 minutes, by a guess: frames are 240x320"
        in caplog.text
    )
    assert (
        "--data.height 52 --data.width 72" in caplog.text and "--training.batch-size" in caplog.text
    )


def test_the_machine_is_tried(monkeypatch) -> None:
    calls, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: calls.append(a.dtype) or mm(a, b))
    assert 1e7 < duration.matmul_rate() < 1e15
    assert 1e7 < duration.matmul_rate(bf16=True) < 1e15
    assert {*calls} == {torch.float32, torch.bfloat16} and len(calls) >= 4
