"""Films for a LeRobot set: taken over byte for byte where others read the same frames, else encoded."""

from __future__ import annotations

import os

import av
import numpy as np
import pytest

from colaworld.data import video_reader
from colaworld.data.config import EncodingConfig
from colaworld.data.errors import BrokenFileError
from colaworld.data.sources import open_source
from colaworld.data.sources.films import as_it_is, encode_episode, picture_statistics
from colaworld.data.sources.lerobot_writer import LeRobotWriter


def test_only_an_even_mp4_from_time_0_is_taken_over(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", range(20), fps=10)
    film(tmp_path / "b.mp4", range(20), times=[*range(0, 100, 10), *range(101, 201, 10)])
    film(tmp_path / "c.mp4", range(20), times=range(50, 250, 10))  # begins at 0.5 s
    film(tmp_path / "d.mkv", range(20), fps=10)
    film(tmp_path / "e.mp4", range(20), codec="mpeg4")
    source = open_source(tmp_path)
    names = [e.name for e in source.episodes]
    taken = {name: as_it_is(source, i, 10.0) for i, name in enumerate(names)}
    assert taken == {"a.mp4": True, "b.mp4": False, "c.mp4": False, "d.mkv": False, "e.mp4": False}
    assert not as_it_is(source, 0, 10.01)  # frame 19 would be 2 ms late


def test_turned_and_stretched_films_are_encoded(tmp_path, film) -> None:
    path = film(tmp_path / "a" / "a.mp4", range(8), height=32, width=80)
    for name, change in (("wide", {"sample_aspect_ratio": 2}), ("plain", {})):
        (tmp_path / name).mkdir()
        with av.open(str(path)) as old, av.open(str(tmp_path / name / "x.mp4"), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for key, value in change.items():
                setattr(stream.codec_context, key, value)
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        source = open_source(tmp_path / name)
        wide = source.episodes[0].width == 160
        assert as_it_is(source, 0, 10.0) is not wide
        assert wide == bool(change)


def test_an_encoded_film_is_whole_or_absent(tmp_path, film, number_of) -> None:
    film(tmp_path / "set" / "a.mkv", range(30), fps=10)
    source, out = open_source(tmp_path / "set"), tmp_path / "films" / "0.mp4"

    def stop(frame: int) -> None:
        if frame == 12:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        encode_episode(source, 0, out, fps=10.0, encoding=EncodingConfig(), step=stop)
    assert list(out.parent.iterdir()) == []
    encode_episode(source, 0, out, fps=10.0, encoding=EncodingConfig())
    frames = video_reader.read_frames(out, range(30))
    assert [number_of(frame) for frame in frames] == list(range(30))
    assert [path.name for path in out.parent.iterdir()] == ["0.mp4"]


def test_a_writer_takes_films_over(tmp_path, film) -> None:
    for i, frames in enumerate((12, 7)):
        film(tmp_path / "set" / f"{i}.mp4", range(100 * i, 100 * i + frames), fps=10)
    source = open_source(tmp_path / "set")
    new = tmp_path / "new"
    with LeRobotWriter(new, fps=10, height=32, width=80, action=None) as writer:
        for e in source.episodes:
            writer.add_film(e.path, e.frames, picture_statistics(source, e.index), None)
        with pytest.raises(ValueError, match="one action per frame"):
            writer.add_film(e.path, 7, picture_statistics(source, 1), np.zeros(7, int))
        writer.finish()
    made = open_source(new)
    assert [e.frames for e in made.episodes] == [12, 7]
    for e in source.episodes:
        assert os.path.samefile(e.path, made.episodes[e.index].path)
        frames = range(e.frames)
        np.testing.assert_array_equal(made.read(e.index, frames), source.read(e.index, frames))


def test_a_film_that_ends_early_is_broken(tmp_path, film, monkeypatch) -> None:
    film(tmp_path / "set" / "a.mp4", range(30), fps=10)
    source = open_source(tmp_path / "set")
    whole = source.stream
    monkeypatch.setattr(source, "stream", lambda e, first, stop: whole(e, first, stop - 4))
    with pytest.raises(BrokenFileError, match="30 frames wanted, 26 found"):
        encode_episode(source, 0, tmp_path / "x.mp4", fps=10.0, encoding=EncodingConfig())
    assert not (tmp_path / "x.mp4").exists()
