"""The encoder keeps colours where it should, and says what it cannot take."""

from __future__ import annotations

import av
import numpy as np
import pytest

from colaworld.data import video_reader
from colaworld.data.config import EncodingConfig
from colaworld.data.video_writer import VideoWriter


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def _write(path, frames, **options) -> np.ndarray:
    height, width = frames.shape[1:3]
    encoding = EncodingConfig(**options)
    with VideoWriter(path, fps=10, height=height, width=width, encoding=encoding) as writer:
        for frame in frames:
            writer.write(frame)
    return video_reader.read_frames(path, range(len(frames)))


def test_full_colour_resolution_keeps_small_cells(tmp_path) -> None:
    cells = np.random.default_rng(0).integers(0, 256, (6, 7, 9, 3), np.uint8)
    frames = cells.repeat(4, 1).repeat(4, 2)
    sharp = _psnr(_write(tmp_path / "a.mp4", frames), frames)
    blurred = _psnr(_write(tmp_path / "b.mp4", frames, pixel_format="yuv420p"), frames)
    assert sharp > 38 and sharp > blurred + 8


def test_every_second_frame_is_a_key_frame(tmp_path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    _write(tmp_path / "a.mp4", np.stack([frame] * 8))  # x264 adds key frames of its own at cuts
    with av.open(str(tmp_path / "a.mp4")) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
    assert keys == [True, False] * 4


def test_wrong_frames_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="yuv420p needs even sides, got 15x16"):
        VideoWriter(
            tmp_path / "a.mp4",
            fps=10,
            height=15,
            width=16,
            encoding=EncodingConfig(pixel_format="yuv420p"),
        )
    with pytest.raises(ValueError, match=r"expected a uint8 frame \(16, 16, 3\)"):
        _write(tmp_path / "b.mp4", np.zeros((1, 16, 16, 3), np.float32))
