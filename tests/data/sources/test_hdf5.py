"""Demonstrations in HDF5: frames by index, actions on their frames, and every way a file can be wrong."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colaworld.cli.main import main
from colaworld.contracts import ActionSpec
from colaworld.data import hdf5_file
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.loader import ClipLoader
from colaworld.data.sources import open_source

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
VIEW, WRIST = "agentview_rgb", "eye_in_hand_rgb"


def frames_of(demo: int, length: int) -> np.ndarray:
    """[length, 6, 8, 3]; a frame's first pixel is (demo, its number, .)."""
    made = np.random.default_rng(demo).integers(0, 256, (length, 6, 8, 3)).astype(np.uint8)
    made[:, 0, 0, 0], made[:, 0, 0, 1] = demo, np.arange(length)
    return made


def actions_of(demo: int, length: int) -> np.ndarray:
    return demo + np.arange(length)[:, None] * [0.5, 0.25]


def write(
    path: Path,
    lengths: tuple[int, ...] = (9, 12, 7),
    *,
    fps: Any = 20,
    attributes: dict[str, Any] | None = None,
    **storage: Any,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if fps is not None:
            data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": fps}})
        data.attrs["total"], data.attrs["num_demos"] = sum(lengths), len(lengths)
        data.attrs.update(attributes or {})
        for i, length in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = length
            demo["actions"] = actions_of(i, length)
            demo["dones"] = (np.arange(length) == length - 1).astype(np.int64)
            demo["obs/ee_pos"] = np.zeros((length, 3))
            demo.create_dataset(f"obs/{VIEW}", data=frames_of(i, length), **storage)
            demo[f"obs/{WRIST}"] = 255 - frames_of(i, length)
    return path


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


@pytest.mark.parametrize("storage", [{}, {"chunks": (3, 6, 8, 1), "compression": "gzip"}])
def test_frames_and_actions_of_each_demonstration(tmp_path, storage) -> None:
    lengths = (9, *[3] * 9, 12)  # demo_10 comes after demo_9
    source = open_source(write(tmp_path / "set/task.hdf5", lengths, **storage).parent)
    assert source.kind == "hdf5" and source.uniform_fps and not source.broken
    assert [e.name for e in source.episodes] == [f"task.hdf5/demo_{i}" for i in range(11)]
    assert [(e.frames, e.fps, e.height, e.width) for e in source.episodes] == [
        (n, 20.0, 6, 8) for n in lengths
    ]
    frames = frames_of(10, 12)
    np.testing.assert_array_equal(source.read(10, [11, 2, 2, 7, 8]), frames[[11, 2, 2, 7, 8]])
    np.testing.assert_array_equal(np.stack(list(source.stream(10, 3, 9))), frames[3:9])
    np.testing.assert_allclose(source.times(1), [0, 0.05, 0.1])
    assert source.action_spec == ActionSpec("actions", "continuous", 2)
    for i, n in enumerate(lengths):
        assert source.actions(i).dtype == np.float32
        np.testing.assert_array_equal(source.actions(i), actions_of(i, n))
    about = source.describe()
    assert about.camera == VIEW and about.cameras == (VIEW, WRIST) and about.warnings == ()
    assert about.columns == ("actions", "dones")
    wrist = open_source(source.path, camera=WRIST, action_column="dones")
    np.testing.assert_array_equal(wrist.read(0, range(9)), 255 - frames_of(0, 9))
    assert wrist.action_spec == ActionSpec("dones", "discrete", 2)
    assert wrist.actions(0).tolist() == [0] * 8 + [1]
    with pytest.raises(DataError, match=f"no camera 'top'; choose one of: {VIEW}, {WRIST}"):
        open_source(source.path, camera="top")
    with pytest.raises(ValueError, match=r"demo_1: frame 3 asked, it has 3 frames"):
        source.read(1, [3])


def test_no_more_is_read_than_is_asked_for(tmp_path, monkeypatch) -> None:
    source = open_source(write(tmp_path / "task.hdf5", (40,)))
    monkeypatch.setattr("colaworld.data.sources.hdf5._BLOCK", 4 * 6 * 8 * 3)
    read, whole = [], h5py.Dataset.__getitem__

    def counted(array: Any, key: Any) -> Any:
        made = whole(array, key)
        read.append(len(made))
        return made

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    frames = source.stream(0, 10, 21)
    next(frames)
    assert read == [4]
    assert len(list(frames)) == 10 and read == [4, 4, 3]
    source.read(0, [5, 6, 30])
    assert read[3:] == [2, 1]


def test_a_file_per_task_and_one_file(tmp_path, film) -> None:
    for name in ("b/two.h5", "a_demo.hdf5"):
        write(tmp_path / "set" / name, (5, 6))
    (tmp_path / "set/notes.txt").write_text("not read")
    names = [e.name for e in open_source(tmp_path / "set").episodes]
    assert names == [f"{n}/demo_{i}" for n in ("a_demo.hdf5", "b/two.h5") for i in (0, 1)]
    assert len(open_source(tmp_path / "set/b/two.h5").episodes) == 2
    source = open_source(tmp_path / "set")
    assert source.identity(2) == ("b/two.h5/demo_0", (tmp_path / "set/b/two.h5").stat().st_size)
    film(tmp_path / "set/a.mp4", range(5))  # then it is a folder of videos
    assert open_source(tmp_path / "set").kind == "video_folder"


def test_threads_read_the_same_file(tmp_path) -> None:
    path = write(tmp_path / "task.hdf5", (9, 12, 7), chunks=(1, 6, 8, 3))
    source = open_source(path)
    first, second = source.stream(0, 0, 9), source.stream(1, 0, 12)
    next(first), next(second)
    assert len(list(first)) == 8  # and its file is closed, the other's is not
    np.testing.assert_array_equal(np.stack(list(second)), frames_of(1, 12)[1:])
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: source.read(i % 3, [i % 7])[0, 0, 0, :2], range(60)))
    assert [m.tolist() for m in made] == [[i % 3, i % 7] for i in range(60)]
    with h5py.File(path, "r+") as file:  # no handle is left open
        file.attrs["free"] = True


