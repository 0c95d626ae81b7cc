"""A run takes the contract of its data, and refuses data and starting points that have another."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from colaworld.action_differences import ActionMismatch
from colaworld.config import load_yaml, to_dict
from colaworld.contracts import ActionSpec
from colaworld.data.action_statistics import measure, write_contract
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig, MixtureSource
from colaworld.data.loader import ClipLoader
from colaworld.data.sources import open_source
from colaworld.data.sources.lerobot_writer import LeRobotWriter
from colaworld.runs.actions import check_actions, contract_at, unknown, with_contract
from colaworld.runs.build import build_trainer
from colaworld.runs.config import RunConfig

PLUGIN = Path(__file__).with_name("plugin_mapper.py")
SPEC = ActionSpec("action", "continuous", 2, ("turn", "lift"), ("rad", "m"), "absolute", "base")


@pytest.fixture
def arm(tmp_path):
    """arm(name, ...) records three episodes of 50 frames whose actions are drawn alike."""

    def record(name, *, spec=SPEC, fps=10, seed=0, scale=(1.0, 1.0), order=(0, 1)) -> Path:
        rng = np.random.default_rng(seed)
        writer = LeRobotWriter(tmp_path / name, fps=fps, height=24, width=32, action=spec)
        for _ in range(3):
            frames = rng.integers(0, 256, (50, 24, 32, 3), np.uint8)
            rows = (rng.normal(size=(50, 2)) * [0.6, 0.1] + [0, 0.8]) * scale
            writer.add(frames, rows[:, order].astype(np.float32))
        return writer.finish()

    return record


def clips(path: Path, **options) -> ClipSet:
    return ClipSet(DataConfig(path=path, frames_per_clip=4, **options))


def test_a_set_that_means_the_same_is_taken(arm, caplog) -> None:
    model = check_actions(RunConfig(), clips(arm("first")))
    assert model.spec == SPEC
    other = clips(arm("second", seed=1))
    with caplog.at_level(logging.WARNING):
        data = check_actions(model, other, where="runs/arm")
        assert data.hash != model.hash and data.spec == model.spec
        assert check_actions(replace(RunConfig(), action_contract=model), other) == data
    assert not caplog.records


def test_a_set_that_means_something_else_is_refused(arm) -> None:
    model = check_actions(RunConfig(), clips(arm("first")))
    degrees = (180 / np.pi, 1)
    unsaid = replace(SPEC, units=())
    for name, why, options in (
        ("fast", r"rate: model 10 Hz; data 30 Hz .*--data\.fps 10", {"fps": 30}),
        (
            "named",
            "another order: column 1 of the data",
            {"spec": replace(SPEC, names=("lift", "turn"))},
        ),
        ("permuted", "column 1 of the data .* looks like it", {"order": (1, 0)}),
        (
            "degrees",
            "turn: .*degrees where the model has radians",
            {"spec": unsaid, "scale": degrees},
        ),
        ("units", "unit of turn: model rad; data deg", {"spec": replace(SPEC, units=("deg", "m"))}),
        ("mode", "mode: model absolute; data relative", {"spec": replace(SPEC, mode="relative")}),
        (
            "frame",
            "frame of reference: model base; data world",
            {"spec": replace(SPEC, frame="world")},
        ),
    ):
        path = arm(name, seed=2, **options)
        with pytest.raises(ActionMismatch, match=why) as error:
            check_actions(model, clips(path), where="runs/arm")
        assert str(path) in str(error.value) and "runs/arm" in str(error.value)


def test_other_numbers_are_taken_where_a_person_says_so(arm, caplog) -> None:
    model = check_actions(RunConfig(), clips(arm("first")))
    large = arm("large", scale=(5, 1))
    with pytest.raises(ActionMismatch, match=r"5 times larger.*\n.*--data\.unlike-actions warn"):
        check_actions(model, clips(large))
    with caplog.at_level(logging.WARNING):
        check_actions(model, clips(large, unlike_actions="warn"))
    assert "5 times larger" in caplog.text


def test_what_is_not_known_is_warned_of(arm, caplog) -> None:
    bare = arm("bare", spec=ActionSpec("action", "continuous", 2))
    model = check_actions(RunConfig(), clips(arm("first")))
    with caplog.at_level(logging.WARNING):
        data = check_actions(model, clips(bare))
    for what in ("names of channels", "unit of turn", "unit of lift", "mode", "frame of reference"):
        assert f"{what}: model" in caplog.text
    assert unknown(data) == ["names", "units", "mode", "frame of reference"]
    source = open_source(bare)
    write_contract(source, measure(source, spec=SPEC))  # what `data stats --write` does
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert check_actions(model, clips(bare)).spec == SPEC
    assert not caplog.records


def test_sets_of_a_mixture_must_mean_the_same(arm) -> None:
    first, second = arm("first"), arm("second", scale=(57.3, 1), seed=1)
    mixture = {"a": MixtureSource(first), "b": MixtureSource(second)}
    data = DataConfig(mixture=mixture, frames_per_clip=4)
    run = replace(RunConfig(), data=data)
    loader = ClipLoader(data, batch_size=2, seed=0, with_actions=True)
    assert with_contract(run, loader) == run  # nothing of it learns from actions

    class Learns(RunConfig):
        def uses_actions(self) -> bool:
            return True

    learns = Learns(**{name: getattr(run, name) for name in to_dict(run)})
    with pytest.raises(ActionMismatch, match="those of the first set, a "):
        with_contract(learns, loader)


@pytest.fixture
def adapter(from_outside, tiny):
    """A run that learns from the five moves of a recorded scene."""
    from_outside(PLUGIN)

    def make(path: Path, **changes) -> RunConfig:
        config = tiny("toy.mapper")
        return replace(config, data=replace(config.data, path=path), **changes)

    return make


def _scene(path: Path, names: tuple[str, ...], fps: float = 10) -> Path:
    spec = ActionSpec("action", "discrete", len(names), names)
    writer = LeRobotWriter(path, fps=fps, height=24, width=32, action=spec)
    rng = np.random.default_rng(0)
    for _ in range(4):
        frames = rng.integers(0, 256, (20, 24, 32, 3), np.uint8)
        writer.add(frames, rng.integers(0, len(names), 20))
    return writer.finish()


def test_a_run_keeps_its_contract_and_refuses_other_data(adapter, tmp_path) -> None:
    names = ("noop", "left", "right")
    first = _scene(tmp_path / "first", names)
    build_trainer(adapter(first), out=tmp_path / "run").run()
    saved = load_yaml(tmp_path / "run/config.yaml", RunConfig)
    assert saved.action_contract.names == names and saved.action_contract.rate == 10.0
    for place in ("run", "run/weights", "run/weights/model.safetensors"):
        assert contract_at(tmp_path / place) == saved.action_contract
    build_trainer(saved, out=tmp_path / "run", resume=True)

    swapped = _scene(tmp_path / "swapped", ("noop", "right", "left"))
    other = replace(saved, data=replace(saved.data, path=swapped))
    with pytest.raises(ActionMismatch, match="another order"):
        build_trainer(other, out=tmp_path / "run", resume=True)
    started = adapter(swapped).with_phase("mapper", init_from=str(tmp_path / "run"))
    with pytest.raises(ActionMismatch, match=rf"those of {tmp_path}/run "):
        build_trainer(started, out=tmp_path / "second")
    fast = _scene(tmp_path / "fast", names, fps=20)
    with pytest.raises(ActionMismatch, match="rate: model 10 Hz; data 20 Hz"):
        build_trainer(adapter(fast, action_contract=saved.action_contract), out=tmp_path / "third")
