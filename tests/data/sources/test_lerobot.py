"""Round trip through the LeRobot layout, and every way in which a set can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colaworld import envs
from colaworld.contracts import ActionSpec
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.sources import open_source
from colaworld.data.sources.lerobot_writer import CAMERA, LeRobotWriter
from colaworld.envs import behaviours

DATA = "data/chunk-000/file-000.parquet"


def _played(episode: int, steps: int) -> envs.Episode:
    env = envs.make("scene", height=20, width=24)
    behaviour = behaviours.make("sticky-random", env)
    return envs.play(env, behaviour, seed=0, episode=episode, steps=steps)


def test_round_trip(tmp_path, scene_set) -> None:
    source = open_source(scene_set(tmp_path / "set", [30, 12, 21]))
    assert source.kind == "lerobot" and [e.frames for e in source.episodes] == [30, 12, 21]
    assert source.action_spec == ActionSpec("action", "discrete", 5, envs.scene.NAMES)
    for i, length in enumerate([30, 12, 21]):
        original = _played(i, length)
        frames = source.read(i, range(length))
        error = np.abs(frames.astype(int) - original.frames)
        assert error.mean() < 2.5
        # each frame is nearest to its own original: the index is exact, not off by one
        for t in range(length - 1):
            if not np.array_equal(original.frames[t], original.frames[t + 1]):
                assert (
                    error[t].mean() < np.abs(frames[t].astype(int) - original.frames[t + 1]).mean()
                )
        np.testing.assert_array_equal(source.actions(i), original.actions)
    np.testing.assert_array_equal(source.read(1, [5, 2])[0], source.read(1, [5])[0])
    np.testing.assert_allclose(source.times(1)[:3], [0, 0.1, 0.2])


def test_files_are_split_and_episodes_found_in_them(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [60] * 5, video_mb=0.01, data_mb=0.006)
    assert len(list(path.glob("videos/*/*/*.mp4"))) >= 3
    assert len(list(path.glob("data/*/*.parquet"))) >= 2
    source = open_source(path)
    for i in range(5):
        original = _played(i, 60)
        assert np.abs(source.read(i, [59])[0].astype(int) - original.frames[59]).mean() < 2.5
        np.testing.assert_array_equal(source.actions(i), original.actions)


def test_continuous_actions(tmp_path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 16, 16, 3), np.uint8)
    actions = rng.normal(size=(9, 3)).astype(np.float32)
    spec = ActionSpec("action", "continuous", 3, ("x", "y", "grip"), "cm")
    writer = LeRobotWriter(tmp_path / "set", fps=10, height=16, width=16, action=spec)
    writer.add(frames, actions)
    source = open_source(writer.finish())
    assert source.action_spec == spec
    np.testing.assert_array_equal(source.actions(0), actions)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())["action"]
    np.testing.assert_allclose(stats["mean"], actions.astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["std"], actions.astype(float).std(0), rtol=1e-6)


def _edit_info(path: Path, edit) -> None:
    file = path / "meta/info.json"
    info = json.loads(file.read_text())
    edit(info)
    file.write_text(json.dumps(info))


def test_a_set_as_lerobot_writes_it(tmp_path, scene_set) -> None:
    """Grouped names, channels first, a second camera, float actions, foreign columns."""
    path = scene_set(tmp_path / "set", [8, 8])
    table = pq.read_table(path / DATA)
    values = np.arange(32, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 2)
    table = table.set_column(0, "action", column).append_column("next.done", pa.array([False] * 16))
    pq.write_table(table, path / DATA)

    def edit(info: dict) -> None:
        info["features"]["action"] = {
            "dtype": "float32",
            "shape": [2],
            "names": {"motors": ["pan", "lift"]},
        }
        info["features"]["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
        camera = info["features"][CAMERA]
        camera["shape"], camera["names"] = [3, 20, 24], ["channels", "height", "width"]
        camera.pop("info")
        info["features"]["observation.images.wrist"] = dict(camera)
        info["robot_type"] = None

    _edit_info(path, edit)
    (path / "meta/colaworld.json").unlink()
    source = open_source(path)
    assert source.action_spec == ActionSpec("action", "continuous", 2, ("pan", "lift"))
    assert (source.episodes[0].height, source.episodes[0].width) == (20, 24)
    np.testing.assert_array_equal(source.actions(1), values.reshape(-1, 2)[8:])
    assert source.read(1, [7]).shape == (1, 20, 24, 3)


def test_integer_actions_without_class_names_take_the_count_from_the_statistics(
    tmp_path, scene_set
) -> None:
    path = scene_set(tmp_path / "set", [40])
    _edit_info(path, lambda info: info["features"]["action"].pop("class_names"))
    spec = open_source(path).action_spec
    assert spec == ActionSpec("action", "discrete", int(_played(0, 40).actions.max()) + 1)


def test_a_camera_without_names_of_its_axes_opens(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [8])
    sizes = [(e.height, e.width) for e in open_source(path).episodes]
    _edit_info(path, lambda info: info["features"][CAMERA].update(names=None))
    assert [(e.height, e.width) for e in open_source(path).episodes] == sizes


def test_wrong_camera_version_and_folder(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [8])
    with pytest.raises(DataError, match=rf"no camera 'top'; choose one of: {CAMERA}"):
        open_source(path, camera="top")
    _edit_info(path, lambda info: info.update(codebase_version="v2.1"))
    with pytest.raises(DataError, match=r"layout v2\.1"):
        open_source(path)
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "absent")
    shutil.rmtree(path / "meta/episodes")
    _edit_info(path, lambda info: info.update(codebase_version="v3.0"))
    with pytest.raises(DataError, match="meta/episodes"):
        open_source(path)


def test_misaligned_actions_name_file_and_column(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [10, 10])
    table = pq.read_table(path / DATA)
    pq.write_table(table.slice(0, 17), path / DATA)
    source = open_source(path)
    assert len(source.actions(0)) == 10
    with pytest.raises(DataError, match=r"file-000\.parquet.*'action'.*10 rows.*7 rows found"):
        source.actions(1)


def test_missing_values_and_classes_out_of_range(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6])
    table = pq.read_table(path / DATA)
    for values, message in (
        ([0, 1, None, 1, 1, 1], "lacks 1 values"),
        ([0, 1, 9, 1, 1, 1], "0..9"),
    ):
        pq.write_table(table.set_column(0, "action", pa.array(values, pa.int64())), path / DATA)
        with pytest.raises(DataError, match=rf"'action'.*{message}"):
            open_source(path).actions(0)
    pq.write_table(table.drop_columns(["action"]), path / DATA)
    with pytest.raises(DataError, match=r"parquet.*no column 'action'|parquet.*'action'.*read"):
        open_source(path).actions(0)


def test_no_actions_is_fine_and_says_so(tmp_path, scene_set) -> None:
    source = open_source(scene_set(tmp_path / "set", [6], actions=False))
    assert source.action_spec is None and source.actions(0) is None
    assert open_source(source.path, action_column="missing").action_spec is None


def test_a_video_that_is_too_short_or_cut(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [30, 30])
    source = open_source(path)
    video = source.episodes[0].path
    other = scene_set(tmp_path / "other", [30])
    shutil.copy(open_source(other).episodes[0].path, video)
    assert source.read(0, [29]).shape[0] == 1
    with pytest.raises(BrokenFileError, match=r"episode 000001 should be 30 frames.*holds 30"):
        source.read(1, [0])
    video.write_bytes(video.read_bytes()[:3000])
    with pytest.raises(BrokenFileError, match=r"file-000\.mp4"):
        source.read(0, [0])
