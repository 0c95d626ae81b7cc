"""Layout v2.1: the same episodes as in v3.0, held to the same checks; a file of its own for each."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.sources import open_source
from colaworld.data.sources.lerobot_columns import write_columns
from colaworld.data.sources.lerobot_writer import CAMERA

LENGTHS = [11, 23, 17]


@pytest.fixture
def v3(tmp_path, scene_set) -> Path:
    return scene_set(tmp_path / "v3", LENGTHS, video_mb=1e-6)


@pytest.fixture
def v21(tmp_path, v3, as_v21) -> Path:
    return as_v21(v3, tmp_path / "v21")


def _info(path: Path, edit) -> None:
    file = path / "meta/info.json"
    info = json.loads(file.read_text())
    edit(info)
    file.write_text(json.dumps(info))


def _lines(path: Path, edit, name: str = "episodes") -> None:
    file = path / f"meta/{name}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    edit(lines)
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_the_same_episodes_as_in_v3(v21, v3, version) -> None:
    _info(v21, lambda info: info.update(codebase_version=version))
    source, same = open_source(v21), open_source(v3)
    assert source.kind == "lerobot" and source.describe().format == "LeRobot v2"
    assert source.describe().cameras == (CAMERA,) and source.describe().warnings == ()
    assert source.action_spec == same.action_spec
    assert [e.name for e in source.episodes] == [e.name for e in same.episodes]
    for i, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(source.read(i, range(length)), same.read(i, range(length)))
        np.testing.assert_array_equal(source.actions(i), same.actions(i))
        np.testing.assert_array_equal(source.times(i), same.times(i))
    place = f"videos/chunk-001/{CAMERA}/episode_000002.mp4"
    assert source.identity(2) == (place, (v21 / place).stat().st_size)


def test_the_number_of_classes_is_in_the_statistics(v21) -> None:
    _info(v21, lambda info: info["features"]["action"].pop("class_names"))
    _lines(v21, lambda s: [e["stats"]["action"].update(max=[i]) for i, e in enumerate(s)], STATS)
    assert open_source(v21).action_spec.size == 3  # the largest of all
    _lines(v21, lambda stats: stats[1]["stats"].pop("action"), STATS)
    with pytest.raises(
        DataError, match=r"episodes_stats\.jsonl: line 2: action\.max: expected the"
    ):
        open_source(v21)
    _lines(v21, lambda stats: stats[0].pop("stats"), STATS)
    with pytest.raises(DataError, match=r"episodes_stats\.jsonl: line 1: stats: missing"):
        open_source(v21)
    (v21 / f"meta/{STATS}.jsonl").unlink()  # as in v2.0
    (v21 / "meta/stats.json").write_text('{"action": {"max": [4]}}')
    assert open_source(v21).action_spec.size == 5


STATS = "episodes_stats"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda e: e[1].pop("length"), "line 2: length: missing; expected frames, at least 1"),
        (lambda e: e[1].update(length=0), "line 2: length: expected frames, at least 1, got 0"),
        (lambda e: e[1].update(length=2.0), "line 2: length: expected"),
        (lambda e: e[1].update(episode_index=-1), "line 2: episode_index: expected a number"),
        (lambda e: e[1].update(episode_index=0), "line 2: episode_index: episode 0 is there twice"),
        (lambda e: e.pop(), "total_episodes is 3, .*episodes.jsonl holds 2"),
        (lambda e: e[0].update(length=12), "total_frames is 51, .*episodes.jsonl holds 52"),
        (lambda e: e.clear(), "holds no episodes"),
    ],
)
def test_the_lines_of_episodes_are_checked(v21, edit, message) -> None:
    _lines(v21, edit)
    with pytest.raises(DataError, match=message):
        open_source(v21)


def test_lines_that_are_none(v21) -> None:
    file = v21 / "meta/episodes.jsonl"
    for text, message in (("[1]\n", "line 1: expected an object"), ("{", "line 1: cannot be read")):
        file.write_text(text)
        with pytest.raises(DataError, match=rf"episodes\.jsonl: {message}"):
            open_source(v21)
    file.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"episodes\.jsonl.* cannot be read"):
        open_source(v21)
    file.unlink()
    with pytest.raises(DataError, match=r"episodes\.jsonl: missing"):
        open_source(v21)
    os.mkfifo(file)
    with pytest.raises(DataError, match=r"episodes\.jsonl is no regular file"):
        open_source(v21)


def test_paths(tmp_path, v21) -> None:
    good = json.loads((v21 / "meta/info.json").read_text())
    for key, value, message in (
        (
            "video_path",
            "videos/{chunk_index:03d}.mp4",
            "expected a path with the fields .*episode_chunk",
        ),
        ("video_path", "videos/one.mp4", "video_path: episodes 0 and 1 share"),
        ("data_path", "data/{episode_chunk}.parquet", "data_path: episodes 0 and 1 share"),
        ("data_path", "../{episode_index}.parquet", "data_path: .* leads out of the set's folder"),
        ("chunks_size", 0, "chunks_size: expected episodes per chunk, got 0"),
        ("chunks_size", None, "chunks_size: expected episodes per chunk, got None"),
    ):
        (v21 / "meta/info.json").write_text(json.dumps(good | {key: value}))
        with pytest.raises(DataError, match=rf"info\.json: .*{message}|{message}"):
            open_source(v21)
    (v21 / "meta/info.json").write_text(json.dumps(good))
    film = next(v21.rglob("*.mp4"))
    film.rename(tmp_path / "elsewhere.mp4")
    film.symlink_to(tmp_path / "elsewhere.mp4")
    with pytest.raises(DataError, match="leads out of the set's folder"):
        open_source(v21)


def test_films_and_rows_are_held_against_meta(v21, caplog) -> None:
    films, tables = sorted(v21.rglob("*.mp4")), sorted(v21.rglob("*.parquet"))
    whole = films[0].read_bytes()
    shutil.copy(films[1], films[0])  # 23 frames in place of 11
    (warning,) = open_source(v21).describe().warnings
    assert f"{films[0]} (23 frames, 11 claimed)" in warning
    films[0].write_bytes(whole)
    shutil.copy(films[0], films[1])
    shutil.copy(tables[0], tables[2])
    source = open_source(v21)
    assert [e.name for e in source.episodes] == ["episode 000000", "episode 000002"]
    assert source.broken[0].reason.startswith(f"{films[1]}: episode 000001 should be 23 frames")
    with pytest.raises(DataError, match=r"episode_000002\.parquet.*17 rows.*0 rows found"):
        source.actions(1)
    films[2].write_bytes(films[2].read_bytes()[:900])
    with pytest.raises(BrokenFileError, match=r"episode_000002\.mp4"):
        source.read(1, range(17))
    films[2].unlink()
    with pytest.raises(DataError, match="2 of 3 files or episodes are broken"):
        ClipSet(DataConfig(path=v21, frames_per_clip=3))


def test_columns_are_added_to_v3_alone(tmp_path, v21) -> None:
    with pytest.raises(DataError, match=r"layout v3\.0, this one is v2\.1") as caught:
        write_columns(v21, tmp_path / "out", {"label": np.zeros(51, np.int64)})
    converter = "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id="
    assert converter in str(caught.value) and f"--root={v21}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_actions_of_the_wrong_type(v21) -> None:
    file = sorted(v21.rglob("*.parquet"))[1]
    table = pq.read_table(file)
    at = table.column_names.index("action")
    pq.write_table(table.set_column(at, "action", table["action"].cast("float32")), file)
    with pytest.raises(DataError, match=r"episode_000001\.parquet.*holds float, .* says int64"):
        open_source(v21).actions(1)
