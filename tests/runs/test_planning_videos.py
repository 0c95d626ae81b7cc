"""Films of episodes: what is where, at sizes that every player shows; older ones go."""

from __future__ import annotations

import numpy as np
import pytest

from colaworld.data.video_reader import read_frames
from colaworld.planning.mpc import Episode
from colaworld.runs.planning_videos import film_of, write_videos


def episode(*, height: int = 9, width: int = 7, imagined: bool = True) -> Episode:
    """Three real frames in greys, imagined ones in reds, a white goal."""
    real = [np.full((height, width, 3), 40 * i, np.uint8) for i in range(3)]
    reds = [np.zeros((height, width, 3), np.uint8) for _ in range(2)]
    for i, frame in enumerate(reds):
        frame[..., 0] = 100 + 50 * i
    goal = np.full((height, width, 3), 250, np.uint8)
    return Episode(1, goal=goal, real=real, imagined=reds if imagined else [])


def test_real_imagined_and_goal_stand_side_by_side() -> None:
    film = film_of(episode())  # 9x7 px, 15 times: 135x105, three of them and two gaps
    assert film.dtype == np.uint8 and film.shape == (3, 136, 3 * 105 + 2 * 8 + 1, 3)
    columns = film[:, 60, [50, 105 + 8 + 50, 2 * (105 + 8) + 50]]
    assert columns[:, 0, 0].tolist() == [0, 40, 80]
    assert columns[:, 1].tolist() == [[0, 0, 0], [100, 0, 0], [150, 0, 0]]  # the first is real
    assert (columns[:, 2] == 250).all() and (film[:, 60, 107] == 255).all()
    assert film_of(episode(imagined=False)).shape[2] == 2 * 105 + 8
    assert film_of(episode(height=200, width=10)).shape[1:3] == (200, 3 * 10 + 2 * 8)


def test_films_are_written_and_older_ones_go(tmp_path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("world-7.mp4", "mine.mp4"):
        (folder / name).write_bytes(b"old")
    kept = {"world": [episode(), episode()], "random": [episode(imagined=False)]}
    made = write_videos(folder, kept, 1)
    assert [path.name for path in made] == ["world-1.mp4", "random-1.mp4"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "mine.mp4",
        *sorted(p.name for p in made),
    ]
    read = np.asarray(read_frames(made[0], [0, 1, 2]))
    assert read.shape == film_of(episode()).shape
    assert read[2, 60, 50].mean() == pytest.approx(80, abs=4)
