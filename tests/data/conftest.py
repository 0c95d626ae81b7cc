"""Films for the tests: frames that carry their own number, and recordings of the scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from colaworld import envs
from colaworld.cli.bench import suite
from colaworld.data.sources.lerobot_writer import LeRobotWriter
from colaworld.envs import behaviours

BITS = 10


def _numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """Ten vertical bars, the bits of `number`: white is 1. Survives any compression or resizing."""
    bits = np.array([(number >> b) & 1 for b in range(BITS)])
    columns = bits[np.arange(width) * BITS // width]
    frame = np.where(columns[None, :, None], 230, 25).astype(np.uint8)
    return np.broadcast_to(frame, (height, width, 3)).copy()


def _number_of(frame: np.ndarray) -> int:
    """Inverse of the above, for [H, W, 3] or [3, H, W]."""
    gray = frame.mean(axis=0 if frame.shape[0] == 3 else 2).mean(0)
    centres = (np.arange(BITS) * 2 + 1) * len(gray) // (2 * BITS)
    return int(sum(1 << b for b, x in enumerate(centres) if gray[x] > 128))


@pytest.fixture
def number_of() -> Callable[[np.ndarray], int]:
    return _number_of


@pytest.fixture
def film() -> Callable[..., Path]:
    """film(path, numbers, ...) writes a video that shows these numbers, one per frame."""

    def write(
        path: Path,
        numbers: Sequence[int],
        *,
        height: int = 32,
        width: int = 80,
        fps: int = 10,
        codec: str = "libx264",
        gop: int = 12,
        times: Sequence[int] | None = None,  # in hundredths of a second; default: even
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=fps)
            stream.height, stream.width = height, width
            stream.pix_fmt = {"gif": "rgb8"}.get(codec, "yuv420p")
            base = Fraction(1, fps) if times is None else Fraction(1, 100)
            stream.codec_context.time_base = base
            if codec == "libx264":
                stream.options = {"g": str(gop), "bf": "2"}
            for i, number in enumerate(numbers):
                picture = av.VideoFrame.from_ndarray(
                    _numbered_frame(number, height, width), "rgb24"
                )
                picture.pts = i if times is None else times[i]
                picture.time_base = base
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def scene_set() -> Callable[..., Path]:
    """scene_set(path, lengths) records the scene: one episode per length, actions included."""

    def write(path: Path, lengths: Sequence[int], *, actions: bool = True, **options) -> Path:
        env = envs.make("scene", height=20, width=24)
        behaviour = behaviours.make("sticky-random", env)
        writer = LeRobotWriter(
            path,
            fps=env.fps,
            height=20,
            width=24,
            action=env.action_spec if actions else None,
            **options,
        )
        for i, length in enumerate(lengths):
            episode = envs.play(env, behaviour, seed=0, episode=i, steps=length)
            writer.add(episode.frames, episode.actions if actions else None, task="walk")
        return writer.finish()

    return write


@pytest.fixture(scope="session")
def as_v21() -> Callable[[Path, Path], Path]:
    """as_v21(v3, path): a set of layout v3.0 with a film per episode, as LeRobot v2.1 lays it out."""
    return suite("packed").as_lerobot_v21
