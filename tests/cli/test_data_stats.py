"""`colaworld data stats`: what it prints and writes, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from colaworld.cli.main import main
from colaworld.contracts import ActionSpec
from colaworld.data.action_statistics import read_contract
from colaworld.data.sources import open_source
from colaworld.data.sources.lerobot_writer import LeRobotWriter


@pytest.fixture
def arm(tmp_path) -> Path:
    spec = ActionSpec("action", "continuous", 2)
    writer = LeRobotWriter(tmp_path / "arm", fps=10, height=16, width=16, action=spec)
    rng = np.random.default_rng(0)
    writer.add(rng.integers(0, 256, (40, 16, 16, 3), np.uint8), rng.normal(size=(40, 2)))
    return writer.finish()


def test_prints_and_writes_what_a_person_says(arm, capsys) -> None:
    assert main(["data", "stats", str(arm)]) == 0
    said = capsys.readouterr().out
    assert "not known; say it with --mode" in said and "units: not known" in said
    assert "40 of 1 episodes" in said and "10 Hz" in said and "not written" in said
    assert not (arm / "meta/colaworld_actions.json").exists()
    options = ["--names", "x", "y", "--unit", "m", "--mode", "relative", "--frame", "base"]
    assert main(["data", "stats", str(arm), *options, "--write"]) == 0
    said = capsys.readouterr().out
    assert f"written: {arm}/meta/colaworld_actions.json" in said
    written = read_contract(open_source(arm))
    assert (written.names, written.units) == (("x", "y"), ("m", "m"))
    assert (written.mode, written.frame) == ("relative", "base") and written.hash in said
    # Once said it stays said; what is said anew replaces it.
    assert main(["data", "stats", str(arm)]) == 0
    assert written.hash in capsys.readouterr().out
    assert main(["data", "stats", str(arm), "--unit", "mm", "rad"]) == 0
    said = capsys.readouterr().out
    assert f"says otherwise ({written.hash}); --write replaces it" in said and "rad" in said


def test_own_recordings_need_nothing_said(tmp_path, capsys) -> None:
    out = tmp_path / "set"
    assert main(["record", "scene", "--out", str(out), "--episodes", "2", "--steps", "12"]) == 0
    assert main(["data", "stats", str(out)]) == 0
    said = capsys.readouterr().out
    assert "not known" not in said and "noop" in said and "24 of 2 episodes" in said


def test_statistics_that_lie_fail(arm, capsys) -> None:
    file = arm / "meta/stats.json"
    stats = json.loads(file.read_text())
    stats["action"]["std"] = [1.0, 57.3]
    file.write_text(json.dumps(stats))
    assert main(["data", "stats", str(arm), "--write"]) == 1
    said = capsys.readouterr().out
    assert "stats.json: std of action_1: says 57.3, the rows have " in said.replace("\n", "")
    assert read_contract(open_source(arm)).normaliser.std[1] < 2  # the rows' own were written


def test_wrong_calls(arm, tmp_path, capsys) -> None:
    for arguments, why in (
        (["nowhere"], "nowhere: no such folder or file"),
        ([str(arm), "--column", "torque"], "no action column 'torque'"),
        (
            [str(arm), "--unit", "m", "m", "m"],
            "--unit: expected 1, or 2 (one for each channel), got 3",
        ),
        ([str(arm), "--names", "x"], "names: expected 0 or 2 names"),
    ):
        assert main(["data", "stats", *arguments]) == 2
        assert why in capsys.readouterr().err
    out = tmp_path / "set"
    main(["record", "scene", "--out", str(out), "--episodes", "2", "--steps", "12"])
    capsys.readouterr()
    assert main(["data", "stats", str(out), "--mode", "relative"]) == 2
    assert "column 'action' holds classes, which have none of them" in capsys.readouterr().err
