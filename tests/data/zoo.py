"""Small films of many kinds, and FFmpeg's own decoding of each: what the reader is held against.

PyAV alone makes them: it encodes, remuxes packets for trims and cuts, and patches boxes of an MP4.
`python tests/data/zoo.py FOLDER` writes all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FRAMES = 40


@dataclass(frozen=True)
class Film:
    """One film. `filters`: what FFmpeg's filters do to show it; exact only where there are none."""

    name: str
    make: Callable[[Path], None]
    filters: Sequence[tuple[str, str]] = ()
    frames: int = FRAMES
    notes: tuple[str, ...] = ()


def picture(number: int, height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards; blue: eight bars, the bits of `number`."""
    made = np.zeros((height, width, 3), np.uint8)
    made[..., 0] = np.linspace(20, 235, width)[None]
    made[..., 1] = np.linspace(20, 235, height)[:, None]
    bits = np.array([(number >> b) & 1 for b in range(8)])
    made[..., 2] = np.where(bits[np.arange(width) * 8 // width], 230, 25)[None]
    return made


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    frames: int = FRAMES,
    size: tuple[int, int] = (48, 64),
    rate: Fraction | int = 30,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    title: str = "",
    times: Sequence[int] | None = None,  # in milliseconds; default: even
    set_up: Callable[[Any], None] = lambda stream: None,
    interlaced: bool = False,
    sound: bool = False,
    cover: bool = False,
) -> None:
    """A film of `frames` numbered pictures."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        if title:
            container.metadata["title"] = title
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        base = 1 / Fraction(rate) if times is None else Fraction(1, 1000)
        stream.codec_context.time_base = base
        set_up(stream)
        extra = container.add_stream("aac", rate=8000) if sound else None
        art: Any = container.add_stream("mjpeg", rate=1) if cover else None
        if cover:
            art.height, art.width, art.pix_fmt = 16, 16, "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
            still = av.VideoFrame.from_ndarray(picture(1, 16, 16), "rgb24")
            container.mux(art.encode(still.reformat(format="yuvj420p")))
        fields: Any = None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), "rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts = number if times is None else times[number]
            frame.time_base = base
            if interlaced:
                fields = fields or graph(frame, base, [("setfield", "tff")])
                fields.push(frame)
                frame = fields.pull()
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if extra is not None:
            noise = np.zeros((1, 8000), np.float32)
            heard = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
            heard.sample_rate = 8000
            container.mux([*extra.encode(heard), *extra.encode()])


def remux(
    source: Path,
    path: Path,
    *,
    first: int = 0,
    stop: int | None = None,
    shift: int = 0,
    muxer: dict[str, str] | None = None,
    set_up: Callable[[Any], None] = lambda stream: None,
) -> None:
    """Packets first..stop of a film, in file order, `shift` frames earlier."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=muxer or {}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        set_up(copy)
        packets = [p for p in old.demux(stream) if p.size][first:stop]
        ticks = round(shift / (stream.average_rate * stream.time_base))
        for packet in packets:
            packet.pts -= ticks
            packet.dts -= ticks
            packet.stream = copy
            new.mux(packet)


def reference(film: Film, path: Path) -> list[np.ndarray]:
    """The whole film decoded from its start, frames [H, W, 3], turned and stretched by FFmpeg's filters."""
    made = []
    to_rgb = av.video.reformatter.VideoReformatter()
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        shown: Any = None
        for packet in container.demux(stream):
            with contextlib.suppress(av.InvalidDataError):
                for frame in packet.decode():
                    if film.filters:
                        shown = shown or graph(frame, stream.time_base, film.filters)
                        shown.push(frame)
                        frame = shown.pull()
                    made.append(to_rgb.reformat(frame, format="rgb24").to_ndarray())
    return made


def graph(frame: Any, time_base: Fraction, filters: Sequence[tuple[str, str]]) -> Any:
    """FFmpeg's filters for frames like this one."""
    made = av.filter.Graph()
    nodes = [
        made.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=time_base
        ),
        *(made.add(name, arguments) for name, arguments in filters),
        made.add("buffersink"),
    ]
    for one, other in itertools.pairwise(nodes):
        one.link_to(other)
    made.configure()
    return made


