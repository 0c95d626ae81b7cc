"""A step that cannot fit is refused before it is tried, and what helps is named."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from colaworld.config import ConfigError
from colaworld.recipes import recipe
from colaworld.runs import fits
from colaworld.runs.build import build_model
from colaworld.runs.memory import GIB, PhaseMemory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def nano():
    config = recipe("nano.cola")
    return config, build_model(config, weights=False)


def test_a_step_of_the_demo_needs_no_plan(nano, monkeypatch, caplog) -> None:
    monkeypatch.setattr(fits, "plan_memory", None)
    said = fits.check_memory(*nano, height=28, width=36, device=CPU, memory=4 * GIB)
    assert said == "63 tokens a frame, 2016 in a pass" and not caplog.records


def test_frames_as_recorded_are_refused_where_they_do_not_fit(nano, monkeypatch, caplog) -> None:
    asked = []

    def plan(config, *, device):
        asked.append((config.data.height, config.data.width, device))
        return [PhaseMemory("joint", 0, 0, 0, 0, 14 * GIB, 0), PhaseMemory("w", 9, 0, 0, 0, 0, 0)]

    monkeypatch.setattr(fits, "plan_memory", plan)
    size = {"height": 240, "width": 320, "device": CPU}
    with pytest.raises(
        ConfigError, match=r"a step of joint needs about 14.0 GiB, cpu has 8.0:"
    ) as it:
        fits.check_memory(*nano, **size, memory=8 * GIB)
    assert "frames of 240x320 px are 4800 tokens a frame, 153600 in a pass" in str(it.value)
    assert "(--data.height 52 --data.width 72)" in str(it.value) and "--anyway" in str(it.value)
    assert asked == [(240, 320, "cpu")]
    with caplog.at_level(logging.WARNING):
        said = fits.check_memory(*nano, **size, memory=16 * GIB)
    assert said.endswith("153600 in a pass; a step of joint needs about 14.0 GiB of 16.0")
    assert "a step may take minutes on a CPU" in caplog.text
    assert "--data.height 52 --data.width 72" in caplog.text


def test_a_part_of_ones_own_that_cannot_be_traced_is_trained_all_the_same(
    nano, monkeypatch, caplog
) -> None:
    def plan(config, *, device):
        raise RuntimeError("looks at values")

    monkeypatch.setattr(fits, "plan_memory", plan)
    said = fits.check_memory(*nano, height=28, width=36, device=CPU, memory=GIB // 64)
    assert said == "63 tokens a frame, 2016 in a pass"
    assert "is not known (RuntimeError: looks at values)" in caplog.text


def test_the_rough_guess_is_near_the_plan(nano) -> None:
    """Within a factor of 2, so that a quarter of the memory leaves room."""
    config, model = nano
    config = replace(config, data=replace(config.data, height=28, width=36))
    (plan,) = fits.plan_memory(config, phases=("joint",), device="cpu")
    guess = 4 * fits._FLOATS * 2016 * model.backbone.width * model.backbone.modulated_blocks
    assert 0.5 < guess / plan.activations < 2


def test_the_machine_says_what_it_has() -> None:
    assert 2**28 < fits.machine_memory(CPU) < 2**46
