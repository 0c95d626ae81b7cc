"""A video -> uint8 RGB frames by index, through PyAV. Not here: clips, crops, data sets.

A video is a file, or whatever can be opened as a seekable binary file: see `Video`. Every function
takes either a `Video` or the path of a file; errors begin with its name.

A frame's index is its place in order of presentation time, which also holds for a variable frame
rate. Reading frames first..stop seeks to the key frame before `first` and drops what comes before:

    file     K . . . K . . . K . . .        K key frame
    asked              x x x
    decoded          o o x x                o decoded and dropped
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from colaworld.data.errors import BrokenFileError


@dataclass(frozen=True)
class Video:
    """Where the bytes of one video are, and when they changed."""

    name: str
    """For errors: the file's path, or an archive's and the member's."""
    open: Callable[[], str | BinaryIO]
    """A path that FFmpeg opens, or a binary file with read and seek; the reader closes it."""
    stamp: Callable[[], tuple[int, ...]]
    """Differs once the bytes do, for caches: (bytes, modified in ns, ...). OSError if it is gone."""

    @classmethod
    def file(cls, path: Path) -> Video:
        """A video file on disk."""
        return cls(str(path), lambda: str(path), lambda: file_stamp(path))

    def __str__(self) -> str:
        return self.name


def file_stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns). Raises OSError where there is no such file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def _opened(video: Video) -> Iterator[av.container.InputContainer]:
    source = video.open()
    try:
        with av.open(source) as container:
            yield container
    finally:
        if not isinstance(source, str):
            source.close()


def _video(video: Video | Path) -> Video:
    return Video.file(video) if isinstance(video, Path) else video


@dataclass(frozen=True)
class VideoInfo:
    """What the container says about its first video stream."""

    frames: int
    fps: float  # average
    height: int
    width: int
    codec: str
    pixel_format: str


@dataclass(frozen=True)
class FrameTimes:
    """Presentation times of all frames of a file, ascending."""

    ticks: np.ndarray  # [n] int64, in units of the stream's time base
    seconds: np.ndarray  # [n] float64
    seekable: bool  # False: the container keeps no times; frames are counted from the start


def probe(video: Video | Path) -> VideoInfo:
    """Read the header (and, where it does not count the frames, the packets) of a video.

    Raises BrokenFileError if there is no readable video in it.
    """
    video = _video(video)
    try:
        with _opened(video) as container:
            if not container.streams.video:
                raise BrokenFileError(f"{video}: holds no video stream")
            stream = container.streams.video[0]
            context = stream.codec_context
            fps = stream.average_rate or stream.guessed_rate
            frames = stream.frames
            info = dict(
                fps=float(fps) if fps else 0.0,
                height=context.height,
                width=context.width,
                codec=context.name,
                pixel_format=str(context.pix_fmt),
            )
    except (av.FFmpegError, OSError, IndexError) as error:
        raise BrokenFileError(f"{video}: cannot be opened as a video: {error}") from error
    if not frames:  # the header does not count them (Matroska): the packets do, and time them
        times = frame_times(video)
        frames = len(times.ticks)
        if times.seekable and frames > 1:
            info["fps"] = (frames - 1) / float(times.seconds[-1])
    if not frames or not info["height"] or not info["width"]:
        raise BrokenFileError(f"{video}: has no frames (truncated?)")
    if info["fps"] <= 0:
        span = float(frame_times(video).seconds[-1])
        info["fps"] = (frames - 1) / span if span > 0 else 1.0
    return VideoInfo(frames, **info)


_CACHE: OrderedDict[tuple[str, tuple[int, ...]], FrameTimes] = OrderedDict()
_CACHE_FILES = 256  # 8 + 8 bytes per frame and file: a few MB
_LOCK = threading.Lock()


def frame_times(video: Video | Path) -> FrameTimes:
    """Times of every frame, from the packets (nothing is decoded). The last few videos are kept.

    Raises BrokenFileError if it cannot be read.
    """
    video = _video(video)
    try:
        key = video.name, video.stamp()
        with _LOCK:
            if key in _CACHE:
                _CACHE.move_to_end(key)
                return _CACHE[key]
        with _opened(video) as container:
            stream = container.streams.video[0]
            base, ticks, seekable = stream.time_base, [], True
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                seekable = seekable and packet.pts is not None
                ticks.append(packet.pts if packet.pts is not None else len(ticks))
            rate = stream.average_rate or stream.guessed_rate or 1
    except (av.FFmpegError, OSError, IndexError) as error:
        raise BrokenFileError(f"{video}: cannot be read as a video: {error}") from error
    order = np.sort(np.asarray(ticks, np.int64))
    if len(np.unique(order)) != len(order):
        seekable = False
    seconds = order * float(base) if seekable else np.arange(len(order)) / float(rate)
    times = FrameTimes(order, seconds - (seconds[0] if len(seconds) else 0.0), seekable)
    with _LOCK:
        _CACHE[key] = times
        while len(_CACHE) > _CACHE_FILES:
            _CACHE.popitem(last=False)
    return times


def stream_frames(video: Video | Path, first: int, stop: int) -> Iterator[np.ndarray]:
    """Frames first..stop-1 in order, each uint8 [H, W, 3]. One seek, one frame in memory.

    Raises BrokenFileError where a frame is missing or cannot be decoded.
    """
    video = _video(video)
    times = frame_times(video)
    if not 0 <= first < stop:
        raise ValueError(f"{video}: expected 0 <= first < stop, got first={first}, stop={stop}")
    if stop > len(times.ticks):
        raise BrokenFileError(
            f"{video}: frames up to {stop - 1} were promised, the file holds {len(times.ticks)} "
            "(truncated?)"
        )
    try:
        with _opened(video) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # the loader's workers are the parallelism
            to_rgb = VideoReformatter()  # kept: a new one per frame costs more than decoding
            wanted = first
            if times.seekable and first > 0:
                container.seek(int(times.ticks[first]), stream=stream)
            for count, frame in enumerate(container.decode(stream)):
                at = int(np.searchsorted(times.ticks, frame.pts)) if times.seekable else count
                if at < wanted:
                    continue
                if at > wanted or (times.seekable and times.ticks[at] != frame.pts):
                    raise BrokenFileError(f"{video}: frame {wanted} is missing")
                yield to_rgb.reformat(frame, format="rgb24").to_ndarray()
                wanted += 1
                if wanted == stop:
                    return
    except (av.FFmpegError, OSError) as error:
        raise BrokenFileError(
            f"{video}: decoding failed after frame {wanted - 1}: {error}"
        ) from error
    raise BrokenFileError(f"{video}: ends before frame {wanted} (of {stop} asked; truncated?)")


def read_frames(video: Video | Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """The frames at `indices` (any order, repeats allowed), uint8 [n, H, W, 3].

    Raises BrokenFileError where a frame is missing or cannot be decoded.
    """
    video = _video(video)
    indices = np.asarray(indices, np.int64)
    if indices.size == 0:
        raise ValueError(f"{video}: expected at least one frame index, got none")
    wanted = np.unique(indices)
    kept: dict[int, np.ndarray] = {}
    runs = np.split(wanted, np.nonzero(np.diff(wanted) > 16)[0] + 1)  # far apart: seek again
    for run in runs:
        needed = set(run.tolist())
        for at, frame in enumerate(
            stream_frames(video, int(run[0]), int(run[-1]) + 1), int(run[0])
        ):
            if at in needed:
                kept[at] = frame
    return np.stack([kept[int(i)] for i in indices])