# -- boxes of an MP4 ------------------------------------------------------------------------


def boxes(data: bytes, path: Sequence[bytes], begin: int = 0, end: int | None = None) -> int:
    """Where the first box of this path begins."""
    at, end = begin, len(data) if end is None else end
    while at < end:
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == path[0]:
            return at if len(path) == 1 else boxes(data, path[1:], at + 8, at + size)
        at += size
    raise KeyError(path)


def edits(path: Path, *segments: tuple[int, int]) -> None:
    """Replace the edit list by these (frames shown, frame they begin with; -1: nothing yet)."""
    data = bytearray(path.read_bytes())
    mdhd = boxes(data, (b"moov", b"trak", b"mdia", b"mdhd"))
    mvhd = boxes(data, (b"moov", b"mvhd"))
    media, movie = (struct.unpack(">I", data[at + 20 : at + 24])[0] for at in (mdhd, mvhd))
    trak = boxes(data, (b"moov", b"trak"))
    rows = b"".join(
        struct.pack(">Iihh", n * movie // 30, -1 if first < 0 else _start(data, first, media), 1, 0)
        for n, first in segments
    )
    elst = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(segments)) + rows
    made = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    with contextlib.suppress(KeyError):
        at = boxes(data, (b"moov", b"trak", b"edts"))
        data[at + 4 : at + 8] = b"free"
    at = trak + struct.unpack(">I", data[trak : trak + 4])[0]
    assert boxes(data, (b"mdat",)) < trak, "the index stands behind the frames: they do not move"
    data[at:at] = made
    for box in (trak, boxes(data, (b"moov",))):
        size = struct.unpack(">I", data[box : box + 4])[0]
        data[box : box + 4] = struct.pack(">I", size + len(made))
    path.write_bytes(data)


def _start(data: bytes, first: int, media: int) -> int:
    """Time of a frame in the media, whose first one is shown two frames late (B-frames)."""
    return (first + 2) * media // 30


def _edited(*segments: tuple[int, int]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        encode(path, options=GOP)
        edits(path, *segments)

    return make


# -- the films ------------------------------------------------------------------------------

RGB = ("format", "rgb24")  # so that it is stretched and converted at once
GOP = {"g": "12", "bf": "2", "x264-params": "log-level=none:scenecut=0:b-adapt=0"}
OPEN = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}
H265 = "log-level=none:keyint=12:min-keyint=12:bframes=3:scenecut=0:b-adapt=0"
H265_OPEN = {"x265-params": f"{H265}:open-gop=1"}
H265_CLOSED = {"x265-params": f"{H265}:open-gop=0"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}
MPEG = {"g": "12", "bf": "2", "qmin": "2", "qmax": "4"}


def _plain(codec: str = "libx264", **how: Any) -> Callable[[Path], None]:
    how.setdefault("options", GOP if codec == "libx264" else {"g": "12"})
    return lambda path: encode(path, codec, **how)


def _turned(turn: Callable[[Any], None], **how: Any) -> Callable[[Path], None]:
    return _plain(set_up=turn, **how)


def _matrix(*values: float) -> Callable[[Any], None]:
    """a b u c d v x y w, as set_display_matrix takes it."""
    fixed = [round(v * 65536) for v in values]

    def set_up(stream: Any) -> None:
        stream.set_display_matrix([fixed[0], fixed[1], 0, fixed[2], fixed[3], 0, 0, 0, 1 << 30])

    return set_up


