"""Which frames an action leads from and to, and what a model sees before it: worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.episode_stream import episode_stream
from colaworld.data.errors import DataError
from colaworld.data.transitions import Transitions, transitions


def test_every_frame_has_a_row_and_the_last_lead_nowhere() -> None:
    moves = Transitions(8, stride=3)
    assert moves.ahead.tolist() == [3, 4, 5, 6, 7, -1, -1, -1]
    assert moves.window(4, 4) == [1, 4, 7]  # frame -2 is not there
    assert moves.window(3, 4) == [0, 3, 6] and moves.window(2, 4) == [2, 5]
    assert Transitions(20, stride=3).window(10, 4) == [4, 7, 10, 13]
    assert Transitions(20, stride=3).window(10, 4, first=5) == [7, 10, 13]
    assert Transitions(1, stride=1).ahead.tolist() == [-1]


def test_by_times_it_is_the_frame_shown_then() -> None:
    even = Transitions(31, times=np.arange(31) / 30, fps=5.0)  # 30 frames/s: six frames apart
    assert even.ahead.tolist() == [*range(6, 31), *[-1] * 6]
    assert even.window(20, 4) == [8, 14, 20, 26] and even.window(7, 4) == [1, 7, 13]
    assert even.window(20, 4, first=14) == [14, 20, 26]
    # 24 frames/s shown at 10: 0.1 s is 2.4 frames, and the last one begun by then is seen
    odd = Transitions(25, times=np.arange(25) / 24, fps=10.0)
    assert odd.ahead[:4].tolist() == [2, 3, 4, 5] and odd.window(10, 4) == [5, 7, 10, 12]
    late = Transitions(4, times=np.array([0.0, 0.1, 0.5, 0.6]), fps=10.0)
    assert late.ahead.tolist() == [1, 1, 3, -1]  # 0.1 s after frame 1 nothing new is shown


@pytest.mark.parametrize("window", [2, 4, 7])
def test_no_window_reaches_before_the_oldest(window) -> None:
    uneven = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.2, 40))
    for moves in (Transitions(40, stride=3), Transitions(40, times=uneven - uneven[0], fps=6.0)):
        oldest = [moves.oldest(row, window) for row in range(40)]
        assert oldest == sorted(oldest)
        seen = [moves.window(row, window)[0] for row in range(40) if moves.ahead[row] >= 0]
        assert all(old <= first for old, first in zip(oldest, seen, strict=False))


def test_those_of_a_set_and_its_frames_as_recorded(tmp_path, film, number_of) -> None:
    film(tmp_path / "a.mp4", range(24), fps=24)

    def of(**rate):
        clips = ClipSet(DataConfig(path=tmp_path, split="all", frames_per_clip=1, **rate))
        return clips, transitions(clips, 0)

    assert of(stride=5)[1].ahead[:3].tolist() == [5, 6, 7]
    clips, moves = of(fps=10.0)
    assert moves.ahead[:3].tolist() == [2, 3, 4] and clips.length(0) < 24
    shown = [
        number_of(frame.numpy())
        for w in episode_stream(clips, window=10, recorded=True)
        for frame in w.frames[w.repeats :]
    ]
    assert shown == list(range(24))
    with pytest.raises(DataError, match="recorded at 24 frames/s, fewer than the asked 30"):
        of(fps=30.0)
