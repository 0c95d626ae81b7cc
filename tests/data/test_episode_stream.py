"""Every frame and every transition of every episode, once, in order, at the set's size and rate."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.episode_stream import episode_stream
from colaworld.data.errors import BrokenFileError
from colaworld.data.sources import open_source


def _config(path, **options) -> DataConfig:
    return DataConfig(path=path, **{"split": "all", "frames_per_clip": 4, **options})


def _new(windows) -> dict[int, list[int]]:
    """Per episode, the frames that windows bring in addition to the one before."""
    found: dict[int, list[int]] = {}
    for w in windows:
        found.setdefault(w.episode, []).extend(w.index[w.repeats :].tolist())
    return found


@pytest.mark.parametrize(("window", "overlap"), [(5, 1), (5, 4), (8, 3), (2, 1), (100, 1)])
def test_each_frame_and_each_transition_is_new_once(tmp_path, film, number_of, window, overlap):
    lengths = [23, 1, 8, 5]  # one without a transition; two shorter than what follows a window
    for i, n in enumerate(lengths):
        film(tmp_path / f"{i}.mp4", range(100 * i, 100 * i + n))
    stream = list(episode_stream(ClipSet(_config(tmp_path)), window=window, overlap=overlap))
    assert _new(stream) == {i: list(range(n)) for i, n in enumerate(lengths)}
    for before, w in zip([None, *stream], stream, strict=False):
        assert w.frames.shape == (len(w.index), 3, 32, 80) and w.frames.dtype == torch.uint8
        assert len(w.index) <= window and w.index[0] == w.first
        shown = [number_of(f.numpy()) for f in w.frames]
        assert shown == [100 * w.episode + int(i) for i in w.index]
        again = before is not None and before.episode == w.episode
        assert w.repeats == (overlap if again else 0)
        if again:
            assert torch.equal(before.index[-overlap:], w.index[:overlap])


def test_a_source_gives_frames_as_recorded(tmp_path, scene_set) -> None:
    source = open_source(scene_set(tmp_path / "set", [7, 9]))
    windows = list(episode_stream(source, window=4))
    assert _new(windows) == {0: list(range(7)), 1: list(range(9))}
    frames = torch.from_numpy(source.read(1, range(3, 7))).permute(0, 3, 1, 2)
    assert torch.equal(next(w for w in windows if w.episode == 1 and w.first == 3).frames, frames)


def test_size_rate_split_and_chosen_episodes(tmp_path, film, number_of) -> None:
    for i in range(4):
        film(tmp_path / f"{i}.mp4", range(40), fps=20)
    config = _config(tmp_path, fps=8.0, height=16, width=40, split="train", holdout=0.5)
    clips = ClipSet(config)
    windows = list(episode_stream(clips, window=7))
    trained = [e.index for e in clips.episodes]
    assert len(trained) == 2 and sorted({w.episode for w in windows}) == trained
    assert windows[0].index.tolist() == [0, 2, 5, 7, 10, 12, 15]
    assert [number_of(f.numpy()) for f in windows[0].frames] == [0, 2, 5, 7, 10, 12, 15]
    assert windows[0].frames.shape[-2:] == (16, 40)
    backwards = episode_stream(clips, window=99, episodes=trained[::-1])
    assert [w.episode for w in backwards] == trained[::-1]
    with pytest.raises(ValueError, match="no episodes"):
        episode_stream(clips, episodes=range(4))


def test_memory_does_not_grow_with_the_episode(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", range(600), height=64, width=160)
    clips = ClipSet(_config(tmp_path))
    tracemalloc.start()
    count = sum(len(w.index) - w.repeats for w in episode_stream(clips, window=16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    frame = 3 * 64 * 160
    assert count == 600 and peak < 200 * frame  # not the 600 of the episode


def test_what_cannot_be_had(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", range(9))
    film(tmp_path / "b.mp4", range(9))
    clips = ClipSet(_config(tmp_path))
    for window, overlap in ((4, 4), (4, 0), (1, 1)):
        with pytest.raises(ValueError, match="1 <= overlap < window"):
            episode_stream(clips, window=window, overlap=overlap)
    (tmp_path / "a.mp4").write_bytes(b"gone")
    with pytest.raises(BrokenFileError, match=r"a\.mp4"):
        list(episode_stream(clips))
    assert _new(episode_stream(clips, episodes=[1])) == {1: list(range(9))}
