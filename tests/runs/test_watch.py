"""Checkpoints evaluated as they appear: each once, in order, also across calls; other settings refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from colaworld.config import ConfigError
from colaworld.files import FileError, FolderLock
from colaworld.runs import watch as watching
from colaworld.runs.watch import FILE, over, read_rows, watch
from colaworld.training.checkpoint import CheckpointError
from colaworld.training.run_folder import ENDED


def checkpoint(folder: Path, step: int) -> SimpleNamespace:
    path = folder / "checkpoints" / f"step_0_{step:07d}"
    path.mkdir(parents=True, exist_ok=True)
    progress = {"global_step": step, "step": step, "phase": 0}
    return SimpleNamespace(path=path, state={"progress": progress})


def result(value: float) -> dict:
    interval = {"mean": value, "low": value - 1, "high": value + 1}
    return {
        "delta_psnr": {"random": interval},
        "rollout": {"psnr": interval},
        "probe": None,
        "codebook": {"entropy_normalised": 0.5},
        "clips": {"rolled": "ab"},
        "config": {"clips": 4, "seed": 0, "horizon": 2},
    }


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A run that saves at 10 and 20 before the first look, at 30 after it, and is then finished."""
    (tmp_path / "config.yaml").touch()
    looks = iter([(10, 20), (10, 20, 30), (10, 20, 30)])
    state = SimpleNamespace(now=(), finished=False, slept=0)

    def sleep(seconds):
        state.slept += 1
        if state.slept > 1:
            state.finished = True

    def find(folder):
        state.now = next(looks, state.now)
        return [checkpoint(tmp_path, step) for step in state.now]

    monkeypatch.setattr(watching, "find_checkpoints", find)
    monkeypatch.setattr(
        watching, "finished_weights", lambda folder: Path("w") if state.finished else None
    )
    return tmp_path, sleep


def test_each_checkpoint_once_until_the_run_is_finished(training) -> None:
    folder, sleep = training
    seen = []

    def measure(found):
        seen.append(found.state["progress"]["global_step"])
        return result(float(seen[-1]))

    rows = list(watch(folder, measure, settings={"clips": 4}, sleep=sleep))
    assert seen == [10, 20, 30] and [row["global_step"] for row in rows] == seen
    assert rows == read_rows(folder) and rows[1]["delta_psnr"]["low"] == 19.0
    assert rows[0]["entropy_normalised"] == 0.5 and rows[0]["probe"] is None
    assert list(watch(folder, measure, settings={"clips": 4}, sleep=sleep)) == []  # nothing twice
    with pytest.raises(ConfigError, match=r"evaluation\.clips 4, asked for 8; ask for the same"):
        next(watch(folder, measure, settings={"clips": 8}, sleep=sleep))


def test_another_sampler_and_other_clips_are_refused(training) -> None:
    folder, sleep = training
    asked = {"clips": 4, "sampler": {"steps": 8}}
    rows = watch(folder, lambda found: result(1.0), settings=asked, sleep=sleep)
    assert next(rows)["settings"] == {"clips": 4, "seed": 0, "horizon": 2, "sampler": {"steps": 8}}
    other = asked | {"sampler": {"steps": 1}}
    with pytest.raises(
        ConfigError, match=r"made with sampler {'steps': 8}, asked for {'steps': 1}"
    ):
        next(watch(folder, lambda found: result(1.0), settings=other, sleep=sleep))
    elsewhere = result(1.0) | {"clips": {"rolled": "cd"}}
    with pytest.raises(ConfigError, match=r"measured on other clips"):
        next(watch(folder, lambda found: elsewhere, settings=asked, sleep=sleep))
    assert len(read_rows(folder)) == 1


def test_a_checkpoint_that_is_deleted_meanwhile_is_passed_over(training, caplog) -> None:
    folder, sleep = training

    def measure(found):
        if found.path.name.endswith("20"):
            found.path.rmdir()
            raise CheckpointError("gone")
        return result(1.0)

    rows = list(watch(folder, measure, settings={}, sleep=sleep))
    assert [row["global_step"] for row in rows] == [10, 30]
    assert "step_0_0000020 was deleted before it was read" in caplog.text


