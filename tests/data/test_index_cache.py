"""What was found out about files is remembered, and nothing but time depends on it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from colaworld.data import index_cache, video_reader
from colaworld.data.errors import BrokenFileError
from colaworld.data.sources import open_source


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COLAWORLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def films(tmp_path, film) -> Path:
    film(tmp_path / "films/a.mp4", range(9))
    film(tmp_path / "films/b.mkv", range(7))
    (tmp_path / "films/bad.mp4").write_text("not a film")
    (tmp_path / "films/empty.mp4").write_bytes(b"")
    return tmp_path / "films"


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """Names of the videos that were opened to look at them."""
    names: list[str] = []
    probe = video_reader.probe

    def counted(video):
        names.append(Path(str(video)).name)
        return probe(video)

    monkeypatch.setattr(video_reader, "probe", counted)
    return names


def _seen(path: Path) -> tuple:
    source = open_source(path)
    return source.episodes, source.broken


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def test_a_second_open_probes_nothing_and_finds_the_same(films, cache, probed) -> None:
    first = _seen(films)
    assert sorted(probed) == ["a.mp4", "b.mkv", "bad.mp4", "empty.mp4"] and len(first[1]) == 2
    probed.clear()
    assert _seen(films) == first and probed == []
    shutil.rmtree(cache)
    assert _seen(films) == first and len(probed) == 4


def test_only_what_changed_is_probed_again(films, cache, probed, film) -> None:
    _seen(films)
    probed.clear()
    film(films / "a.mp4", range(20))
    film(films / "new.mp4", range(5))
    (films / "empty.mp4").unlink()
    episodes, broken = _seen(films)
    assert sorted(probed) == ["a.mp4", "new.mp4"] and len(broken) == 1
    assert [(e.name, e.frames) for e in episodes] == [("a.mp4", 20), ("b.mkv", 7), ("new.mp4", 5)]
    probed.clear()
    _touch(films / "b.mkv")  # the same size, another time
    _seen(films)
    assert probed == ["b.mkv"]
    (file,) = (cache / "index").iterdir()
    assert "empty" not in file.read_text()  # what is gone is forgotten


def test_members_of_a_tar(films, tmp_path, cache, probed) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for name in ("0.tar", "1.tar"):
        with tarfile.open(tars / name, "w") as archive:
            archive.add(films / "a.mp4", "a.mp4")
            archive.add(films / "bad.mp4", "bad.mp4")
    first = _seen(tars)
    assert len(probed) == 4 and len(first[1]) == 2
    probed.clear()
    assert _seen(tars) == first and probed == []
    with tarfile.open(tars / "1.tar", "a") as archive:
        archive.add(films / "b.mkv", "b.mkv")
    assert [e.frames for e in _seen(tars)[0]] == [9, 9, 7] and len(probed) == 3


def _flip(file: Path) -> None:
    text = file.read_text()
    assert text.count('"frames": 9') == 1
    file.write_text(text.replace('"frames": 9', '"frames": 8'))


def _older(file: Path) -> None:
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "version": 0}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), 1),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), 1),
        (lambda file: file.write_text("[" * 100_000), 1),
        (lambda file: file.write_text("[]"), 1),
        (lambda file: file.write_text('{"version": 1}'), 1),
        (_flip, 1),
        (_older, 0),  # not a fault
    ],
)
def test_a_damaged_cache_is_ignored_and_made_anew(
    films, cache, probed, caplog, damage, said
) -> None:
    first = _seen(films)
    (file,) = (cache / "index").iterdir()
    damage(file)
    probed.clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "colaworld.data.index_cache"):
        assert _seen(films) == first
    assert len(probed) == 4 and sum("probed again" in m for m in caplog.messages) == said
    probed.clear()
    assert _seen(films) == first and probed == []


def test_a_cache_that_cannot_be_written(films, tmp_path, monkeypatch, probed, caplog) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COLAWORLD_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "colaworld.data.index_cache"):
        first = _seen(films)
    assert sum(str(tmp_path / "file") in m for m in caplog.messages) <= 2
    assert any("not kept" in m for m in caplog.messages)
    assert _seen(films) == first and len(probed) == 8


def test_what_may_pass_is_not_remembered(films, cache, monkeypatch) -> None:
    probe = video_reader.probe

    def refused(video):
        try:
            raise PermissionError("not yours")
        except PermissionError as error:
            raise BrokenFileError(f"{video}: cannot be opened as a video: {error}") from error

    with monkeypatch.context() as patch:
        patch.setattr(video_reader, "probe", lambda v: (refused if "a.mp4" in str(v) else probe)(v))
        assert len(_seen(films)[0]) == 1
    assert len(_seen(films)[0]) == 2


def test_a_first_look_that_is_interrupted_is_not_lost(films, cache, monkeypatch, probed) -> None:
    counted = video_reader.probe

    def interrupted(video):
        if "bad" in str(video):
            raise KeyboardInterrupt
        return counted(video)

    with monkeypatch.context() as patch:
        patch.setattr(video_reader, "probe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _seen(films)
    _seen(films)
    assert probed == ["a.mp4", "b.mkv", "bad.mp4", "empty.mp4"]


def test_many_at_once_leave_a_whole_cache(films, cache, probed) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: _seen(films), range(16)))
    assert all(f == found[0] for f in found)
    probed.clear()
    assert _seen(films) == found[0] and probed == []
    assert len(list((cache / "index").iterdir())) == 1


def test_where_it_lies(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COLAWORLD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert index_cache.cache_folder() == tmp_path / ".cache/colaworld"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert index_cache.cache_folder() == Path("/x/colaworld")
    monkeypatch.setenv("COLAWORLD_CACHE", "/own")
    assert index_cache.cache_folder() == Path("/own")


def test_without_a_home_nothing_is_kept(films, monkeypatch, probed) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("COLAWORLD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert _seen(films) == _seen(films) and len(probed) == 8
