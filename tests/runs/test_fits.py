"""A step that cannot fit is refused before it is tried, and what helps is named."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch

from colaworld.config import ConfigError
from colaworld.recipes import recipe
from colaworld.runs import fits
from colaworld.runs.build import build_model
from colaworld.runs.memory import GIB, PhaseMemory
from colaworld.training.config import ParallelConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def nano():
    config = recipe("nano.cola")
    return config, build_model(config, weights=False)


def test_a_step_of_the_demo_needs_no_plan(nano, monkeypatch, caplog) -> None:
    monkeypatch.setattr(fits, "plan_memory", None)
    said = fits.check_memory(*nano, height=28, width=36, device=CPU, memory=4 * GIB)
    assert said == "63 tokens a frame, 2016 in a pass" and not caplog.records


def test_weights_and_their_moments_count_too(nano, monkeypatch) -> None:
    """Of one clip a pass, nano's leave behind less than its weights take: 2.1 M of 16 bytes."""
    config, model = nano
    config = replace(config, training=replace(config.training, batch_size=1))
    weights = sum(p.numel() for p in model.parameters())
    assert fits.held(model, config.scheduled()) == 16 * weights  # the joint phase trains all
    frozen = weights - sum(p.numel() for p in model.backbone.parameters())
    assert fits.held(model, config.scheduled()[:1]) == 4 * weights + 12 * frozen
    assert fits.held(copy.deepcopy(model).half(), config.scheduled()) == 8 * weights
    asked = []
    made = [PhaseMemory("joint", 0, 0, 0, 0, GIB // 8, 0)]
    monkeypatch.setattr(fits, "plan_memory", lambda *_, **__: asked.append(0) or made)
    activations = 4 * fits._FLOATS * 252 * model.backbone.width * model.backbone.modulated_blocks
    size = {"height": 28, "width": 36, "device": CPU}
    fits.check_memory(config, model, **size, memory=4 * (activations + 17 * weights))
    assert not asked
    fits.check_memory(config, model, **size, memory=4 * (activations + 15 * weights))
    assert asked


def test_a_video_model_in_pieces_needs_less_of_each_process(nano, monkeypatch) -> None:
    config, model = nano
    training = replace(config.training, parallel=ParallelConfig(shard="blocks"))
    config = replace(config, training=training)
    plan = [PhaseMemory("joint", 0, 0, 0, 0, GIB, 0)]
    monkeypatch.setattr(fits, "plan_memory", lambda *_, **__: plan)
    size = {"height": 120, "width": 160, "device": CPU, "memory": 4 * GIB}
    assert "about 1.0 GiB" in fits.check_memory(config, model, **size)
    generator = sum(p.numel() for p in model.backbone.parameters())
    plan[0] = PhaseMemory("joint", 16 * generator, 0, 0, 0, 4 * GIB - 8 * generator, 0)
    with pytest.raises(ConfigError, match=r"a step of joint needs about 4\.0 GiB"):
        fits.check_memory(config, model, **size)
    # Three quarters of weights, gradients and moments lie elsewhere: 12 bytes a parameter.
    fits.check_memory(config, model, **size, processes=4)


def test_more_than_half_of_the_machine_is_warned_of(nano, monkeypatch, caplog) -> None:
    for total, warned in ((3, False), (5, True)):
        plan = [PhaseMemory("joint", 0, 0, 0, 0, total * GIB, 0)]
        monkeypatch.setattr(fits, "plan_memory", lambda *_, plan=plan, **__: plan)
        fits.check_memory(*nano, height=120, width=160, device=CPU, memory=8 * GIB)
        assert ("a step of joint needs about 5.0 GiB of 8.0" in caplog.text) is warned
    assert (
        "--data.height 52 --data.width 72" in caplog.text and "--training.batch-size" in caplog.text
    )


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
    assert "what else runs here may not fit beside it" in caplog.text
    with pytest.raises(ConfigError, match=r"cpu has 8\.0"):  # a process's share
        fits.check_memory(*nano, **size, memory=16 * GIB, neighbours=2)
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


@pytest.mark.parametrize(
    ("group", "limits", "most"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "9", "memory.max": "99"}, 9),
        ("0::/a/b\n", {"a/b/memory.max": "7", "a/memory.max": "9"}, 7),
        ("0::/not/mounted/here\n", {"memory.max": "5"}, 5),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/a\n", {"a/memory.max": "what"}, None),
        (
            "9:cpu:/x\n4:memory:/a/b\n0::/\n",
            {
                "memory/a/b/memory.limit_in_bytes": "9223372036854771712",
                "memory/a/memory.limit_in_bytes": "8",
            },
            8,
        ),
        (None, {"memory.max": "6"}, 6),
    ],
)
def test_a_control_group_of_its_own_or_one_above_it_limits_a_process(
    group, limits, most, tmp_path
) -> None:
    """As the kernel shows them: /proc/self/cgroup, and the hierarchy below /sys/fs/cgroup."""
    if group is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(group)
    for name, value in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    there = fits.machine_memory(CPU, root=tmp_path)
    assert there == (fits.machine_memory(CPU, root=tmp_path / "none") if most is None else most)