def test_the_rate_is_the_files_or_is_set(tmp_path, capsys) -> None:
    path = write(tmp_path / "task.hdf5", fps=None)
    with pytest.raises(DataError, match=r"task\.hdf5: does not say .*--data\.recorded-fps N"):
        open_source(path)
    config = DataConfig(path=path, recorded_fps=10, fps=5, frames_per_clip=3, split="all")
    assert ClipSet(config).stride(0) == 2
    assert main(["data", "inspect", str(path), "--recorded-fps", "12.5"]) == 0
    assert "12.5" in capsys.readouterr().out
    other = open_source(write(tmp_path / "said.hdf5", fps=20), recorded_fps=10)
    assert other.episodes[0].fps == 10
    (warning,) = other.describe().warnings
    assert (
        warning
        == f"1 files say another rate than recorded_fps, which counts (first: {other.path}: 20)"
    )
    (tmp_path / "films").mkdir()
    with pytest.raises(DataError, match="a set of the kind 'video_folder' says its own rate"):
        open_source(tmp_path / "films", recorded_fps=10)


def test_libero_films_after_each_action(tmp_path) -> None:
    told = {"bddl_file_name": "kitchen.bddl", "macros_image_convention": "opengl"}
    source = open_source(write(tmp_path / "task.hdf5", attributes=told))
    wanted = actions_of(1, 12)[[*range(1, 12), 11]]  # row t + 1 leads from frame t to t + 1
    np.testing.assert_array_equal(source.actions(1), wanted)
    upside, moved = source.describe().warnings
    assert "upside down" in upside and "read as they are" in upside
    assert "their actions are moved by one row" in moved
    np.testing.assert_array_equal(source.read(1, [4])[0], frames_of(1, 12)[4])
    assert len(open_source(source.path, action_column=None).describe().warnings) == 1


