"""A video -> uint8 RGB frames by index, through PyAV. Not here: clips, crops, data sets, and how one
frame is shown (video_file.py).

A video is a file, or whatever can be opened as a seekable binary file: see `Video`. Every function
takes either a `Video` or the path of a file; errors begin with its name.

A frame's index is its place in order of presentation time, which also holds for a variable frame
rate. Those are counted that FFmpeg shows when it decodes the whole file: not what an edit list hides,
nor what stands before the first key frame. Reading frames first..stop seeks to the key frame before
`first` and drops what comes before:

    file     K . . . K . . . K . . .        K key frame
    asked              x x x
    decoded          o o x x                o decoded and dropped

A frame that the decoder marks as damaged is not given, nor what is made of it, up to the next key
frame.

A seek may land too late (MPEG-TS), on a key frame whose neighbours need the one before (open GOP), or
where FFmpeg can but guess the time (MPEG-PS). Then it starts earlier, in the end from the beginning.
Where the times of a file are of no use (H.264 with B-frames in AVI, joined recordings) its frames are
counted from the beginning, every time.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from colaworld.data.errors import BrokenFileError
from colaworld.data.video_file import Pictures, Video, decoded, opened, quarter_turns, shown_size

# What there is to say of a video that is read, but perhaps not as was meant: "N videos are ...".
NOTES = {
    "hdr": "HDR (PQ or HLG): read without tone mapping, so flat and dull",
    "interlaced": "interlaced: what moves is combed; deinterlace them first",
    "counted": "without usable times: each read decodes from their start, slow where they are long; remux "
    "or encode them again",
    "short": "shorter than their headers say (cut off while they were written or copied?): what is there "
    "is read",
    "cut": "cut between key frames: the first of their frames cannot be decoded and are left out",
}
_HDR = (16, 18)  # transfer functions: SMPTE ST 2084 (PQ), ARIB STD-B67 (HLG)
_HEAD = 8  # frames decoded to see whether the times of a file are those of its frames


def _video(video: Video | Path) -> Video:
    return Video.file(video) if isinstance(video, Path) else video


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, as it is shown."""

    frames: int
    fps: float  # average
    height: int  # with square pixels, turned
    width: int
    codec: str
    pixel_format: str
    notes: Sequence[str] = ()  # keys of NOTES; "uneven": its frames are not evenly spaced in time


@dataclass(frozen=True)
class FrameTimes:
    """Presentation times of all frames of a file, ascending."""

    ticks: np.ndarray  # [n] int64, in units of the stream's time base; if not seekable, the index
    seconds: np.ndarray  # [n] float64
    keys: np.ndarray  # [k, 2] int64: time of each key frame, and where to seek for it; ascending
    seekable: bool  # False: the times are of no use; frames are counted from the start
    by_time: bool  # a seek for a frame's own time finds the key frame before it
    lost: int = 0  # frames before the first that can be decoded; not among `ticks`


def probe(video: Video | Path) -> VideoInfo:
    """Read the header and decode the first frame; where the header does not count the frames, read
    the packets.

    Raises BrokenFileError if there is no readable video in it.
    """
    video = _video(video)
    with opened(video, lambda: "cannot be opened as a video") as (container, stream):
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 0.0
        codec, pixel_format = context.name, str(context.pix_fmt)
        height, width = shown_size(stream)
        counted, promised = stream.frames, _promised(container, stream)
        index = [(e.timestamp, e.is_discard) for e in stream.index_entries if counted]
        first, whole = _first_frame(container, stream)
        if first is None:
            raise BrokenFileError(f"{video}: no frame can be decoded (truncated?)")
        listed = _is_mp4(container) and index and whole  # its index says what an edit list hides
        notes = []
        if first.color_trc in _HDR or context.color_trc in _HDR:
            notes.append("hdr")
        if first.interlaced_frame:
            notes.append("interlaced")
        if quarter_turns(first)[0]:
            height, width = width, height
    if listed:
        frames = sum(not hidden for _, hidden in index)
        steps = np.diff([time for time, _ in index])
    else:
        times = frame_times(video)
        frames, steps = len(times.ticks), np.diff(times.seconds)
        span = float(times.seconds[-1]) if frames else 0.0
        if span > 0 and (fps <= 0 or (not counted and times.seekable)):
            fps = (frames - 1) / span
        if not times.seekable:
            notes.append("counted")
        if times.lost:
            notes.append("cut")
        if span < 0.9 * promised - 0.5:
            notes.append("short")
    if not frames or not height or not width:
        raise BrokenFileError(f"{video}: has no frames (truncated?)")
    middle = np.median(steps) if len(steps) else 0
    if len(steps) and np.mean(np.abs(steps - middle) > middle / 4) > 0.05:
        notes.append("uneven")
    return VideoInfo(frames, fps if fps > 0 else 1.0, height, width, codec, pixel_format, notes)


