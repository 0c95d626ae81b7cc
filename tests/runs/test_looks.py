"""What is looked at while a run trains changes nothing of it, also over a resume, and needs actions that fit."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from colaworld.cli.record import run as record
from colaworld.data.config import MixtureSource
from colaworld.runs.build import build_trainer
from colaworld.runs.config import RunConfig


@pytest.fixture(scope="module")
def moves(tmp_path_factory) -> Path:
    """Ten short episodes of the scene with their actions."""
    out = tmp_path_factory.mktemp("moves") / "set"
    of = ["--episodes", "10", "--steps", "9", "--size", "24", "--seed", "1"]
    assert record(["scene", *of, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def probed(tiny, moves):
    """probed(clips of the probe, steps) -> a run of naive joint training that looks at every second step."""

    def make(clips: int, steps: int) -> RunConfig:
        config = tiny("nano.naive_joint").with_phase("joint", cooldown_steps=0)
        training = replace(config.training, control_every=2, probe_clips=clips, max_steps=steps)
        data = replace(config.data, path=moves, holdout=0.4)
        return replace(config, training=training, data=data)

    return make


def rows_of(config: RunConfig, out: Path, **more) -> list[dict]:
    assert build_trainer(config, out=out, **more).run().status == "finished"
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_probe_changes_no_loss_and_no_weight_also_over_a_resume(probed, tmp_path) -> None:
    plain, whole = (rows_of(probed(n, 4), tmp_path / f"{n}") for n in (0, 16))
    assert [row["loss"] for row in whole] == [row["loss"] for row in plain]
    weights = [(tmp_path / n / "weights" / "model.safetensors").read_bytes() for n in ("0", "16")]
    assert weights[0] == weights[1]
    assert not any("probe" in row for row in plain)
    assert [row["step"] for row in whole if "probe" in row] == [1, 2, 4]
    assert {*whole[0]["probe"]} == {"score", "chance"} and 0 <= whole[0]["probe"]["score"] <= 1
    cut = rows_of(probed(16, 2), tmp_path / "cut")
    assert len(cut) == 2
    resumed = rows_of(probed(16, 4), tmp_path / "cut", resume=True)
    for name in ("loss", "probe", "control"):
        assert [row.get(name) for row in resumed] == [row.get(name) for row in whole]


def test_without_actions_that_fit_there_is_no_probe(probed, tiny, moves, caplog) -> None:
    caplog.set_level(logging.INFO, "colaworld")
    config, films = probed(8, 1), tiny().data.path
    mixed = {"a": MixtureSource(moves), "b": MixtureSource(films)}
    for data, why in (
        (replace(config.data, path=films), "films.*: its clips have no recorded actions"),
        (replace(config.data, stride=2), "its clips have no recorded actions"),
        (replace(config.data, holdout=0.0), "no probe while training: .*held"),
        (
            replace(config.data, path=None, mixture=mixed, height=24, width=32),
            "several data sets are not one thing",
        ),
    ):
        caplog.clear()
        trainer = build_trainer(replace(config, data=data), out=Path("not-made"))
        assert trainer.probe is None
        assert re.search(why, caplog.text), (why, caplog.text)
