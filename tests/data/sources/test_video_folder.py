"""Any folder of films: nested, of several containers, some of them broken."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import av
import numpy as np
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


def test_broken_files_are_named_and_skipped(tmp_path, film) -> None:
    film(tmp_path / "good.mp4", range(5))
    whole = film(tmp_path / "bad.mp4", range(60)).read_bytes()
    (tmp_path / "bad.mp4").write_bytes(whole[:2000])
    source = open_source(tmp_path)
    assert [e.name for e in source.episodes] == ["good.mp4"]
    assert [b.path.name for b in source.broken] == ["bad.mp4"]


def test_nothing_to_use(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no video files in it \(looked for .*\.mp4"):
        open_source(tmp_path)
    (tmp_path / "a.mp4").write_text("x")
    with pytest.raises(DataError, match=r"none of its 1 video files(.|\n)*a\.mp4"):
        open_source(tmp_path)


def test_what_is_no_file_is_named_and_never_opened(tmp_path, film, monkeypatch) -> None:
    film(tmp_path / "good.mp4", range(5))
    os.mkfifo(tmp_path / "pipe.mp4")
    os.symlink(tmp_path / "gone", tmp_path / "dead.mp4")
    monkeypatch.chdir(tmp_path)  # a socket's name may be 100 bytes at most
    with socket.socket(socket.AF_UNIX) as heard:
        heard.bind("heard.mp4")
    source = open_source(tmp_path)
    assert [e.name for e in source.episodes] == ["good.mp4"]
    assert [b.reason.removeprefix(f"{tmp_path}/") for b in source.broken] == [
        "dead.mp4: cannot be opened as a video: No such file or directory",
        "heard.mp4: is a socket, not a file",
        "pipe.mp4: is a FIFO, not a file",
    ]
    with pytest.raises(DataError, match=r"pipe\.mp4: is a FIFO, not a file"):
        open_source(tmp_path / "pipe.mp4")


def test_links_to_files_are_followed_and_linked_folders_are_named(
    tmp_path, film, number_of
) -> None:
    film(tmp_path / "other/a.mp4", range(70, 75))
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "other", tmp_path / "set/linked")
    with pytest.raises(
        DataError, match=r"no video files.*linked folders are not followed: .*/linked"
    ):
        open_source(tmp_path / "set")
    os.symlink(tmp_path / "other/a.mp4", tmp_path / "set/b.mp4")
    source = open_source(tmp_path / "set")
    assert [number_of(f) for f in source.read(0, [3])] == [73] and source.broken == []
    (warning,) = source.describe().warnings
    assert warning.startswith(f"linked folders are not followed: {tmp_path}/set/linked;")


@pytest.mark.parametrize(
    "name", ["http:/127.0.0.1:9/a.mp4", "file:x.mp4", "concat:a.mp4", "data:.mp4"]
)
def test_no_name_is_a_url(tmp_path, film, number_of, monkeypatch, name) -> None:
    film(tmp_path / name, range(40, 50))
    monkeypatch.chdir(tmp_path)
    source = open_source(Path("."))
    assert source.broken == [] and [number_of(f) for f in source.read(0, [7])] == [47]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.mp4", "ffconcat version 1.0\nfile inner.mp4\n"),
        ("stream.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("list.ts", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ninner.mp4\n#EXT-X-ENDLIST\n"),
    ],
)
def test_playlists_by_the_name_of_a_film_open_nothing(tmp_path, film, name, text) -> None:
    film(tmp_path / "inner.mp4", range(5))
    (tmp_path / name).write_text(text)
    source = open_source(tmp_path)
    assert [e.name for e in source.episodes] == ["inner.mp4"]
    (broken,) = source.broken
    assert broken.path.name == name and "Errno" not in broken.reason


def test_one_bad_file_of_any_kind_costs_no_other(tmp_path, film) -> None:
    good = film(tmp_path / "good.mp4", range(5)).read_bytes()
    (tmp_path / "codec.mp4").write_bytes(good.replace(b"avc1", b"zzzz"))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a film")
    with av.open(str(tmp_path / "cover.mp4"), "w") as container:  # a song with its cover
        sound, art = container.add_stream("aac", rate=8000), container.add_stream("mjpeg", rate=1)
        art.height, art.width, art.pix_fmt = 16, 16, "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        still = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
        container.mux(art.encode(still.reformat(format="yuvj420p")))
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        heard.sample_rate = 8000
        container.mux([*sound.encode(heard), *sound.encode()])
    source = open_source(tmp_path)
    assert [e.name for e in source.episodes] == ["good.mp4"]
    reasons = {b.path.name: b.reason for b in source.broken}
    assert reasons.keys() == {"codec.mp4", "cover.mp4", "empty.mp4", "text.mp4"}
    assert all("Errno" not in reason for reason in reasons.values())
    assert "holds no video stream but a cover picture" in reasons["cover.mp4"]
    assert "one of an unknown codec" in reasons["codec.mp4"]
    assert reasons["text.mp4"].endswith("as a video: Invalid data found when processing input")


def test_names_that_are_no_text_are_spelled_out(tmp_path, film, number_of) -> None:
    film(tmp_path / "good.mp4", range(40, 45)).rename(tmp_path / os.fsdecode(b"\xe9.mp4"))
    (tmp_path / "red \x1b[31m\nbad.mp4").write_text("not a film")
    source = open_source(tmp_path)
    assert [number_of(f) for f in source.read(0, [2])] == [42]
    assert f"{tmp_path}/red \\x1b[31m\\nbad.mp4: cannot" in source.broken[0].reason


def test_what_a_film_is_like_is_said_once_for_all(tmp_path, film) -> None:
    for name in ("a", "b"):
        film(tmp_path / f"{name}.mp4", range(20), fps=10)
    with av.open(str(tmp_path / "c.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 80, "yuv420p"
        stream.codec_context.color_trc = 18  # HLG
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 80, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    (warning,) = open_source(tmp_path).describe().warnings
    assert warning.startswith("1 of 3 videos are HDR (PQ or HLG)") and "(first: c.mp4)" in warning
    assert open_source(tmp_path).describe().warnings == (warning,)  # remembered
