"""Films to frames: our reader (PyAV) beside torchcodec, whole films and pieces of them, one thread each.

Both run the same codecs of FFmpeg; what differs is what lies around them. torchcodec is not an option of
the loader: colaworld/data/README.md says why, and these rows are its numbers. Not here: the loader.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from colaworld.data.config import EncodingConfig
from colaworld.data.video_reader import stream_frames
from colaworld.data.video_writer import VideoWriter

from . import shapes
from .case import Call, Case, Request, Unavailable
from .shapes import Shape

TESTS = ("tests/data/test_video_reader.py",)
SIDES = {"28x36": (28, 36), "64x64": (64, 64), "240x320": (240, 320)}
FRAMES, PIECE = 240, 16
_folders: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def cases(request: Request) -> Iterator[Case]:
    sides = SIDES
    if request.overrides:  # tests make things tiny
        config = shapes.run_config(request.recipe, request.overrides)
        sides = {"given": shapes.frame_size(config)}
    for name, (height, width) in sides.items():
        for part, frames in (("film", FRAMES), ("piece", PIECE)):
            sizes = {"frames": frames, "height": height, "width": width}
            yield _case(Shape(f"{name}.{part}", sizes, "a film, or frames out of it"))


@cache
def film(height: int, width: int) -> Path:
    """A scene in H.264 as most sets have it: 4:2:0, a key frame every 12th frame."""
    from colaworld import envs
    from colaworld.envs import behaviours

    scene = envs.make("scene", height=height, width=width, square=min(6, min(height, width) - 2))
    acting = behaviours.make("sticky-random", scene, repeat=0.5)
    played = envs.play(scene, acting, seed=0, episode=0, steps=FRAMES)
    _folders.append(tempfile.TemporaryDirectory(prefix="colaworld-decode-"))
    path = Path(_folders[-1].name) / "film.mp4"
    how = EncodingConfig(pixel_format="yuv420p", crf=23, keyframe_every=12)
    with VideoWriter(path, fps=scene.fps, height=height, width=width, encoding=how) as writer:
        for frame in played.frames:
            writer.write(frame)
    return path


def _case(shape: Shape) -> Case:
    height, width = shape.of(("height", "width"))
    frames = shape.sizes["frames"]
    firsts = np.linspace(0, FRAMES - frames, 5, dtype=int).tolist()  # pieces take turns

    def read(name: str, first: int) -> np.ndarray:
        path = film(height, width)
        if name == "pyav":
            return np.stack(list(stream_frames(path, first, first + frames)))
        decoder = _torchcodec()(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        return decoder.get_frames_in_range(first, first + frames).data.numpy()

    def provider(name: str) -> Sequence[Call]:
        turns = cycle(firsts)
        return [lambda: read(name, next(turns))]

    def verify(name: str) -> str | None:
        same = all(np.array_equal(read(name, at), read("pyav", at)) for at in firsts)
        return None if same else "its frames are not those of our reader"

    return Case.of(
        "data",
        "decode",
        shape,
        "uint8/fwd",
        ("pyav", "torchcodec"),
        provider,
        tests=TESTS,
        verify=verify,
        counts={"frames": frames},
    )


def _torchcodec() -> Any:
    """Its decoder. Unavailable where it is not installed or finds no FFmpeg or CUDA libraries."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise Unavailable(f"torchcodec: {str(error).strip().splitlines()[0]}") from error
    return VideoDecoder