def _narrow(ratio: Fraction) -> Callable[[Any], None]:
    def set_up(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = ratio

    return set_up


def _pq(stream: Any) -> None:
    stream.codec_context.color_trc = 16


def _by_remux(suffix: str, how: Callable[[Path], None], **remuxed: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        source = path.with_name(f".{path.stem}-source{suffix}")
        how(source)
        remux(source, path, **remuxed)
        source.unlink()

    return make


def _by_bytes(
    how: Callable[[Path], None], change: Callable[[bytes], bytes]
) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        how(path)
        path.write_bytes(change(path.read_bytes()))

    return make


def _packets(first: int, last: int | None = None, size: int = 188) -> Callable[[bytes], bytes]:
    """Some packets of a transport stream."""
    return lambda data: data[first * size : None if last is None else last * size]


UNEVEN = [i * 33 + (i % 5) * 40 * (i > 3) for i in range(FRAMES)]
UNEVEN = [int(t) for t in np.maximum.accumulate(UNEVEN) + np.arange(FRAMES)]
NTSC = Fraction(30000, 1001)
ILACE = {"flags": "+ilme+ildct", **MPEG}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}

ZOO = [
    # containers and codecs
    Film("h264.mp4", _plain()),
    Film("h264.mov", _plain()),
    Film("h264.mkv", _plain()),
    Film("h264.3gp", _plain()),
    Film("h264.flv", _plain()),
    Film("h264.avi", _plain(), notes=("counted",)),
    Film("h264.ts", _plain()),
    Film("h264.mts", _plain()),
    Film("h264.m2ts", _plain()),
    Film("fragments.mp4", _plain(muxer=FRAGMENTS)),
    Film("index-first.mp4", _plain(muxer={"movflags": "faststart"})),
    Film("sound.mp4", _plain(sound=True)),
    Film("sound.ts", _plain(sound=True)),
    Film("hevc.mp4", _plain("libx265", options=H265_CLOSED)),
    Film("mpeg1.mpg", _plain("mpeg1video", options=MPEG)),
    Film(  # several frames share a time stamp: after a seek the others are guessed
        "mpeg1-small.mpg",
        _plain("mpeg1video", options={"g": "9", "bf": "0"}, frames=60, size=(32, 48)),
        frames=60,
    ),
    Film("mpeg2.mpg", _plain("mpeg2video", options=MPEG)),
    Film("mpeg2.ts", _plain("mpeg2video", options=MPEG)),
    Film("mpeg4.avi", _plain("mpeg4")),
    Film("mpeg4-b.avi", _plain("mpeg4", options=MPEG)),
    Film("mpeg4-b.mp4", _plain("mpeg4", options=MPEG)),
    Film("mpeg4-b.mkv", _plain("mpeg4", options=MPEG)),
    Film("msmpeg4.avi", _plain("msmpeg4")),
    Film("wmv2.wmv", _plain("wmv2")),
    Film("flv1.flv", _plain("flv")),
    Film("vp8.webm", _plain("libvpx", options={"g": "12", "auto-alt-ref": "1"})),
    Film("vp9.webm", _plain("libvpx-vp9", options={"g": "12", "auto-alt-ref": "1"})),
    Film("av1.mp4", _plain("libsvtav1", size=(64, 64))),
    Film("av1.mkv", _plain("libsvtav1", size=(64, 64))),
    Film("mjpeg.avi", _plain("mjpeg", pix_fmt="yuvj420p")),
    Film("mjpeg.mov", _plain("mjpeg", pix_fmt="yuvj420p")),
    Film("ffv1.mkv", _plain("ffv1")),
    Film("prores.mov", _plain("prores_ks", pix_fmt="yuv422p10le")),
    Film("raw.y4m", _plain("wrapped_avframe")),
    Film("indexed.gif", _plain("gif", pix_fmt="rgb8", rate=25)),
    Film("odd-444.mp4", _plain(size=(45, 33), pix_fmt="yuv444p")),
    Film("ten-bit.mp4", _plain("libx265", pix_fmt="yuv420p10le", options=H265_CLOSED)),
    Film("gray.mp4", _plain(pix_fmt="gray")),
    Film("one-frame.mp4", _plain(frames=1), frames=1),
    # groups of pictures
    Film("h264-open.mp4", _plain(options=OPEN)),
    Film("h264-open.ts", _plain(options=OPEN)),
    Film("hevc-open.mp4", _plain("libx265", options=H265_OPEN)),
    Film("hevc-open.mkv", _plain("libx265", options=H265_OPEN)),
    Film("hevc-open.ts", _plain("libx265", options=H265_OPEN)),
    Film("refresh.mp4", _plain(options=REFRESH)),
    Film("refresh.ts", _plain(options=REFRESH)),
    Film("one-key.ts", _plain(options={**GOP, "g": "250"})),
    # turned, mirrored, not square
    Film("rotated-90.mp4", _turned(_matrix(0, 1, -1, 0)), [("transpose", "clock")]),
    Film("rotated-180.mp4", _turned(_matrix(-1, 0, 0, -1)), [("hflip", ""), ("vflip", "")]),
    Film("rotated-270.mov", _turned(_matrix(0, -1, 1, 0)), [("transpose", "cclock")]),
    Film("rotated-90.mkv", _turned(_matrix(0, 1, -1, 0)), [("transpose", "clock")]),
    Film("mirrored.mp4", _turned(_matrix(-1, 0, 0, 1)), [("hflip", "")]),
    Film("upside-down.mp4", _turned(_matrix(1, 0, 0, -1)), [("vflip", "")]),
    Film("transposed.mp4", _turned(_matrix(0, 1, 1, 0)), [("transpose", "cclock_flip")]),
    Film(
        "wide.mp4", _plain(set_up=_narrow(Fraction(2))), [("scale", "128:48:flags=bilinear"), RGB]
    ),
    Film(
        "narrow.mkv",
        _plain(set_up=_narrow(Fraction(2, 3))),
        [("scale", "64:72:flags=bilinear"), RGB],
    ),
    Film(
        "pal.mpg",
        _plain("mpeg2video", options=MPEG, set_up=_narrow(Fraction(16, 12))),
        [("scale", "85:48:flags=bilinear"), RGB],
    ),
    # times
    Film("trimmed.mp4", _edited((25, 7)), frames=25),
    Film("trimmed-at-a-key.mp4", _edited((28, 12)), frames=28),
    Film("late.mp4", _edited((15, -1), (30, 3)), frames=30),
    Film("two-pieces.mp4", _edited((10, 3), (12, 24)), frames=22),
    Film("five-seconds-in.mkv", _by_remux(".mp4", _plain(), shift=-150)),
    Film("uneven.mkv", _plain(times=UNEVEN), notes=("uneven",)),
    Film("uneven.mp4", _plain(times=UNEVEN), notes=("uneven",)),
    Film("ntsc.mp4", _plain(rate=NTSC)),
    Film("ntsc.ts", _plain(rate=NTSC)),
    # cut and joined as bytes or packets
    Film(
        "cut-open.mp4",
        _by_remux(
            ".mp4",
            _plain("libx265", options=H265_OPEN),
            first=13,
            shift=20,
            muxer=FRAGMENTS,
        ),
        frames=16,
        notes=("cut",),
    ),
    Film(
        "cut-open-h264.mp4",
        _by_remux(".mp4", _plain(options=OPEN), first=13, shift=20, muxer=FRAGMENTS),
        frames=16,
        notes=("cut",),
    ),
    Film("cut.ts", _by_bytes(_plain(), _packets(30)), frames=16, notes=("cut",)),
    Film(
        "cut.mpg",
        _by_bytes(_plain("mpeg2video", options=MPEG), lambda d: d[len(d) // 3 :]),
        frames=16,
        notes=("cut",),
    ),
    Film("ends-early.ts", _by_bytes(_plain(), _packets(0, 80))),
    Film(
        "joined.ts",
        _by_bytes(_plain(), lambda data: 2 * data),
        frames=2 * FRAMES,
        notes=("counted",),
    ),
    # what is said of them
    Film(
        "interlaced.mpg",
        _plain("mpeg2video", options=ILACE, interlaced=True, size=(64, 64)),
        notes=("interlaced",),
    ),
    Film(
        "interlaced.mp4",
        _plain(options={**GOP, "flags": "+ilme+ildct"}, interlaced=True),
        notes=("interlaced",),
    ),
    Film("hdr.mp4", _plain("libx265", options=H265_CLOSED, set_up=_pq), notes=("hdr",)),
    Film(
        "title.mp4",
        _by_bytes(_plain(title="AAAAAAAA"), lambda d: d.replace(b"AAAAAAAA", b"\xe9t\xe9 2024")),
    ),
    Film("cover.mp4", _plain(cover=True)),
]

if __name__ == "__main__":
    for film in ZOO:
        film.make(Path(sys.argv[1]) / film.name)
