"""Samples of WebDataset: their films by camera, their actions, and what is wrong with them."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colaworld.contracts import ActionSpec
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.loader import ClipLoader
from colaworld.data.sources import open_source


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(values), allow_pickle=True)
    return file.getvalue()


@pytest.fixture
def shard(tmp_path, film):
    """shard({name: bytes, or a number to film nine frames from}) -> the tar's path."""

    def write(members: dict[str, bytes | int], name: str = "0.tar") -> Path:
        tar = tmp_path / "shards" / name
        tar.parent.mkdir(exist_ok=True)
        with tarfile.open(tar, "w") as archive:
            for member, content in members.items():
                if isinstance(content, int):
                    path = film(tmp_path / "one.mp4", range(content, content + 9))
                    content = path.read_bytes()
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return tar

    return write


ROWS = np.arange(27, dtype=np.float64).reshape(9, 3) / 10


def test_a_sample_is_what_agrees_up_to_the_first_dot(shard, number_of) -> None:
    inner = {
        "x/a.npy": npy(ROWS),
        "x/a.mp4": 10,
        "x/a.txt": b"a caption",
        "x/a.json": b'{"fps": 10}',
    }
    shard({**inner, "x/b.json": json.dumps({"action": (ROWS + 1).tolist(), "tags": ["b"]}).encode()}
          | {"x/b.mp4": 20, "y/a.action.npy": npy(np.asfortranarray(ROWS + 2)), "y/a.mp4": 30})  # fmt: skip
    source = open_source(shard({}, "1.tar").parent)
    assert source.kind == "webdataset"
    assert [e.name for e in source.episodes] == ["0.tar/x/a.mp4", "0.tar/x/b.mp4", "0.tar/y/a.mp4"]
    assert source.action_spec == ActionSpec("action", "continuous", 3)
    for i in range(3):
        assert source.actions(i).dtype == np.float32
        np.testing.assert_array_equal(source.actions(i), (ROWS + i).astype(np.float32))
        assert [number_of(f) for f in source.read(i, [0, 8])] == [10 * i + 10, 10 * i + 18]
    assert source.describe().columns == ("action",) and source.describe().warnings == ()
    batch = next(ClipLoader(
        DataConfig(path=source.path, frames_per_clip=3, split="all", stride=2), batch_size=4, seed=0,
        with_actions=True,
    ))  # fmt: skip
    assert batch.actions.shape == (4, 2, 6)


def test_classes_and_columns(shard) -> None:
    classes = np.arange(9) % 4
    tar = shard({"a.mp4": 1, "a.actions.npy": npy(classes[:, None].astype(np.uint8)), "a.pose.npy": npy(ROWS)}
                | {"b.mp4": 1, "b.json": json.dumps({"actions": [6] * 9}).encode()})  # fmt: skip
    source = open_source(tar)  # `action` is what is asked for; they call it `actions`
    assert source.action_spec == ActionSpec("actions", "discrete", 7)
    assert source.actions(0).dtype == np.int64 and source.actions(0).tolist() == classes.tolist()
    assert source.describe().columns == ("actions", "pose")
    assert source.actions(1).tolist() == [6] * 9
    posed = open_source(tar, action_column="pose")
    np.testing.assert_array_equal(posed.actions(0), ROWS.astype(np.float32))
    with pytest.raises(DataError, match=r"0\.tar: 0\.tar/b\.mp4: has no column 'pose'"):
        posed.actions(1)
    (warning,) = posed.describe().warnings
    assert warning.startswith("1 of 2 samples have no column 'pose' (first: 0.tar/b.mp4)")
    absent = open_source(tar, action_column="speed")
    assert absent.action_spec is None and absent.actions(0) is None
    with pytest.raises(DataError, match=r"no sample has an action column 'speed'.*actions, pose"):
        ClipSet(DataConfig(path=tar, frames_per_clip=3, action_column="speed")).require_actions()


def test_views_are_chosen_by_name(shard, number_of) -> None:
    tar = shard(
        {"a.wrist.mp4": 10, "a.top.mp4": 20, "b.top.mp4": 30, "b.wrist.mp4": 40, "c.top.mp4": 50}
    )
    with pytest.raises(DataError, match=r"0\.tar/a has several films: a\.wrist\.mp4, a\.top\.mp4.*--data\.camera wrist"):  # fmt: skip
        open_source(tar)
    source = open_source(tar, camera="wrist")
    assert source.describe().cameras == ("wrist", "top") and source.describe().camera == "wrist"
    assert [number_of(source.read(i, [0])[0]) for i in range(2)] == [10, 40]
    assert [b.reason for b in source.broken] == [f"{tar}: c: has no film of 'wrist', but ['top']"]
    with pytest.raises(DataError, match=r"no camera 'left'; choose one of: wrist, top"):
        open_source(tar, camera="left")


def test_what_belongs_to_no_film_or_contradicts_it_is_warned_of(shard) -> None:
    tar = shard(
        {"a.mp4": 1, "a.json": b'{"fps": 25}', "b.mp4": 2, "b.json": b"[]", "c.npy": npy(ROWS)}
    )
    first, second = open_source(tar).describe().warnings
    assert first == "1 samples have no film (first: 0.tar/c)"
    assert second.startswith("1 of 2 samples say another fps") and "0.tar/a.mp4 (25, its film 10)" in second  # fmt: skip


