"""Result files: whole or as they were, finite, and errors that name them."""

from __future__ import annotations

import json
import math

import pytest

from colaworld.files import FileError, read_json, write_atomically, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    write_json(path, {"a": [1.0, math.nan], "b": math.inf})
    assert json.loads(path.read_text()) == {"a": [1.0, None], "b": None}

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
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