def _replace(name: str, **options: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def _delete(name: str) -> Callable[[Any], None]:
    return lambda file: file.__delitem__(name)


AT = f"data/demo_1/obs/{VIEW}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_delete(AT), f"demo_1: no frames of '{VIEW}'; obs holds ee_pos float64 [12, 3], {WRIST}"),
        (_replace(AT, data=np.zeros((12, 6, 8, 3), np.float32)), f"obs holds {VIEW} float32 [12, 6, 8, 3]"),
        (_replace(AT, data=np.ones((12, 3, 6, 8), np.uint8)), f"obs holds {VIEW} uint8 [12, 3, 6, 8]"),
        (_replace(AT, data=frames_of(1, 11)), "num_samples is 12, its views have [11, 12] frames"),
        (_replace(AT, shape=(12, 6, 8, 3), dtype="u1"), f"obs/{VIEW}: not all of it was written"),
        (_replace(AT, shape=(12, 6, 8, 3), dtype="u1", chunks=(1, 6, 8, 3)), "not all of it was written"),
        (_replace(AT, shape=(0, 6, 8, 3), dtype="u1"), f"obs/{VIEW}: is empty"),
        (_replace(AT, shape=(12, 6, 40000, 3), dtype="u1", chunks=(1, 6, 8, 3)), "frames of (6, 40000)"),
        (_delete("data/demo_1/obs"), "/data/demo_1/obs: missing"),
        (_replace("data/demo_1/obs", data=[1]), "/data/demo_1/obs: is no group"),
        (_replace("data/demo_1", data=[1]), "/data/demo_1: is no group"),
        (_delete("data/demo_1"), "data: num_demos is 3, but it holds 2: are some gone?"),
    ],
)  # fmt: skip
def test_a_demonstration_that_does_not_fit_is_named_and_left_out(tmp_path, change, reason) -> None:
    path = write(tmp_path / "task.hdf5")
    edit(path, change)
    source = open_source(path)
    assert [e.name for e in source.episodes] == ["task.hdf5/demo_0", "task.hdf5/demo_2"]
    assert all(b.reason.startswith(f"{path}: ") for b in source.broken)
    assert reason in source.broken[0].reason
    with pytest.raises(DataError, match="of 3 files or episodes are broken"):
        ClipSet(DataConfig(path=path, frames_per_clip=3))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "data: cannot be read: .*truncated"),
        (lambda path: path.write_bytes(b"no HDF5"), "cannot be read: .*signature"),
        (lambda path: path.write_bytes(b""), "cannot be read: "),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is a FIFO, not a file"),
        (lambda path: edit(path, _delete("data")), "/data: missing"),
        (lambda path: edit(path, lambda f: f["data"].attrs.update(env_args="{")), "env_args is no JSON"),
        (lambda path: edit(path, lambda f: f["data"].attrs.update(env_args='{"env_kwargs": {"control_freq": 0}}')), "control_freq: expected frames per second, got 0"),
        (lambda path: edit(path, lambda f: f["data"].attrs.update(env_args="[1]")), "control_freq: expected frames per second, got 'no object'"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_named(tmp_path, damage, reason) -> None:
    good, bad = write(tmp_path / "set/a.hdf5"), write(tmp_path / "set/b.hdf5")
    damage(bad)
    source = open_source(good.parent)
    assert len(source.episodes) == 3
    (broken,) = source.broken
    assert broken.path == bad
    assert broken.reason.startswith(f"{bad}: ")
    assert re.search(reason, broken.reason)
    good.unlink()
    with pytest.raises(DataError, match=r"none of its 1 demonstrations in HDF5 files can be read"):
        open_source(good.parent)


def test_nothing_outside_a_file_is_read(tmp_path) -> None:
    other = write(tmp_path / "other/secret.hdf5")
    (tmp_path / "raw").write_bytes(frames_of(1, 12).tobytes())
    size = frames_of(1, 12).nbytes

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((12, 6, 8, 3), "u1")
        layout[:] = h5py.VirtualSource(str(other), AT, (12, 6, 8, 3))
        del file[AT]
        file.create_virtual_dataset(AT, layout)

    for change, reason in (
        (lambda f: f.__setitem__("data/demo_1", h5py.ExternalLink(str(other), "data/demo_1")), "demo_1: is a link"),
        (lambda f: f.__setitem__("data/demo_1", h5py.SoftLink("/data/demo_0")), "demo_1: is a link"),
        (lambda f: f.__setitem__(AT, h5py.ExternalLink(str(other), AT)), f"obs holds {VIEW} (a link)"),
        (_replace(AT, shape=(12, 6, 8, 3), dtype="u1", external=[(str(tmp_path / "raw"), 0, size)]), "its values lie in other files"),
        (virtual, "its values lie in other files"),
    ):  # fmt: skip
        path = write(tmp_path / "task.hdf5")
        if change.__name__ == "<lambda>":
            name = AT if "obs" in reason else "data/demo_1"
            edit(path, _delete(name))
        edit(path, change)
        source = open_source(path)
        assert [e.name[-6:] for e in source.episodes] == ["demo_0", "demo_2"]
        assert reason in source.broken[0].reason
    path = write(tmp_path / "task.hdf5")
    edit(path, _delete("data/demo_1/actions"))
    edit(path, lambda f: f.__setitem__("data/demo_1/actions", h5py.ExternalLink(str(other), "x")))
    with pytest.raises(DataError, match=r"demo_1/actions: is a link"):
        open_source(path).actions(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((11, 2)), r"\[11, 2\] for 12 frames; expected a row each"),
        (np.zeros((12, 3)), r"expected 2 numbers a row, got float64 \[12, 3\]"),
        (np.full((12, 2), np.nan), "24 values are not finite"),
        (np.zeros((12, 2, 1)), r"\[12, 2, 1\] for 12 frames"),
        (np.array([b"a"] * 12), "expected floats"),
        (np.ones((12, 2), int), "expected floats"),
        (None, " is missing"),
    ],
)
def test_actions_that_do_not_fit(tmp_path, values, message) -> None:
    path = write(tmp_path / "task.hdf5")
    edit(path, _delete("data/demo_1/actions"))
    if values is not None:
        edit(path, lambda file: file["data/demo_1"].create_dataset("actions", data=values))
    source = open_source(path)
    assert len(source.actions(0)) == 9
    with pytest.raises(DataError, match=rf"task\.hdf5: demo_1: column 'actions'.*{message}"):
        source.actions(1)
    assert open_source(path, action_column="none").action_spec is None