def test_names_are_only_names(shard, tmp_path, number_of) -> None:
    tar = shard({"../../up.mp4": 10, "/abs/one.mp4": 20, "../../up.npy": npy(ROWS)})
    source = open_source(tar)
    assert [number_of(source.read(i, [0])[0]) for i in range(2)] == [10, 20]
    np.testing.assert_array_equal(source.actions(0), ROWS.astype(np.float32))
    assert not list(tmp_path.parent.rglob("up.*")) and not Path("/abs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(ROWS[:8]), "8 rows for 9 frames"),
        (npy(ROWS[:, :2]), "expected 3 numbers a row, got float64 [9, 2]"),
        (npy(np.arange(9)), "expected 3 numbers a row, got int64 [9]"),
        (npy(np.where(ROWS > 2.5, np.nan, ROWS)), "1 values are not finite"),
        (npy(ROWS[None]), "expected floats [n, A] or integers [n], got float64 [1, 9, 3]"),
        (npy(np.ones((9, 3), int)), "expected floats [n, A] or integers [n], got int64 [9, 3]"),
        (npy(ROWS.astype(complex)), "expected numbers, got complex128"),
        (npy([{"no": "pickle"}] * 9), "expected numbers, got object"),
        (npy(ROWS)[:-8], "208 bytes for float64 (9, 3)"),
        (npy(ROWS).replace(b"(9, 3)", b"(9**9"), "cannot be read"),
        (npy(ROWS).replace(b"(9, 3), }     ", b"(99999999, 3)}"), "216 bytes for float64"),
        (b"no array", "cannot be read: "),
    ],
)
def test_actions_that_do_not_fit(shard, content, message) -> None:
    tar = shard({"a.npy": npy(ROWS), "a.mp4": 1, "b.npy": content, "b.mp4": 1})
    source = open_source(tar)
    assert len(source.actions(0)) == 9
    with pytest.raises(DataError) as caught:
        source.actions(1)
    assert str(caught.value).startswith(f"{tar}: b.npy: column 'action'")
    assert message in str(caught.value)


def test_classes_that_are_none(shard) -> None:
    for values in ([-1] + [0] * 8, [10**7] + [0] * 8, [0.5] * 9):
        tar = shard({"a.mp4": 1, "a.npy": npy([1] * 9), "b.mp4": 1, "b.npy": npy(values)})
        with pytest.raises(DataError, match=r"0\.tar: b\.npy: .*expected classes from 0 on, got"):
            open_source(tar)
    ragged = json.dumps({"action": [[1], [1, 2]]}).encode()
    with pytest.raises(DataError, match=r"a\.json: column 'action' cannot be read"):
        open_source(shard({"a.mp4": 1, "a.json": ragged}))


def test_faults_name_the_member(shard) -> None:
    both = json.dumps({"action": [0] * 9}).encode()
    members = {"a.mp4": 1, "a.json": b'{"fps":', "c.mp4": 1, "c.npy": npy(ROWS), "c.json": both}
    tar = shard(members | {"d.mp4": 4})
    source = open_source(tar)
    assert [e.name for e in source.episodes] == ["0.tar/d.mp4"]
    first, second = [b.reason for b in source.broken]
    assert first.startswith(f"{tar}: a.json: cannot be read: Expecting value")
    assert second == f"{tar}: c.json: has the column 'action' that c.npy has, too"


def test_ends_that_hide_what_is_lost(shard, tmp_path) -> None:
    whole = shard({"a.mp4": 1, "b.mp4": 2})
    content = whole.read_bytes()
    with tarfile.open(whole) as archive:
        second = archive.getmember("b.mp4")
    for name, made, reason in (
        ("cut.tar", content[: second.offset], "has no end mark (cut off?)"),
        ("two.tar", content + content, "another archive follows its end: it is not read"),
        ("empty.tar", b"", "cannot be read as an uncompressed tar: empty file"),
    ):
        (tmp_path / "shards" / name).write_bytes(made)
        broken = {b.path.name: b.reason for b in open_source(whole.parent).broken}
        assert broken.pop(name) == f"{whole.parent / name}: {reason}"
    back = bytearray(content)
    back[second.offset + 124 : second.offset + 136] = (-1024).to_bytes(12, "big", signed=True)
    head = bytes(back[second.offset : second.offset + 512])
    total = sum(head[:148]) + 8 * 32 + sum(head[156:])
    back[second.offset + 148 : second.offset + 156] = b"%06o\0 " % total
    (tmp_path / "shards/back.tar").write_bytes(back)  # a size that leads back: no endless loop
    (found,) = [b for b in open_source(whole.parent).broken if b.path.name == "back.tar"]
    assert "a size of -1024 at byte" in found.reason


def test_actions_under_an_fps_and_of_some_samples_alone(shard, caplog) -> None:
    shard({"a.mp4": 0, "a.npy": npy(ROWS), "b.mp4": 20})
    config = DataConfig(path=shard({}, "1.tar").parent, frames_per_clip=3, split="all", workers=0)
    assert (
        ClipSet(config).matched_actions() is None and "b.mp4 has no column 'action'" in caplog.text
    )
    shard({"a.mp4": 0, "a.npy": npy(ROWS), "b.mp4": 20, "b.npy": npy(ROWS)})
    with pytest.raises(DataError, match=r"use stride \(--data.stride N --data.fps None\)"):
        ClipSet(replace(config, fps=10.0)).require_actions()
