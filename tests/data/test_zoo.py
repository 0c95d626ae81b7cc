"""Every frame of many kinds of film, in sequence and alone, is the one FFmpeg shows."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from colaworld.data import video_reader

_spec = importlib.util.spec_from_file_location("zoo", Path(__file__).with_name("zoo.py"))
assert _spec is not None and _spec.loader is not None
zoo = sys.modules["zoo"] = importlib.util.module_from_spec(_spec)  # dataclasses look there
_spec.loader.exec_module(zoo)


@pytest.mark.parametrize("film", zoo.ZOO, ids=lambda film: film.name)
def test_every_frame_is_the_one_that_ffmpeg_shows(tmp_path, film) -> None:
    path = tmp_path / film.name
    try:
        film.make(path)
    except av.codec.codec.UnknownCodecError as error:
        pytest.skip(f"this FFmpeg has no encoder {error}")
    truth = zoo.reference(film, path)
    info = video_reader.probe(path)
    assert info.frames == len(truth) == film.frames
    assert (info.height, info.width) == truth[0].shape[:2]
    assert tuple(info.notes) == film.notes
    inside = list(video_reader.stream_frames(path, 0, info.frames))
    for shown, true in zip(inside, truth, strict=True):
        if film.filters:  # another order of turning and converting: colours at edges differ
            assert np.abs(shown.astype(int) - true).mean() < 5
        else:
            np.testing.assert_array_equal(shown, true)
    for index in np.random.default_rng(0).permutation(info.frames):
        (alone,) = video_reader.read_frames(path, [index])
        np.testing.assert_array_equal(alone, inside[index], f"frame {index}")
    seconds = video_reader.frame_times(path).seconds
    assert len(seconds) == info.frames and seconds[0] == 0 and np.all(np.diff(seconds) > 0)
    if info.frames > 1 and not info.notes:
        assert info.fps == pytest.approx(len(seconds) / (seconds[-1] + seconds[1]), rel=0.12)


def test_neighbours_differ_by_more_than_is_allowed() -> None:
    """What the test above lets pass is less than a frame too many or too few would be."""
    near = [
        np.abs(zoo.picture(i, 48, 64).astype(int) - zoo.picture(i + 1, 48, 64)).mean()
        for i in range(80)
    ]
    assert min(near) > 8


def test_there_are_enough_of_them() -> None:
    assert len(zoo.ZOO) >= 60 and len({film.name for film in zoo.ZOO}) == len(zoo.ZOO)
