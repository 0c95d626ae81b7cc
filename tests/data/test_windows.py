"""Window arithmetic against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colaworld.data import windows


def test_span_by_hand() -> None:
    assert [windows.span(4, 1), windows.span(4, 2), windows.span(1, 5)] == [4, 7, 1]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 30))
def test_pieces_hold_every_start_once(frames: int, reach: int, most: int) -> None:
    made = windows.segments(3, frames, clip_span=reach, most_frames=most)
    starts = [p.first + i for p in made for i in range(p.starts)]
    assert starts == list(range(frames - reach + 1))
    for segment in made:
        assert segment.stop == segment.first + segment.starts + reach - 1 <= frames
        assert segment.stop - segment.first <= max(most, reach)


@given(st.integers(0, 30), st.integers(1, 8), st.lists(st.integers(1, 40), max_size=4, unique=True))
def test_crosses_means_two_scenes(start: int, reach: int, cuts: list[int]) -> None:
    scene = np.cumsum(np.isin(np.arange(40), cuts))
    expected = len(set(scene[start : start + reach])) > 1
    assert windows.crosses(start, reach, np.array(sorted(cuts))) == expected
