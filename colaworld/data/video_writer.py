"""Frames -> an mp4 file, one at a time. Not here: reading (video_reader.py), data sets
(sources/lerobot_writer.py).

Key frames every 2nd frame: a random clip then decodes at most one frame too many, which makes
random access several times faster at about the same size.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from colaworld.data.config import EncodingConfig


class VideoWriter:
    """Writes uint8 RGB frames [H, W, 3] of one size into an mp4. Use as a context manager."""

    def __init__(
        self, path: Path, *, fps: float, height: int, width: int, encoding: EncodingConfig
    ) -> None:
        if encoding.pixel_format == "yuv420p" and (height % 2 or width % 2):
            raise ValueError(
                f"{path}: yuv420p needs even sides, got {height}x{width}; use yuv444p or even sizes"
            )
        self.path, self.frames = path, 0
        self.bytes = 0  # compressed so far, without the frames that the encoder still holds
        self._shape = (height, width, 3)
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = Fraction(fps).limit_denominator(1001)
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.options = {
            "crf": str(encoding.crf),
            "preset": encoding.preset,
            "g": str(encoding.keyframe_every),
            "bf": "0",
            # Macroblock trees weigh a block by how long it will be seen: pointless over two frames,
            # and the one part of x264 that wrote different files from the same frames (about 1
            # recording in 100, at sizes that are not multiples of 16).
            "mbtree": "0",
            "rc-lookahead": "0",
        }
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = encoding.pixel_format
        self._stream.codec_context.thread_count = 1
        self._time_base = self._stream.time_base = 1 / rate

    def write(self, frame: np.ndarray) -> None:
        """Append one frame. ValueError where it is not uint8 of the writer's size."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: expected a uint8 frame {self._shape}, "
                f"got {frame.dtype} {frame.shape}"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = self.frames, self._time_base
        for packet in self._stream.encode(picture):
            self.bytes += packet.size
            self._container.mux(packet)
        self.frames += 1

    def close(self) -> None:
        """Flush the encoder and end the file; a second call does nothing."""
        if self._container is None:
            return
        container, self._container = self._container, None
        for packet in self._stream.encode():
            container.mux(packet)
        container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
