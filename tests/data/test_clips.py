"""Which clips a set has: sizes, rates, splits, faults, and actions that belong to their frames."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from colaworld.config import from_dict, to_dict
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.sources.source import EpisodeInfo
from colaworld.data.split import select_split


def _clip(clips: ClipSet, segment, start: int) -> np.ndarray:
    out = np.empty((clips.config.frames_per_clip, 3, clips.height, clips.width), np.uint8)
    assert clips.clip(clips.decoded(segment), segment, start, out)
    return out


def _shown(clips: ClipSet, number_of, start: int) -> list[int]:
    segment = next(p for p in clips.segments if p.first <= start < p.first + p.starts)
    return [number_of(f) for f in _clip(clips, segment, start)]


def _config(path, **options) -> DataConfig:
    return DataConfig(
        path=path, **{"split": "all", "frames_per_clip": 4, "scene_cut_threshold": 0, **options}
    )


def test_stride_and_resolution(tmp_path, film, number_of) -> None:
    film(tmp_path / "a.mp4", range(40))
    clips = ClipSet(_config(tmp_path, stride=3, height=16, width=40))
    assert clips.segments[0].starts == 40 - 9
    assert _shown(clips, number_of, 7) == [7, 10, 13, 16]


def test_a_long_film_in_pieces_is_the_same_film(tmp_path, film, number_of) -> None:
    film(tmp_path / "a.mp4", range(100))
    frame = 3 * 32 * 80
    clips = ClipSet(_config(tmp_path, cache_mb=8 * 10.5 * frame / 1e6))  # 10 frames a segment
    assert len(clips.segments) == 14 and max(p.stop - p.first for p in clips.segments) == 10
    for start in (0, 6, 7, 50, 96):
        assert _shown(clips, number_of, start) == list(range(start, start + 4))
    assert clips._cache.bytes <= clips.config.cache_mb * 1e6


def test_frames_kept_from_before_a_new_cut_are_not_taken_for_others(
    tmp_path, film, number_of
) -> None:
    film(tmp_path / "a.mp4", range(104))
    clips = ClipSet(_config(tmp_path, cache_mb=8 * 104.5 * 3 * 32 * 80 / 1e6))
    held = []
    for streams in (16, 4, 16, 4):  # the first begins at frame 0 in each
        clips.cut(streams)
        first = clips.segments[0]
        held.append(len(clips.decoded(first).frames))
        assert held[-1] == first.stop - first.first and clips.is_decoded(first)
        for start in (0, 24, 25, 49, 100):
            assert _shown(clips, number_of, start) == list(range(start, start + 4))
    assert held == [26, 104, 26, 104]


def test_frames_of_another_segment_are_refused(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", range(60))
    clips = ClipSet(_config(tmp_path))
    clips.cut(10**9)
    short, second = (clips.decoded(segment) for segment in clips.segments[:2])
    segment = replace(clips.segments[0], stop=60, starts=57)
    out = np.full((4, 3, 32, 80), 7, np.uint8)
    told = r"a\.mp4: the clip at {} is not among the 4 decoded frames of segment {}"
    for start in (1, 3, 50):
        with pytest.raises(ValueError, match=told.format(start, r"0\.\.59")):
            clips.clip(short, segment, start, out)
    with pytest.raises(ValueError, match=told.format(0, r"1\.\.4")):
        clips.clip(second, clips.segments[1], 0, out)
    assert (out == 7).all()


def test_fps_picks_frames_by_their_times(tmp_path, film, number_of) -> None:
    film(tmp_path / "even/a.mp4", range(40), fps=20)
    clips = ClipSet(_config(tmp_path / "even", fps=8.0))  # every 2.5th
    assert _shown(clips, number_of, 0) == [0, 2, 5, 7]
    assert clips.frame_index(0, 3) == 7
    ticks = [0, 5, 10, 50, 55, 60, 100, 150, 200, 205]  # hundredths of a second
    film(tmp_path / "uneven/a.mkv", range(10), times=ticks)
    clips = ClipSet(_config(tmp_path / "uneven", fps=2.0))
    assert _shown(clips, number_of, 0) == [0, 3, 6, 7]
    with pytest.raises(DataError, match=r"a\.mp4: recorded at 20 frames/s.*30"):
        ClipSet(_config(tmp_path / "even", fps=30.0))


def test_the_rate_of_clips_is_that_after_stride_and_resampling(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", range(40), fps=20)
    film(tmp_path / "b.mp4", range(40), fps=20)
    film(tmp_path / "c.mp4", range(40), fps=10)
    for options, rates in (
        ({}, [20, 20, 10]),
        ({"stride": 4}, [5, 5, 2.5]),
        ({"fps": 5.0}, [5, 5, 5]),  # a stride of 4, and of 2
        ({"fps": 8.0}, [8, 8, 8]),  # no stride: frames by their times
    ):
        clips = ClipSet(_config(tmp_path, **options))
        assert [clips.fps(e.index) for e in clips.episodes] == pytest.approx(rates)
        assert clips.usual_fps == pytest.approx(rates[0])


def test_sizes_that_differ_need_a_size(tmp_path, film, number_of) -> None:
    film(tmp_path / "a.mp4", range(8))
    film(tmp_path / "b.avi", range(8), codec="mpeg4", height=48, width=120)
    film(tmp_path / "c.gif", range(8), codec="gif", height=40, width=100)
    with pytest.raises(DataError, match=r"3 sizes: 32x80 \(a\.mp4\), 48x120.*set height and width"):
        ClipSet(_config(tmp_path))
    clips = ClipSet(_config(tmp_path, height=24, width=60))
    for segment in clips.segments:
        assert [number_of(f) for f in _clip(clips, segment, 2)] == [2, 3, 4, 5]


def test_crops(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", [0b1000010000] * 8)  # eight-pixel bars: the fifth and the last white
    last = _clip_at_0(tmp_path, crop=(4, 64, 8, 16))
    assert last.shape == (4, 3, 8, 16) and last[..., 9:].min() > 200 and last[..., :7].max() < 60
    middle = _clip_at_0(tmp_path, crop="center", height=32, width=16)
    assert middle[..., :7].min() > 200 and middle[..., 9:].max() < 60
    with pytest.raises(DataError, match=r"a\.mp4: crop: box .* does not lie inside .*32x80"):
        ClipSet(_config(tmp_path, crop=(0, 0, 33, 80)))


def _clip_at_0(path, **options) -> np.ndarray:
    clips = ClipSet(_config(path, **options))
    return _clip(clips, clips.segments[0], 0)


def test_broken_files_up_to_a_share(tmp_path, film, caplog) -> None:
    for i in range(9):
        film(tmp_path / f"{i}.mp4", range(8))
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "0.mp4").read_bytes()[:500])
    with pytest.raises(
        DataError, match=r"1 of 10 .*max_broken_share = 0\.05(.|\n)*bad\.mp4"
    ) as said:
        ClipSet(_config(tmp_path))
    assert "--data.max-broken-share" in str(said.value)
    assert len(ClipSet(_config(tmp_path, max_broken_share=0.1)).segments) == 9


def test_films_that_break_while_decoding(tmp_path, film, caplog) -> None:
    for i in range(4):
        film(tmp_path / f"{i}.mp4", range(8))
    film(tmp_path / "black.mp4", [0] * 8, height=32, width=80)
    clips = ClipSet(_config(tmp_path, max_broken_share=0.3))
    (tmp_path / "2.mp4").write_bytes(b"gone")
    with caplog.at_level(logging.WARNING):
        usable = [clips.decoded(p).usable for p in clips.segments[:3]]
    assert usable == [True, True, False] and "2.mp4" in caplog.text
    # `black` shows 25 everywhere after coding: a single value, so a camera that failed
    with pytest.raises(DataError, match=r"2 of 5 (.|\n)*2\.mp4(.|\n)*black\.mp4.*nothing but"):
        for segment in clips.segments:
            clips.decoded(segment)


def test_short_episodes_are_counted_and_all_short_is_an_error(tmp_path, film, caplog) -> None:
    film(tmp_path / "a.mp4", range(3))
    film(tmp_path / "b.mp4", range(9))
    clips = ClipSet(_config(tmp_path, frames_per_clip=8))
    assert [e.name for e in clips.too_short] == ["a.mp4"] and len(clips.segments) == 1
    assert "1 of 2 episodes are shorter" in caplog.text
    with pytest.raises(DataError, match=r"longest, b\.mp4, has 9 frames.*stride 2 needs 15"):
        ClipSet(_config(tmp_path, frames_per_clip=8, stride=2))


def test_no_clip_crosses_a_cut(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", [0b0000000011] * 12 + [0b1111110011] * 12)
    clips = ClipSet(_config(tmp_path, scene_cut_threshold=3.0))
    segment, out = clips.segments[0], np.empty((4, 3, 32, 80), np.uint8)
    decoded = clips.decoded(segment)
    assert decoded.cuts.tolist() == [12]
    usable = [s for s in range(segment.starts) if clips.clip(decoded, segment, s, out)]
    assert usable == [*range(9), *range(12, 21)]


def _infos(n: int) -> list[EpisodeInfo]:
    from pathlib import Path

    return [EpisodeInfo(i, f"e{i}", Path("x"), 9, 10.0, 8, 8) for i in range(n)]


def test_splits_are_disjoint_complete_and_independent_of_order() -> None:
    infos = _infos(50)

    def names(split: str, episodes=infos, holdout: float = 0.1) -> set[str]:
        chosen = select_split(episodes, split=split, holdout=holdout, path="p")
        return {e.name for e in chosen}

    assert len(names("heldout")) == 5 and not names("heldout") & names("train")
    assert names("heldout") | names("train") == names("all")
    assert names("heldout", [replace(e, index=49 - e.index) for e in infos]) == names("heldout")
    assert len(names("heldout", _infos(2))) == 1 and len(names("train", _infos(2))) == 1
    assert names("train", _infos(1)) == {"e0"} and names("train", holdout=0) == names("all")
    with pytest.raises(DataError, match="nothing is held out"):
        names("heldout", _infos(1))


def test_actions_belong_to_their_frames(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [30])
    clips = ClipSet(_config(path))
    recorded = clips.source.actions(0)
    assert clips.clip_actions(0, 11).tolist() == recorded[11:14].tolist()
    with pytest.raises(DataError, match=r"2 actions of column 'action'.*stride 1"):
        ClipSet(_config(path, stride=2)).require_actions()
    assert ClipSet(_config(path, fps=10.0)).clip_actions(0, 2).tolist() == recorded[2:5].tolist()
    with pytest.raises(DataError, match="does not divide"):
        ClipSet(_config(path, fps=4.0)).require_actions()


def test_continuous_actions_of_a_stride_stand_side_by_side(tmp_path) -> None:
    from colaworld.contracts import ActionSpec
    from colaworld.data.sources.lerobot_writer import LeRobotWriter

    spec = ActionSpec("action", "continuous", 2, ("x", "y"))
    writer = LeRobotWriter(tmp_path / "set", fps=10, height=16, width=16, action=spec)
    frames = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    writer.add(frames, np.arange(24, dtype=np.float32).reshape(12, 2))
    clips = ClipSet(_config(writer.finish(), frames_per_clip=3, stride=2))
    assert clips.clip_actions(0, 1).tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    one = ClipSet(_config(tmp_path / "set", frames_per_clip=1, stride=2))  # no frame is led to
    one.require_actions()
    assert one.clip_actions(0, 1).shape == (0, 4)
    assert clips.action_spec == ActionSpec("action", "continuous", 4, ("x+0", "y+0", "x+1", "y+1"))


def test_missing_actions_are_an_error_only_when_asked_for(tmp_path, scene_set, film) -> None:
    path = scene_set(tmp_path / "set", [9], actions=False)
    with pytest.raises(
        DataError, match=r"info\.json: no action column 'action'; it has: timestamp"
    ):
        ClipSet(_config(path)).require_actions()
    film(tmp_path / "films/a.mp4", range(9))
    with pytest.raises(DataError, match="a folder of videos has no actions"):
        ClipSet(_config(tmp_path / "films")).require_actions()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_per_clip": 0}, "frames_per_clip"),
        ({"fps": 5.0, "stride": 2}, "one of the two"),
        ({"height": 8}, "both height and width"),
        ({"max_broken_share": 1.5}, "max_broken_share"),
    ],
)
def test_wrong_settings(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_the_config_survives_yaml_types(tmp_path) -> None:
    config = DataConfig(path=tmp_path, crop=(1, 2, 3, 4), fps=5.0)
    assert from_dict(DataConfig, to_dict(config)) == config
    with pytest.raises(DataError, match="--data PATH"):
        ClipSet(DataConfig())
