"""Films of a set for a LeRobot one: taken over as they are where LeRobot can read them, else encoded.

Not here: the set they become part of (lerobot_writer.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from colaworld.data import video_reader
from colaworld.data.config import EncodingConfig
from colaworld.data.errors import BrokenFileError
from colaworld.data.sources.lerobot_statistics import Statistics
from colaworld.data.sources.source import Source
from colaworld.data.video_file import Video, decoded, opened, quarter_turns
from colaworld.data.video_writer import VideoWriter

_CODECS = ("h264", "hevc", "av1", "libdav1d", "libaom-av1")  # what LeRobot's decoders are tested on
_TOLERANCE = 1e-4  # seconds a frame may be off its time: LeRobot's `tolerance_s`
_READ_DIFFERENTLY = {"uneven", "counted", "cut"}  # notes: frames that others find elsewhere
_SAMPLED = 20  # frames of an episode that statistics of pictures are made from, about


def as_it_is(source: Source, episode: int, fps: float) -> bool:
    """Whether an episode is an mp4 of its own in which others find frame i at i / fps seconds: from
    time 0 on, evenly, neither turned nor stretched."""
    info = source.episodes[episode]
    if info.path.suffix.lower() != ".mp4":
        return False
    video = Video.file(info.path)
    told, times = video_reader.probe(video), video_reader.frame_times(video)
    if told.codec not in _CODECS or _READ_DIFFERENTLY & set(told.notes):
        return False
    if told.frames != info.frames or len(times.ticks) != info.frames or times.ticks[0] != 0:
        return False
    if np.abs(times.seconds - np.arange(info.frames) / fps).max() > _TOLERANCE:
        return False
    with opened(video, lambda: "cannot be opened as a video") as (container, stream):
        context = stream.codec_context
        first = next(iter(decoded(container, stream)), None)
        stored = (context.height, context.width) == (info.height, info.width)
        return first is not None and stored and not any(quarter_turns(first))


def encode_episode(
    source: Source,
    episode: int,
    path: Path,
    *,
    fps: float,
    encoding: EncodingConfig,
    step: Callable[[int], None] = lambda frame: None,
) -> None:
    """An episode's frames as recorded, as an mp4 that appears at `path` when it is whole.

    `step` is called before each frame with its number, and may raise. Raises BrokenFileError where frames cannot be read.
    """
    info = source.episodes[episode]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing_{path.name}")
    size = {"height": info.height, "width": info.width}
    try:
        with VideoWriter(temporary, fps=fps, encoding=encoding, **size) as video:
            for number, frame in enumerate(source.stream(episode, 0, info.frames)):
                step(number)
                video.write(frame)
            if video.frames != info.frames:
                raise BrokenFileError(
                    f"{info.path}: {info.name}: {info.frames} frames wanted, {video.frames} found"
                )
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def picture_statistics(source: Source, episode: int) -> Statistics:
    """Of about twenty frames of an episode, as LeRobot keeps them. Raises BrokenFileError."""
    length = source.episodes[episode].frames
    sampled = source.read(episode, range(0, length, max(1, length // _SAMPLED)))
    return Statistics.of_images(sampled, length)