def test_a_file_that_changes_while_it_is_used(tmp_path) -> None:
    path = write(tmp_path / "task.hdf5")
    source = open_source(path)
    write(path, (9, 13, 7))
    with pytest.raises(BrokenFileError, match=r"demo_1: has changed since it was opened"):
        source.read(1, [3])
    _truncate(path)
    with pytest.raises(BrokenFileError, match=r"task\.hdf5: demo_0: cannot be read"):
        list(source.stream(0, 0, 9))


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch, capsys) -> None:
    path = write(tmp_path / "task.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'colaworld\[hdf5\]'"):
        open_source(path)
    assert main(["data", "inspect", str(path)]) != 0
    assert "colaworld[hdf5]" in capsys.readouterr().err


def test_clips_of_it(tmp_path) -> None:
    path = write(tmp_path / "set/task.hdf5").parent
    config = DataConfig(
        path=path, frames_per_clip=3, split="all", scene_cut_threshold=0, stride=2, workers=2
    )
    loader = ClipLoader(config, batch_size=4, seed=0, with_actions=True)
    for _ in range(5):
        batch = next(loader)
        for b in range(4):
            demo, start = int(batch.episode[b]), int(batch.start[b])
            wanted = frames_of(demo, (9, 12, 7)[demo])[start : start + 5 : 2]
            np.testing.assert_array_equal(batch.frames[b].permute(0, 2, 3, 1).numpy(), wanted)
            rows = actions_of(demo, 12)[start : start + 4].reshape(2, 4)
            np.testing.assert_array_equal(batch.actions[b].numpy(), rows)
    loader.close()


def test_a_file_on_which_the_library_hangs_is_named(tmp_path, monkeypatch) -> None:
    good, bad = write(tmp_path / "good.hdf5"), write(tmp_path / "bad.hdf5")
    content = bytearray(bad.read_bytes())
    heap = content.index(b"GCOL")  # where the text of env_args lies
    content[heap + 16 : heap + 32] = bytes(16)
    bad.write_bytes(content)
    open_source(good)  # starts the child with all its patience
    monkeypatch.setattr("colaworld.data.hdf5_file._PATIENCE", 1.0)
    with pytest.raises(
        DataError, match=rf"{bad}: cannot be read: HDF5's library says nothing for 1 s"
    ):
        open_source(bad)
    monkeypatch.setattr("colaworld.data.hdf5_file._PATIENCE", 60.0)
    monkeypatch.setattr(hdf5_file._CHILD, "ask", lambda file: None)
    told = hdf5_file.look_through(good)["broken"]
    assert told == [f"{good}: damaged: HDF5's library ends the process that opens it"]


def test_the_child_is_started_again_where_it_has_ended(tmp_path) -> None:
    path = write(tmp_path / "task.hdf5")
    assert len(hdf5_file.look_through(path)["demos"]) == 3
    hdf5_file._CHILD._process.kill()
    assert len(hdf5_file.look_through(path)["demos"]) == 3
    path.unlink()
    with pytest.raises(FileNotFoundError):
        hdf5_file.look_through(path)


def test_two_rates_under_one_fps_put_unlike_actions_into_a_step(tmp_path, caplog) -> None:
    write(tmp_path / "set/a.hdf5", fps=20)
    write(tmp_path / "set/b.hdf5", fps=10)
    config = DataConfig(path=tmp_path / "set", frames_per_clip=3, split="all", fps=10.0)
    clips = ClipSet(config)
    assert clips.matched_actions() is None and "2 and 1 actions of column" in caplog.text
    with pytest.raises(DataError, match="2 and 1 actions of column 'actions' between two frames"):
        ClipLoader(config, batch_size=2, seed=0, with_actions=True)
    assert ClipSet(replace(config, fps=None)).matched_actions() is not None


def test_actions_that_not_every_demonstration_has_are_left_out(tmp_path, caplog) -> None:
    """Before a long training, not behind it."""
    path = write(tmp_path / "set/task.hdf5")
    edit(path, _delete("data/demo_1/actions"))
    config = DataConfig(path=path.parent, frames_per_clip=3, split="all", scene_cut_threshold=0)
    assert ClipSet(config).matched_actions() is None
    assert "left out" in caplog.text and "demo_1 has no column 'actions'" in caplog.text
    with pytest.raises(DataError, match="demo_1 has no column 'actions'"):
        ClipLoader(config, batch_size=2, seed=0, with_actions=True)
