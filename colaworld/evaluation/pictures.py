"""Frames as data: URIs: PNG for one image, animated PNG for a rollout. Lossless, zlib only.

An animated PNG keeps every colour (a GIF has 256) and needs no image library; all current browsers
play it. Images stay at their own size: the page enlarges small ones without blur. Not here: video
files (`colaworld sample` writes those).
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _check(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"expected uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}")


def _pixels(frame: np.ndarray) -> bytes:
    """Deflated rows, each filtered by the difference to its left neighbour (PNG filter 1)."""
    left = np.zeros_like(frame)
    left[:, 1:] = frame[:, :-1]
    rows = (frame - left).reshape(frame.shape[0], -1)  # uint8 arithmetic wraps, as PNG asks
    return zlib.compress(np.insert(rows, 0, 1, axis=1).tobytes(), 9)


def _header(height: int, width: int) -> bytes:
    return _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png(image: np.ndarray) -> bytes:
    """image: [H, W, 3] uint8."""
    _check(image[None])
    body = _chunk(b"IDAT", _pixels(image)) + _chunk(b"IEND", b"")
    return _header(*image.shape[:2]) + body


def animated_png(frames: np.ndarray, *, seconds: float | Sequence[float], loops: int = 0) -> bytes:
    """Frames that play for ever (or `loops` times).

    Args:
        frames: [T, H, W, 3] uint8.
        seconds: how long each frame is shown; one number, or one per frame.
    """
    _check(frames)
    count, height, width, _ = frames.shape
    times = [seconds] * count if isinstance(seconds, (int, float)) else list(seconds)
    if len(times) != count:
        raise ValueError(f"seconds: expected 1 or {count} durations, got {len(times)}")
    parts = [_header(height, width), _chunk(b"acTL", struct.pack(">II", count, loops))]
    sequence = 0
    for index, frame in enumerate(frames):
        control = struct.pack(
            ">IIIIIHHBB", sequence, width, height, 0, 0, round(times[index] * 1000), 1000, 0, 0
        )
        parts.append(_chunk(b"fcTL", control))
        sequence += 1
        if index == 0:
            parts.append(_chunk(b"IDAT", _pixels(frame)))
        else:
            parts.append(_chunk(b"fdAT", struct.pack(">I", sequence) + _pixels(frame)))
            sequence += 1
    return b"".join(parts) + _chunk(b"IEND", b"")


def data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def fit(frames: np.ndarray, *, side: int) -> np.ndarray:
    """[..., H, W, 3] -> no side longer than `side`, by averaging whole blocks; never enlarges."""
    factor = -(-max(frames.shape[-3], frames.shape[-2]) // side)
    if factor <= 1:
        return frames
    height, width = frames.shape[-3] // factor, frames.shape[-2] // factor
    cut = frames[..., : height * factor, : width * factor, :]
    blocks = cut.reshape(*frames.shape[:-3], height, factor, width, factor, 3)
    return blocks.mean(axis=(-4, -2)).round().astype(np.uint8)
