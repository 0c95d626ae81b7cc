"""Frames by index: exact for any order, key-frame distance, container and uneven times."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from colaworld.data import video_reader
from colaworld.data.errors import BrokenFileError


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
def test_every_frame_is_found_by_its_index(tmp_path, film, number_of, name, codec) -> None:
    path = film(tmp_path / name, range(50), codec=codec)
    info = video_reader.probe(path)
    assert (info.frames, info.height, info.width) == (50, 32, 80)
    assert info.fps == pytest.approx(10)
    for indices in ([0], [49], [13, 12, 12, 0, 48], range(50), range(23, 31)):
        shown = [number_of(f) for f in video_reader.read_frames(path, list(indices))]
        assert shown == list(indices)


def test_streaming_from_the_middle(tmp_path, film, number_of) -> None:
    path = film(tmp_path / "a.mp4", range(100, 160))
    assert [number_of(f) for f in video_reader.stream_frames(path, 17, 29)] == list(range(117, 129))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux lists them")
def test_a_film_is_read_by_the_thread_that_asks(tmp_path, film) -> None:
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("FFmpeg starts no further thread on one core")
    before = len(os.listdir("/proc/self/task"))
    reading = video_reader.stream_frames(film(tmp_path / "a.mp4", range(9)), 0, 9)
    next(reading)
    assert len(os.listdir("/proc/self/task")) <= before


def test_a_gif(tmp_path, film, number_of) -> None:
    path = film(tmp_path / "a.gif", range(12), codec="gif")
    assert video_reader.probe(path).frames == 12
    assert [number_of(f) for f in video_reader.read_frames(path, [11, 3])] == [11, 3]


def test_uneven_times_are_kept(tmp_path, film, number_of) -> None:
    ticks = [0, 10, 20, 60, 61, 100, 150]
    path = film(tmp_path / "a.mkv", range(7), times=ticks)
    np.testing.assert_allclose(
        video_reader.frame_times(path).seconds, np.array(ticks) / 100, atol=2e-3
    )
    assert [number_of(f) for f in video_reader.read_frames(path, [4, 5])] == [4, 5]


def test_a_changed_file_is_read_anew(tmp_path, film) -> None:
    path = film(tmp_path / "a.mp4", range(8))
    assert len(video_reader.frame_times(path).ticks) == 8
    film(path, range(20))
    assert len(video_reader.frame_times(path).ticks) == 20


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_picture_that_the_decoder_patched_up_is_damaged(tmp_path, film, number_of, name) -> None:
    path = film(tmp_path / name, range(200, 248))
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(video=0) if p.size]
    part = max(packets[13:24], key=len)[26:42]  # a key frame, at 20
    assert whole.count(part) == 1
    path.write_bytes(whole.replace(part, bytes(byte ^ 0x5A for byte in part)))
    for first, stop in ((0, 48), (15, 40), (20, 21), (22, 24)):
        wanted = max(first, 20)
        with pytest.raises(BrokenFileError, match=rf"{name}: frame {wanted} is damaged"):
            list(video_reader.stream_frames(path, first, stop))
    for index in (0, 19, 40, 47):
        assert number_of(video_reader.read_frames(path, [index])[0]) == 200 + index


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_a_film_that_was_cut_off_says_so(tmp_path, film, name, codec) -> None:
    path = film(tmp_path / name, range(48), codec=codec)
    assert video_reader.probe(path).notes == []
    with av.open(str(path)) as container:
        place = [p.pos for p in container.demux(video=0) if p.size][24]
    path.write_bytes(path.read_bytes()[:place])
    found = video_reader.probe(path)
    assert found.frames < 26 and found.notes == ["short"]


def test_broken_files_are_named(tmp_path: Path, film) -> None:
    whole = film(tmp_path / "whole.mp4", range(60), gop=2).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])  # the index at the end is gone
    text = tmp_path / "text.mp4"
    text.write_text("not a film")
    for path in (cut, text, tmp_path / "absent.mp4"):
        with pytest.raises(BrokenFileError, match=path.name):
            video_reader.probe(path)


def test_a_stream_that_ends_early_says_where(tmp_path, film) -> None:
    whole = film(tmp_path / "whole.mkv", range(60), gop=2).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    there = len(video_reader.frame_times(cut).ticks)
    assert 0 < there < 60
    with pytest.raises(BrokenFileError, match=r"cut\.mkv.*promised"):
        list(video_reader.stream_frames(cut, 0, 60))


def test_wrong_ranges_are_the_callers_fault(tmp_path, film) -> None:
    path = film(tmp_path / "a.mp4", range(5))
    with pytest.raises(ValueError, match="first=3, stop=3"):
        list(video_reader.stream_frames(path, 3, 3))
    with pytest.raises(ValueError, match="at least one"):
        video_reader.read_frames(path, [])


def test_a_turn_that_only_key_frames_tell_holds_for_all(tmp_path, film) -> None:
    """As H.264 itself can say it, without the container."""
    path = film(tmp_path / "plain.ts", range(30))
    with av.open(str(path)) as old, av.open(str(tmp_path / "told.ts"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        told = "h264_metadata=display_orientation=insert:rotate=90"
        change = av.BitStreamFilterContext(told, old.streams.video[0], stream)
        for packet in old.demux(old.streams.video[0]):
            for changed in change.filter(packet if packet.size else None):
                changed.stream = stream
                new.mux(changed)
    info = video_reader.probe(tmp_path / "told.ts")
    assert (info.height, info.width) == (80, 32)
    turned = np.stack(list(video_reader.stream_frames(tmp_path / "told.ts", 0, 30)))
    plain = np.stack(list(video_reader.stream_frames(path, 0, 30)))
    np.testing.assert_array_equal(turned, np.rot90(plain, 1, axes=(1, 2)))
    for index in range(30):
        (alone,) = video_reader.read_frames(tmp_path / "told.ts", [index])
        np.testing.assert_array_equal(alone, turned[index])