def test_a_damaged_checkpoint_is_an_error_and_no_row(training) -> None:
    folder, sleep = training

    def measure(found):
        raise CheckpointError(f"{found.path}: damaged")

    with pytest.raises(CheckpointError, match="damaged"):
        list(watch(folder, measure, settings={}, sleep=sleep))
    assert read_rows(folder) == []


@pytest.fixture
def unfinished(training, monkeypatch):
    """The same run, which nobody finishes; `nap(looks)` fails where it is waited for longer."""
    folder, _ = training
    monkeypatch.setattr(watching, "finished_weights", lambda folder: None)

    def nap(looks: int):
        left = iter(range(looks))
        return lambda seconds: next(left)  # StopIteration: a RuntimeError within a generator

    return folder, nap


def test_watching_ends_with_a_run_that_was_stopped(unfinished, caplog) -> None:
    folder, nap = unfinished
    said = {"status": "stopped", "why": "the codebook collapsed in phase joint", "global_step": 30}
    (folder / ENDED).write_text(json.dumps(said))
    rows = list(watch(folder, lambda found: result(1.0), settings={}, sleep=nap(2)))
    assert [row["global_step"] for row in rows] == [10, 20, 30]
    assert "not finished (stopped: the codebook collapsed in phase joint)" in caplog.text
    (folder / ENDED).write_text("[]")
    with pytest.raises(FileError, match=rf"{ENDED}: expected status and why"):
        over(folder)


def test_a_run_that_goes_on_is_waited_for(unfinished, monkeypatch, caplog) -> None:
    """Silent for long, but held; then killed, which leaves nothing but its rows."""
    folder, nap = unfinished
    os.utime(folder / "config.yaml", (0, 0))
    lock = FolderLock(folder)
    with pytest.raises(RuntimeError):
        list(watch(folder, lambda found: result(1.0), settings={}, sleep=nap(5)))
    lock.close()
    (folder / "metrics.jsonl").touch()  # a row of just now: elsewhere, where locks are not seen
    with pytest.raises(RuntimeError):
        list(watch(folder, lambda found: result(1.0), settings={}, sleep=nap(5)))
    os.utime(folder / "metrics.jsonl", (0, 0))
    assert not caplog.text
    assert list(watch(folder, lambda found: result(1.0), settings={}, sleep=nap(2))) == []
    assert "no process trains in it, and nothing was written for 300 s" in caplog.text
    (folder / "config.yaml").unlink()
    (folder / "metrics.jsonl").unlink()
    assert over(folder) == "its files are gone"


INTERVAL = {"mean": 1.0, "low": None, "high": None}
ROW = {
    "global_step": 1,
    "checkpoint": "step_0_0000001",
    "delta_psnr": INTERVAL,
    "probe": None,
    "entropy_normalised": 0.5,
    "settings": {"clips": 4},
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        ("[]", "the whole: expected an object"),
        ('{"step": 1}', "global_step: missing"),
        (json.dumps(ROW | {"checkpoint": ["a"]}), "checkpoint: expected text"),
        (json.dumps(ROW | {"settings": None}), "settings: expected an object, got null"),
        (json.dumps(ROW | {"delta_psnr": None}), "delta_psnr: expected an object, got null"),
        (json.dumps(ROW | {"probe": "x"}), "probe: expected an object, got 'x'"),
        (json.dumps(ROW | {"entropy_normalised": "x"}), "entropy_normalised: expected a number"),
    ],
)
def test_what_is_no_row_is_named(tmp_path, text, said) -> None:
    (tmp_path / FILE).write_text(f"{json.dumps(ROW)}\n{text}\n", errors="surrogateescape")
    with pytest.raises(FileError, match=rf"{FILE}, line 2: {said}.*; delete it"):
        read_rows(tmp_path)
