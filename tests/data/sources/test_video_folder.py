"""Any folder of films: nested, of several containers, some of them broken."""

from __future__ import annotations

import logging

import pytest

from colaworld.data.errors import DataError
from colaworld.data.sources import open_source


def test_films_of_all_kinds_in_order_of_their_paths(tmp_path, film, number_of) -> None:
    film(tmp_path / "b.mp4", range(5))
    film(tmp_path / "a/deep/c.AVI", range(10, 18), codec="mpeg4")
    film(tmp_path / "a/d.gif", range(20, 24), codec="gif", height=40, width=100)
    film(tmp_path / ".hidden/e.mp4", range(3))
    (tmp_path / "notes.txt").write_text("no film")
    source = open_source(tmp_path)
    assert [e.name for e in source.episodes] == ["a/d.gif", "a/deep/c.AVI", "b.mp4"]
    assert [(e.frames, e.height, e.width) for e in source.episodes] == [
        (4, 40, 100),
        (8, 32, 80),
        (5, 32, 80),
    ]
    assert [number_of(f) for f in source.read(1, [7, 0])] == [17, 10]
    assert source.action_spec is None and source.actions(0) is None


def test_one_file_is_a_set_too(tmp_path, film) -> None:
    assert [e.name for e in open_source(film(tmp_path / "b.mp4", range(5))).episodes] == ["b.mp4"]


def test_broken_files_are_named_and_skipped(tmp_path, film, caplog) -> None:
    film(tmp_path / "good.mp4", range(5))
    whole = film(tmp_path / "bad.mp4", range(60)).read_bytes()
    (tmp_path / "bad.mp4").write_bytes(whole[:2000])
    with caplog.at_level(logging.WARNING):
        source = open_source(tmp_path)
    assert [e.name for e in source.episodes] == ["good.mp4"]
    assert [b.path.name for b in source.broken] == ["bad.mp4"] and "bad.mp4" in caplog.text


def test_nothing_to_use(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no video files in it \(looked for .*\.mp4"):
        open_source(tmp_path)
    (tmp_path / "a.mp4").write_text("x")
    with pytest.raises(DataError, match=r"none of its 1 video files(.|\n)*a\.mp4"):
        open_source(tmp_path)
