"""Round trip through the LeRobot layout, and every way in which a set can be wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colaworld import envs
from colaworld.contracts import ActionSpec
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.inspection import warnings_of
from colaworld.data.sources import lerobot, open_source
from colaworld.data.sources.lerobot_writer import CAMERA, LeRobotWriter
from colaworld.envs import behaviours

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


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
    spec = ActionSpec(
        "action", "continuous", 3, ("x", "y", "grip"), ("cm", "cm", ""), "relative", "base"
    )
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
    _edit_info(path, lambda info: info.update(codebase_version="v1.6"))
    with pytest.raises(
        DataError, match=r"info\.json.*layout 'v1\.6'.*v2\.0, v2\.1 and v3"
    ) as caught:
        open_source(path)
    assert "--data.source video_folder" in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "absent")
    shutil.rmtree(path / "meta/episodes")
    _edit_info(path, lambda info: info.update(codebase_version="v3.0"))
    with pytest.raises(DataError, match="meta/episodes"):
        open_source(path)


def test_without_info_json_it_is_no_folder_of_videos(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6, 6])
    (path / "meta" / "info.json").unlink()
    with pytest.raises(DataError, match=r"info\.json: missing"):
        open_source(path)
    assert len(open_source(path, kind="video_folder").episodes) == 1


def test_a_film_that_goes_on_after_its_episodes_is_warned_of(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [9, 6, 7], video_mb=1e-4)
    assert open_source(path).describe().warnings == ()
    films = sorted((path / "videos").glob("*/*/*.mp4"))
    assert len(films) == 3
    films[1].write_bytes(films[0].read_bytes())
    (warning,) = open_source(path).describe().warnings
    assert warning.startswith(
        f"1 films go on after their last episode (first: {films[1]} (9 frames"
    )


@pytest.mark.parametrize(
    ("note", "says"), [("hdr", "are HDR (PQ or HLG)"), ("tff", "are interlaced")]
)
def test_what_its_films_are_like_is_said(tmp_path, scene_set, note, says) -> None:
    path = scene_set(tmp_path / "set", [9, 6, 7], video_mb=1e-4)
    film = sorted((path / "videos").glob("*/*/*.mp4"))[1]
    with av.open(str(film)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 20, 24, "yuv420p"
        if note == "hdr":
            stream.codec_context.color_trc = 18  # HLG
        else:
            stream.options = {"x264-params": "tff=1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    source = open_source(path)
    (warning,) = warnings_of(source, DataConfig(path=path))
    where = film.relative_to(path)
    assert warning.startswith(f"1 of 3 videos {says}") and f"(first: {where})" in warning
    assert len(source.read(1, [5])) == 1


def test_misaligned_actions_name_file_and_column(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [10, 10])
    table = pq.read_table(path / DATA)
    pq.write_table(table.slice(0, 17), path / DATA)
    source = open_source(path)
    assert len(source.actions(0)) == 10
    with pytest.raises(DataError, match=r"file-000\.parquet.*'action'.*10 rows.*7 rows found"):
        source.actions(1)


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([[0, 0]] * 6, "int64", "holds 12 numbers for the 6 frames"),
        ([[0], [1], [1, 1], [], [0], [1]], "int64", "holds 6 numbers for the 6 frames"),
        ([0.0, 1.7, 1.0, 0.0, 1.0, 1.0], "int64", "holds double, meta/info.json says int64"),
        ([0, 1, 1, 0, 1, 1], "float32", "holds int64, meta/info.json says float32"),
        (["0"] * 6, "int64", "holds string"),
        ([[0.5], [None], [1.0], [1.0], [1.0], [1.0]], "float32", "lacks 1 values"),
        ([{"a": 1}] * 6, "int64", "holds struct"),
    ],
)
def test_actions_are_of_the_type_and_shape_that_info_json_says(
    tmp_path, scene_set, values, dtype, message
) -> None:
    path = scene_set(tmp_path / "set", [6])
    pq.write_table(
        pq.read_table(path / DATA).set_column(0, "action", pa.array(values)), path / DATA
    )
    _edit_info(path, lambda info: info["features"]["action"].update(dtype=dtype))
    with pytest.raises(DataError, match=rf"file-000\.parquet: column 'action'.*{message}"):
        open_source(path).actions(0)


def test_classes_in_lists_of_one_are_classes(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6])
    lists = pa.array([[v] for v in pq.read_table(path / DATA)["action"].to_pylist()])
    pq.write_table(pq.read_table(path / DATA).set_column(0, "action", lists), path / DATA)
    np.testing.assert_array_equal(open_source(path).actions(0), _played(0, 6).actions)


def test_names_of_dimensions_by_place(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6])
    action = {"dtype": "float32", "shape": [2], "names": {"lift": 1, "pan": 0}}
    _edit_info(path, lambda info: info["features"].update(action=action))
    assert open_source(path).action_spec == ActionSpec("action", "continuous", 2, ("pan", "lift"))


def test_what_info_json_states_of_the_channels(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6])
    action = {"dtype": "float32", "shape": [2], "names": None, "unit": "rad", "mode": "relative"}
    _edit_info(path, lambda info: info["features"].update(action=action))
    spec = open_source(path).action_spec
    assert (spec.units, spec.mode, spec.frame) == (("rad", "rad"), "relative", "")
    _edit_info(path, lambda info: info["features"]["action"].update(units=["rad"]))
    with pytest.raises(DataError, match=r"action.units: expected 2, one for each channel, got 1"):
        open_source(path)
    _edit_info(
        path, lambda info: info["features"]["action"].update(units=["rad", "m"], mode="delta")
    )
    with pytest.raises(DataError, match=r"action.mode: expected absolute or relative, got 'delta'"):
        open_source(path)


def test_a_row_group_is_read_once_for_the_episodes_that_follow(
    tmp_path, scene_set, monkeypatch
) -> None:
    path = scene_set(tmp_path / "set", [6, 8, 7])
    table = pq.read_table(path / DATA)
    pq.write_table(
        table, path / DATA
    )  # one group of all episodes, as LeRobot's own tools write them
    read, groups = lerobot.read_parquet, []
    monkeypatch.setattr(
        lerobot, "read_parquet", lambda *a, **k: groups.append(k["groups"]) or read(*a, **k)
    )
    source = open_source(path)
    for i, length in enumerate((6, 8, 7)):
        np.testing.assert_array_equal(source.actions(i), _played(i, length).actions)
    assert groups == [[0]]


def _cameras(info: dict, *names: str) -> None:
    info["features"] |= {name: dict(info["features"][CAMERA]) for name in names}


def test_a_camera_goes_by_the_end_of_its_name(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6])
    _edit_info(path, lambda info: _cameras(info, "a.left.top", "a.right.top", "remain"))
    source = open_source(path, camera="main")
    assert source.describe().camera == source.camera == CAMERA
    with pytest.raises(
        DataError, match=r"more than one camera 'top'.*: a\.left\.top, a\.right\.top$"
    ):
        open_source(path, camera="top")
    with pytest.raises(DataError, match=rf"no camera 'ain'; choose one of: {CAMERA}, a\.left"):
        open_source(path, camera="ain")


def test_the_chosen_camera_is_told_once(tmp_path, scene_set, caplog) -> None:
    path = scene_set(tmp_path / "set", [6])
    _edit_info(path, lambda info: _cameras(info, "observation.images.wrist"))
    with caplog.at_level("INFO"):
        for _ in range(2):
            open_source(path)
    assert [r.getMessage() for r in caplog.records if CAMERA in r.getMessage()] == [
        f"{path}: using camera {CAMERA} of ['{CAMERA}', 'observation.images.wrist']"
    ]


def test_the_film_must_be_what_info_json_says(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6, 9])
    _edit_info(path, lambda info: info["features"][CAMERA].update(shape=[24, 20, 3]))
    with pytest.raises(
        DataError, match=r"mp4: frames of 20x24; .*info\.json: .*shape says \[24, 20"
    ):
        open_source(path)
    _edit_info(path, lambda info: info["features"][CAMERA].update(shape=[3, 20, 24]))
    assert open_source(path).episodes[0].height == 20
    table = pq.read_table(path / EPISODES)
    for name in ("from_timestamp", "to_timestamp"):  # else the table contradicts the rate, too
        column = f"videos/{CAMERA}/{name}"
        halved = pa.array(np.array(table[column].to_pylist()) / 2)
        table = table.set_column(table.column_names.index(column), column, halved)
    pq.write_table(table, path / EPISODES)
    _edit_info(path, lambda info: info.update(fps=20))
    with pytest.raises(DataError, match=r"mp4: 10 frames a second; .*info\.json: fps says 20"):
        open_source(path)


def test_a_missing_film_is_told_once_and_counts_for_its_episodes(
    tmp_path, scene_set, caplog
) -> None:
    path = scene_set(tmp_path / "set", [60] * 5, video_mb=0.02)
    lost = open_source(path).episodes[0].path
    count = sum(e.path == lost for e in open_source(path).episodes)
    assert 1 < count < 4
    lost.unlink()
    for split in ("train", "heldout"):
        config = DataConfig(path=path, split=split, holdout=0.5, max_broken_share=0.9)
        assert sum(b.episodes for b in ClipSet(config).broken.values()) == count
    told = [r.getMessage() for r in caplog.records if lost.name in r.getMessage()]
    assert told == [f"skipped: {lost}: missing (episodes lost: {count})"]
    with pytest.raises(DataError, match=rf"{count} of 5 files or episodes are broken"):
        ClipSet(DataConfig(path=path))
    shutil.rmtree(path / "videos")
    with pytest.raises(DataError, match=r"no film of its 5 episodes is whole:\n.*mp4: missing"):
        open_source(path)


@pytest.mark.parametrize("place", ["/etc/{video_key}", "../out", "videos/../../out", "out", "a\0b"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, scene_set, place) -> None:
    path = scene_set(tmp_path / "set", [6])
    (tmp_path / "out").write_bytes(b"x")
    (path / "out").symlink_to("../out")
    for key in ("video_path", "data_path"):
        _edit_info(path, lambda info, key=key: info.update({key: place}))
        with pytest.raises(DataError, match=rf"info\.json: {key}: .*(leads out|is no file)"):
            open_source(path)
        _edit_info(path, lambda info, key=key: info.update({key: "{video_key.__class__}"}))
        with pytest.raises(DataError, match=rf"info\.json: {key}: expected a path with the fields"):
            open_source(path)
        shutil.rmtree(path)
        scene_set(path, [6])
        (path / "out").symlink_to("../out")
    for name in ("meta/info.json", EPISODES, DATA):
        (path / name).rename(tmp_path / "elsewhere")
        (path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataError, match=rf"{path / name} leads out of the set's folder"):
            open_source(path)
        (tmp_path / "elsewhere").rename(path / name)


def test_the_cache_of_the_hub_may_keep_the_bytes_beside_the_snapshot(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set--x" / "snapshots" / "0a1b", [6])
    blobs = tmp_path / "set--x" / "blobs"
    blobs.mkdir()
    for i, file in enumerate([p for p in path.rglob("*") if p.is_file()]):
        file.rename(blobs / str(i))
        file.symlink_to(os.path.relpath(blobs / str(i), file.parent))
    assert len(open_source(path).actions(0)) == 6


@pytest.mark.parametrize("name", ["meta/info.json", "meta/stats.json", EPISODES, DATA, "film"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, scene_set, name) -> None:
    path = scene_set(tmp_path / "set", [6])
    _edit_info(path, lambda info: info["features"]["action"].pop("class_names"))
    file = path / name if name != "film" else next(path.rglob("*.mp4"))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=rf"{file.name}.* is no regular file"):
        open_source(path)


def test_pages_carry_checksums_that_are_tried(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [300])
    content = bytearray((path / DATA).read_bytes())
    page = pq.ParquetFile(path / DATA).metadata.row_group(0).column(0)
    assert page.path_in_schema == "action"
    content[page.data_page_offset + page.total_compressed_size // 2] ^= 1
    (path / DATA).write_bytes(content)
    with pytest.raises(DataError, match=r"file-000\.parquet: columns action, .*(?i:checksum|crc)"):
        open_source(path).actions(0)


def _change(path: Path, column: str, values: list) -> None:
    table = pq.read_table(path / EPISODES)
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.array(values)), path / EPISODES)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("episode_index", [0, 0, 2], "episode 0 is there twice"),
        ("episode_index", [0, -1, 2], r"expected 0\.\.1000000000, got -1 in row 1"),
        ("episode_index", [0, None, 2], "lacks 1 values"),
        ("length", [6, 0, 7], r"expected 1\.\.1000000000, got 0"),
        ("length", [6, 10**12, 7], "got 1000000000000 in row 1"),
        ("length", [6.0, 8.0, 7.0], "expected integers, got double"),
        ("dataset_to_index", [6, 15, 21], "column 'length': episode 1 differs from dataset_to"),
        (
            f"videos/{CAMERA}/from_timestamp",
            [0.0, 0.0, 1.4],
            "episode 1 does not last its `length`",
        ),
        (f"videos/{CAMERA}/to_timestamp", [0.6, 1.4, 3.1], "episode 2 does not last"),
        (f"videos/{CAMERA}/from_timestamp", ["a", "b", "c"], "expected seconds, got string"),
    ],
)
def test_the_table_of_episodes_is_checked(tmp_path, scene_set, column, values, message) -> None:
    path = scene_set(tmp_path / "set", [6, 8, 7])
    _change(path, column, values)
    with pytest.raises(DataError, match=rf"file-000\.parquet: column '.*': .*{message}|{message}"):
        open_source(path)


def test_episodes_that_share_frames_are_refused(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6, 6, 7])
    for end in ("from", "to"):
        name = f"videos/{CAMERA}/{end}_timestamp"
        values = pq.read_table(path / EPISODES)[name].to_pylist()
        _change(path, name, [values[0], values[0], values[2]])
    with pytest.raises(DataError, match=r"from_timestamp': episode 1 begins before the one before"):
        open_source(path)


def test_totals_of_info_json_count_the_table(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [6, 8])
    for key, found in (("total_episodes", 2), ("total_frames", 14)):
        _edit_info(path, lambda info, key=key: info.update({key: 99}))
        with pytest.raises(
            DataError, match=rf"info\.json: {key} is 99, meta/episodes holds {found}"
        ):
            open_source(path)
        _edit_info(path, lambda info, key=key: info.pop(key))
    assert len(open_source(path).episodes) == 2


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
    with pytest.raises(DataError, match=r"parquet: lacks the columns 'action'"):
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
