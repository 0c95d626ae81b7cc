"""Writing is atomic: what has the asked name is whole, and what failed leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from colaworld.contracts import ActionSpec
from colaworld.data.errors import DataError
from colaworld.data.sources.lerobot_writer import CAMERA, LeRobotWriter


def _writer(path, **options) -> LeRobotWriter:
    spec = ActionSpec("action", "discrete", 2, ("left", "right"))
    return LeRobotWriter(path, fps=10, height=16, width=16, action=spec, **options)


def _frames(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), np.uint8)


def test_nothing_has_the_name_before_the_end(tmp_path) -> None:
    writer = _writer(tmp_path / "set")
    writer.add(_frames(4), np.zeros(4, np.int64))
    assert not (tmp_path / "set").exists()
    writer.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_leaves_nothing(tmp_path, error) -> None:
    with pytest.raises(error), _writer(tmp_path / "set") as writer:
        writer.add(_frames(4), np.zeros(4, np.int64))
        raise error
    assert list(tmp_path.iterdir()) == []


def _write(path, seed: int = 0, **options) -> None:
    writer = _writer(path, **options)
    writer.add(_frames(4, seed), np.zeros(4, np.int64))
    writer.finish()


def _bytes(path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_an_existing_set_is_kept_unless_told_otherwise(tmp_path) -> None:
    _write(tmp_path / "set")
    before = _bytes(tmp_path / "set")
    with pytest.raises(DataError, match="--overwrite"):
        _writer(tmp_path / "set")
    writer = _writer(tmp_path / "set", overwrite=True)
    assert _bytes(tmp_path / "set") == before  # until the new one is whole
    writer.add(_frames(4, 1), np.zeros(4, np.int64))
    writer.finish()
    assert _bytes(tmp_path / "set") != before and before.keys() == _bytes(tmp_path / "set").keys()
    with pytest.raises(DataError, match="no episodes"):
        _writer(tmp_path / "empty").finish()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("below", ["thesis.txt", "docs/thesis.txt", "meta/info.json"])
def test_overwrite_replaces_recorded_sets_alone(tmp_path, below) -> None:
    file = tmp_path / "set" / below
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(
        DataError, match="set: is no recorded data set; --overwrite replaces nothing"
    ):
        _writer(tmp_path / "set", overwrite=True)
    if below == "meta/info.json":
        file.unlink()
        file.parent.rmdir()
        file.parent.parent.rmdir()
        _write(tmp_path / "set")
        file = tmp_path / "set/thesis.txt"
        file.write_text("x")
        with pytest.raises(DataError, match=r"more than a recorded data set: thesis\.txt; move"):
            _writer(tmp_path / "set", overwrite=True)
    assert file.exists() and [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_is_not_deleted(tmp_path, overwrite) -> None:
    writer = _writer(tmp_path / "set", overwrite=overwrite)
    writer.add(_frames(4), np.zeros(4, np.int64))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/thesis.txt").write_text("x")
    with pytest.raises(DataError, match=r"stays as it is; what was made is in .*set-2 "):
        writer.finish()
    assert _bytes(tmp_path / "set") == {"thesis.txt": b"x"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set", "set-2"]
    _write(tmp_path / "other")
    assert _bytes(tmp_path / "other") == _bytes(tmp_path / "set-2")


def test_a_second_recording_of_one_name_is_refused(tmp_path) -> None:
    first = _writer(tmp_path / "set")
    first.add(_frames(4), np.zeros(4, np.int64))
    with pytest.raises(DataError, match="set: another process is writing it"):
        _writer(tmp_path / "set")
    first.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_what_a_killed_recording_left_is_cleared_by_the_next(tmp_path) -> None:
    script = (
        "import os, sys, numpy as np\n"
        "from colaworld.data.sources.new_folder import NewFolder\n"
        "folder = NewFolder(sys.argv[1]); (folder.work / 'half').mkdir()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "set")], check=False)
    assert (tmp_path / ".set.partial/half").is_dir()
    _write(tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert not (tmp_path / "set/half").exists()
    (tmp_path / "set").rename(tmp_path / ".set.replaced")  # killed between the two renames
    with pytest.raises(DataError, match="no episodes"):
        _writer(tmp_path / "set").finish()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_signal_between_the_two_renames_gives_the_old_set_back(tmp_path, monkeypatch) -> None:
    _write(tmp_path / "set")
    before = _bytes(tmp_path / "set")
    writer = _writer(tmp_path / "set", overwrite=True)
    writer.add(_frames(4, 1), np.zeros(4, np.int64))

    def interrupted(folder) -> None:
        raise KeyboardInterrupt

    writer._folder._replaceable = interrupted
    with pytest.raises(KeyboardInterrupt):
        writer.finish()
    assert _bytes(tmp_path / "set") == before and [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_link_to_a_folder_elsewhere_stays_one(tmp_path) -> None:
    (tmp_path / "disk/set").mkdir(parents=True)
    (tmp_path / "set").symlink_to(tmp_path / "disk/set")
    _write(tmp_path / "set")
    _write(tmp_path / "set", 1, overwrite=True)
    assert (tmp_path / "set").is_symlink() and (tmp_path / "disk/set/meta/info.json").is_file()
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["set"]


def test_the_same_frames_give_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        _write(tmp_path / name)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_one_action_per_frame(tmp_path) -> None:
    writer = _writer(tmp_path / "set")
    with pytest.raises(ValueError, match="4 frames, 3 actions"):
        writer.add(_frames(4), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="4 frames, no actions"):
        writer.add(_frames(4), None)
    writer.abort()


def test_meta_says_what_is_there(tmp_path) -> None:
    writer = _writer(tmp_path / "set", made_by={"seed": 7})
    films = [_frames(4), _frames(6, 1)]
    for film, task in zip(films, ("a", "b"), strict=True):
        writer.add(film, np.arange(len(film)) % 2, task=task)
    path = writer.finish()
    info = json.loads((path / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 10, 2)
    assert info["features"]["action"]["class_names"] == ["left", "right"]
    made = json.loads((path / "meta/colaworld.json").read_text())
    assert made["seed"] == 7 and made["decoded_psnr_db"][0] > 20
    rows = pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [r["length"] for r in rows] == [4, 6] and rows[1]["dataset_from_index"] == 4
    assert rows[1][f"videos/{CAMERA}/from_timestamp"] == pytest.approx(0.4)
    assert rows[1][f"videos/{CAMERA}/to_timestamp"] == pytest.approx(1.0)
    data = pq.read_table(path / "data/chunk-000/file-000.parquet")
    assert data["index"].to_pylist() == list(range(10))
    assert data["frame_index"].to_pylist() == [*range(4), *range(6)]
    assert data["action"].to_pylist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    stats = json.loads((path / "meta/stats.json").read_text())
    together = np.concatenate(films).reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["mean"]), together.mean(0), rtol=1e-9)
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["std"]), together.std(0), rtol=1e-9)
    assert stats["action"]["count"] == [10] and np.shape(stats[CAMERA]["min"]) == (3, 1, 1)
