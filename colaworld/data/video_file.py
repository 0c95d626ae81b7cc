"""One video as FFmpeg sees it: where its bytes are, how it is opened, how its pictures are shown.

Frames come out as a player shows them, not as they are stored:

    turned      by the quarter turns and flips of the display matrix; other angles are not applied
    square      where a pixel is not as wide as high, the shorter side of the pixel is stretched, so
                that no row and no column is lost: 160x240 px of 2:1 become 320x240. A ratio within
                1 % of 1 counts as square
    8 bit RGB   without tone mapping (HDR looks flat) and without deinterlacing; `notes_of` says so

A file is opened as a file, never as a URL, and only as one of `FORMATS`: what would open other files or
connections (playlists, stream descriptions) is refused. Not here: frames by index (video_reader.py).
"""

from __future__ import annotations

import contextlib
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from colaworld.data.errors import BrokenFileError
from colaworld.files import printable

FORMATS = (
    "mov,matroska,avi,gif,mpegts,mpeg,mpegvideo,asf,flv,live_flv,kux,ogg,yuv4mpegpipe,mxf,dv,nut,"
    "rm,wtv,nsv,swf,ivf,obu,h264,hevc,vvc,m4v,mjpeg,mpjpeg,vc1,apng"
)
# Changed when the frames of a film come out otherwise: latents of before are then not taken for theirs.
READING = "2: turned, square pixels"
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
# Damaged metadata and streams without a decoder come as ValueError, AttributeError or IndexError.
UNREADABLE = (av.FFmpegError, OSError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True)
class Video:
    """Where the bytes of one video are, and when they changed."""

    name: str
    """For errors: the file's path, or an archive's and the member's."""
    open: Callable[[], str | BinaryIO]
    """A path for FFmpeg, or a binary file with read and seek; the reader closes it."""
    stamp: Callable[[], tuple[int, ...]]
    """Differs once the bytes do, for caches: (bytes, modified in ns, ...). OSError if it is gone."""

    @classmethod
    def file(cls, path: Path) -> Video:
        """A video file on disk; a link to one is followed."""

        def checked() -> str:
            check_regular(path)
            return f"file:{path}"  # so that nothing in a name is taken for a protocol

        return cls(str(path), checked, lambda: file_stamp(path))

    def __str__(self) -> str:
        return printable(self.name)


def file_stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns). Raises OSError where there is no such file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def check_regular(path: Path) -> None:
    """BrokenFileError for a FIFO, socket, device or folder: opening one may wait for ever.

    Raises OSError where there is nothing.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise BrokenFileError(f"{printable(path)}: is {kind}, not a file")


@contextlib.contextmanager
def opened(
    video: Video, failed: Callable[[], str]
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The video and its first stream that is a film, decoded by one thread: the loader's are enough.

    Raises BrokenFileError, `failed()` between the video's name and the reason, for whatever goes
    wrong with it until it is closed.
    """
    source = None
    try:
        source = video.open()
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        with av.open(source, options=options, metadata_errors="replace") as container:
            stream = _film(container, video)
            stream.codec_context.thread_count = 1
            yield container, stream
    except BrokenFileError:
        raise
    except UNREADABLE as error:
        raise BrokenFileError(f"{video}: {failed()}: {_reason(error)}") from error
    finally:
        if source is not None and not isinstance(source, str):
            source.close()


def _film(container: av.container.InputContainer, video: Video) -> av.VideoStream:
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic:
            return stream
    what = " but a cover picture, or one of an unknown codec" if container.streams.video else ""
    raise BrokenFileError(f"{video}: holds no video stream{what}")


def _reason(error: BaseException) -> str:
    """The cause in words: no number of FFmpeg's, and not the name once more."""
    if isinstance(error, av.ArgumentError):  # what FFmpeg says of a format that is not in FORMATS
        return "not a kind of file that videos come in"
    return getattr(error, "strerror", None) or str(error)


def decoded(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    *,
    keys: np.ndarray | None = None,
) -> Iterator[av.VideoFrame]:
    """Frames from where the container stands. What comes before a first key frame is passed over.

    `keys`: times of key frames; none come if the first packet of one says another time.
    """
    begun = False
    for packet in container.demux(stream):
        if keys is not None and packet.is_keyframe:
            if packet.pts not in keys:
                return
            keys = None
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            if begun:
                raise
            continue
        begun = begun or bool(frames)
        yield from frames


def shown_size(stream: av.VideoStream) -> tuple[int, int]:
    """(height, width) of its pictures with square pixels, before they are turned."""
    height, width = stream.codec_context.height, stream.codec_context.width
    ratio = float(stream.sample_aspect_ratio or 1)
    if ratio > 1.01:
        width = round(width * ratio)
    elif 0 < ratio < 0.99:
        height = round(height / ratio)
    return height, width


def quarter_turns(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then flip top and bottom, then left and right) of the frame's display matrix.

    FFmpeg's: x' = m0 x + m3 y, y' = m1 x + m4 y (libavutil/display.h).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    m0, m1, _, m3, m4, *_ = struct.unpack("=9i", bytes(data))
    if abs(m1) + abs(m3) > abs(m0) + abs(m4):
        return True, m1 < 0, m3 < 0
    return False, m4 < 0, m0 < 0


class Pictures:
    """Frames of one stream -> uint8 [H, W, 3] as shown. Make it before anything is decoded."""

    def __init__(self, stream: av.VideoStream) -> None:
        self._height, self._width = shown_size(stream)
        self._reformatter = VideoReformatter()  # kept: a new one per frame costs more than decoding
        self._turns = False, False, False

    def turn_as(self, first: av.VideoFrame) -> None:
        """Turn all as the frame says that decoding begins with. H.264 may say it on key frames alone."""
        self._turns = quarter_turns(first)

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        picture = self._reformatter.reformat(  # else it starts a thread per core for every film
            frame, width=self._width, height=self._height, format="rgb24", threads=1
        ).to_ndarray()
        if any(self._turns):
            transpose, upside_down, mirrored = self._turns
            picture = picture.transpose(1, 0, 2) if transpose else picture
            picture = picture[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
            picture = np.ascontiguousarray(picture)
        return picture
