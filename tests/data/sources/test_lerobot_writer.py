"""Writing is atomic: what has the asked name is whole, and what failed leaves nothing."""

from __future__ import annotations

import json

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


def test_an_existing_set_is_kept_unless_told_otherwise(tmp_path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/precious.txt").write_text("x")
    with pytest.raises(DataError, match="--overwrite"):
        _writer(tmp_path / "set")
    writer = _writer(tmp_path / "set", overwrite=True)
    assert (tmp_path / "set/precious.txt").exists()  # until the new one is whole
    writer.add(_frames(4), np.zeros(4, np.int64))
    writer.finish()
    assert not (tmp_path / "set/precious.txt").exists()
    with pytest.raises(DataError, match="no episodes"):
        _writer(tmp_path / "empty").finish()


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