def _first_frame(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[av.VideoFrame | None, bool]:
    """The first frame that can be decoded, and whether nothing is to be shown before it."""
    times: list[int | None] = []
    first = None
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            times.append(packet.pts)
        with contextlib.suppress(av.InvalidDataError):
            frames = packet.decode()
            first = first or (frames[0] if frames else None)
        if first is not None and len(times) > 1:  # an open group tells by its second packet
            break
    whole = None not in times and min(times, default=None) == (first and first.pts)
    return first, whole


def _promised(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Seconds of film by the header, 0 where it does not say: Matroska by a tag, AVI by its count."""
    written = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if written:
        begin = float((stream.start_time or 0) * (stream.time_base or 0))  # the tag counts from 0
        return 3600 * int(written[1]) + 60 * int(written[2]) + float(written[3]) - begin
    rate = stream.average_rate
    return float(stream.frames / rate) if rate and container.format.name == "avi" else 0.0


def _is_mp4(container: av.container.InputContainer) -> bool:
    return container.format.name.startswith("mov")


_CACHE: OrderedDict[tuple[str, tuple[int, ...]], FrameTimes] = OrderedDict()
_CACHE_FILES = 256  # 8 + 8 bytes per frame and file: a few MB
_LOCK = threading.Lock()


def frame_times(video: Video | Path) -> FrameTimes:
    """Times of every frame, from the packets. Of an MP4 nothing is decoded, of others the first
    frames, or all where their packets do not time them. The last few videos are kept.

    Raises BrokenFileError if it cannot be read.
    """
    video = _video(video)
    failed = "cannot be read as a video"
    try:
        key = video.name, video.stamp()
    except OSError as error:
        raise BrokenFileError(f"{video}: {failed}: {error.strerror}") from error
    with _LOCK:
        if key in _CACHE:
            _CACHE.move_to_end(key)
            return _CACHE[key]
    with opened(video, lambda: failed) as (container, stream):
        times = _packet_times(video, container, stream)
        rate = float(stream.average_rate or stream.guessed_rate or 1)
    if times is None:
        with opened(video, lambda: failed) as (container, stream):
            ticks = np.arange(sum(1 for _ in decoded(container, stream)))
        times = FrameTimes(ticks, ticks / rate, np.zeros((0, 2), np.int64), False, False)
    with _LOCK:
        _CACHE[key] = times
        while len(_CACHE) > _CACHE_FILES:
            _CACHE.popitem(last=False)
    return times


def _packet_times(
    video: Video, container: av.container.InputContainer, stream: av.VideoStream
) -> FrameTimes | None:
    """None where the packets do not say which frames are shown when."""
    ticks: list[int] = []
    keys: list[tuple[int, int]] = []
    last = None
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        time, place = packet.pts, packet.dts
        if time is None or (last is not None and place is not None and place < last):
            return None
        ticks.append(time)
        if packet.is_keyframe:
            keys.append((time, time if place is None else place))
        last = place
    order = np.sort(np.asarray(ticks, np.int64))
    lost = 0
    if len(order) and (not _is_mp4(container) or ticks[0] != order[0]):
        head = _head(video)
        lost = int(np.searchsorted(order, head[0])) if head else 0
        order = order[lost:]
        if order[: len(head)].tolist() != head:
            return None
    if len(np.unique(order)) != len(order):
        return None
    seconds = order * float(stream.time_base or 1)
    return FrameTimes(
        ticks=order,
        seconds=seconds - (seconds[0] if len(seconds) else 0.0),
        keys=np.array(sorted(keys), np.int64).reshape(-1, 2),
        seekable=True,
        by_time=container.format.name not in ("mpegts", "mpeg"),
        lost=lost,
    )


def _head(video: Video) -> list[int]:
    """Times of the first few frames, as decoded; -1 for one that has none."""
    with opened(video, lambda: "cannot be read as a video") as (container, stream):
        frames = itertools.islice(decoded(container, stream), _HEAD)
        return [-1 if frame.pts is None else frame.pts for frame in frames]


def stream_frames(video: Video | Path, first: int, stop: int) -> Iterator[np.ndarray]:
    """Frames first..stop-1 in order, each uint8 [H, W, 3]. One frame in memory.

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
    wanted = first

    def failed() -> str:
        return f"decoding failed after frame {wanted - 1}"

    for place in _places(times, first):
        with opened(video, failed) as (container, stream):
            if place is not None:
                container.seek(place, stream=stream)
            pictures = Pictures(stream)
            due, built = int(times.ticks[wanted]), False  # after a seek a picture may build up
            keys = None if place is None or _is_mp4(container) else times.keys[:, 0]
            for count, frame in enumerate(decoded(container, stream, keys=keys)):
                if not count:
                    pictures.turn_as(frame)
                time = frame.pts if times.seekable else count
                if time is None or time > due:
                    break  # too late: from further back
                late = place is not None and frame.key_frame
                if frame.is_corrupt and (built or late or time == due):
                    if place is None:
                        raise BrokenFileError(f"{video}: frame {wanted} is damaged")
                    break
                built = built or not frame.is_corrupt
                if time < due:
                    continue
                yield pictures(frame)
                wanted += 1
                if wanted == stop:
                    return
                due = int(times.ticks[wanted])
    raise BrokenFileError(f"{video}: frame {wanted} (of {stop} asked) is missing (truncated?)")


def _places(times: FrameTimes, first: int) -> Iterator[int | None]:
    """Where to seek for a frame, one after the other until it comes. None: read from the start."""
    if times.seekable and first:
        if times.by_time:
            yield int(times.ticks[first])
        before = int(np.searchsorted(times.keys[:, 0], times.ticks[first], "right"))
        back = 1
        while back < before:  # what the first key frame would do, the start does
            yield int(times.keys[before - back, 1])
            back *= 2
    yield None


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
