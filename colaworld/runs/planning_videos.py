"""Films of played episodes: what was real, beside what the plan imagined, beside the goal.

Not here: the page (planning_page.py), encoding (data/video_writer.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from colaworld.data.config import EncodingConfig
from colaworld.data.video_writer import VideoWriter
from colaworld.planning.config import Row
from colaworld.planning.mpc import Episode

FPS = 4.0  # planned actions a second, slow enough to compare
_SIDE, _GAP = 128, 8  # pixels: small frames are enlarged to this height; between pictures
_ENCODING = EncodingConfig(pixel_format="yuv420p")  # every player shows it


def write_videos(folder: Path, kept: Mapping[str, Sequence[Episode]], count: int) -> list[Path]:
    """ROW-NUMBER.mp4 of the first `count` kept episodes of each row; their paths.

    Films of an earlier plan in the folder go. A frame is [real | imagined | goal], or [real | goal] of those
    that imagine nothing; an imagined picture is what the plan expected where the real one beside it came.
    """
    for row in get_args(Row):
        for old in folder.glob(f"{row}-*.mp4"):
            old.unlink()
    made = []
    for row, episodes in kept.items():
        for number, one in enumerate(episodes[:count], 1):
            film = film_of(one)
            path, part = folder / f"{row}-{number}.mp4", folder / f".{row}-{number}.part.mp4"
            size = {"height": film.shape[1], "width": film.shape[2]}
            try:
                with VideoWriter(part, fps=FPS, encoding=_ENCODING, **size) as writer:
                    for frame in film:
                        writer.write(frame)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            made.append(path)
    return made


def film_of(episode: Episode) -> np.ndarray:
    """uint8 [T, H, W, 3] with even sides."""
    assert episode.goal is not None, "the frames of kept episodes are kept"
    real = np.stack(episode.real)
    columns = [real]
    if episode.imagined:  # nothing is imagined before the first action
        columns.append(np.stack([episode.real[0], *episode.imagined]))
    columns.append(np.broadcast_to(episode.goal, real.shape))
    times = math.ceil(_SIDE / real.shape[1])
    large = [column.repeat(times, axis=1).repeat(times, axis=2) for column in columns]
    gap = np.full((*large[0].shape[:2], _GAP, 3), 255, np.uint8)
    row = [part for column in large for part in (column, gap)][:-1]
    film = np.concatenate(row, axis=2)
    odd = [(0, 0), (0, film.shape[1] % 2), (0, film.shape[2] % 2), (0, 0)]
    return np.pad(film, odd, constant_values=255)
