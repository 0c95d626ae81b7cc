"""Result files: whole or as they were, finite, and errors that name them."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os

import pytest

from colaworld.files import (
    FileError,
    FolderLock,
    check_recorded,
    check_seal,
    read_json,
    recorded,
    seal,
    write_atomically,
    write_json,
    write_refused,
)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    write_json(path, {"a": [1.0, math.nan], "b": math.inf})
    assert json.loads(path.read_text()) == {"a": [1.0, None], "b": None}

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        write_atomically(path, "half")
    assert json.loads(path.read_text())["a"][0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "deep" / "evaluation.json"
    with pytest.raises(FileError, match=r"evaluation\.json: cannot be read .*; the demo writes it"):
        read_json(path, made_by="the demo")
    write_atomically(path, "{half")
    with pytest.raises(FileError, match=r"evaluation\.json: not valid JSON"):
        read_json(path)
    write_json(path, {"a": (1, 2.5)})
    assert read_json(path) == {"a": [1, 2.5]}


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(FileError, match=r"config\.json: expected a file, found something else"):
        read_json(tmp_path / "config.json")


def test_nesting_without_end_is_no_json(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(FileError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_seal_is_of_everything_else(tmp_path):
    sealed = json.loads(json.dumps(seal({"a": (1, 2.5), 3: None, "b": {"c": "x"}})))
    assert check_seal(tmp_path, sealed) and not check_seal(tmp_path, {"a": 1})
    for change in ({"a": [1, 2.25]}, {"b": {"c": "y"}}, {"d": 0}, {"sha256": "0" * 64}):
        with pytest.raises(FileError, match="its values do not match the recorded sha256"):
            check_seal(tmp_path, {**sealed, **change})


def test_recorded_sums_are_compared_unless_asked_not_to(tmp_path, monkeypatch, caplog):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    values = {"colaworld": "1", "model": {}, "files": {file.name: recorded(file)}}
    write_json(tmp_path / "config.json", seal(values))
    check_recorded(tmp_path)
    file.write_bytes(b"Weights")
    with pytest.raises(FileError, match=r"model\.safetensors: its content does not match"):
        check_recorded(tmp_path)
    assert not caplog.records
    check_recorded(tmp_path, verify=False)
    monkeypatch.setenv("COLAWORLD_VERIFY", "0")
    check_recorded(tmp_path)
    assert caplog.text.count("loaded without comparing sums, as asked") == 2
    monkeypatch.undo()
    write_json(tmp_path / "config.json", {"colaworld": "0", "model": {}})  # of an earlier release
    check_recorded(tmp_path)
    assert "from before sums were recorded" in caplog.text
    caplog.clear()
    write_json(tmp_path / "config.json", {"model_type": "published", "files": 3})
    check_recorded(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "make room"), (errno.EFBIG, "raise the limit"), (errno.EROFS, "writable")],
)
def test_what_the_system_refused_is_told_apart(number, said, tmp_path):
    words = (
        f"Error while serializing: I/O error: told (os error {number})"  # as safetensors says it
    )
    for error in (OSError(number, os.strerror(number)), RuntimeError(words)):
        text, cause = write_refused(tmp_path / "none" / "x", error, need=2_000_000)
        assert said in text and "x: cannot be written (it needs 2.0 MB)" in text
        assert isinstance(cause, OSError) and cause.errno == number


def test_new_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "x")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_lock_that_is_refused_leaves_nothing_open(tmp_path):
    held, count = FolderLock(tmp_path), len(os.listdir("/proc/self/fd"))
    for shared in (False, True):
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path, shared=shared)
    assert len(os.listdir("/proc/self/fd")) == count
    tmp_path.rename(tmp_path.with_name("moved"))
    assert not held.in_place()
    tmp_path.mkdir()
    assert not held.in_place()
    held.close()
    one, two = FolderLock(tmp_path, shared=True), FolderLock(tmp_path, shared=True)
    assert one.in_place()
    one.close()
    two.close()


def test_a_file_system_without_locks_can_be_worked_on(tmp_path, monkeypatch, caplog):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = FolderLock(tmp_path)
    assert f"{tmp_path}: cannot be locked" in caplog.text and lock.in_place()
    lock.close()
