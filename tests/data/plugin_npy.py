"""A source from outside: a folder of arrays, one per episode, with their actions beside them.

It stands for what a user writes in one file of their own; no list of the package knows it.

    a.npy           uint8 [n, H, W, 3]
    a.actions.npy   int64 [n], classes 0 and 1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.data.errors import DataError
from colaworld.data.sources.registry import register_source
from colaworld.data.sources.source import BrokenFile, Description, EpisodeInfo

FPS = 10.0


class NpySource:
    """Arrays in order of their names, mapped, not read."""

    kind = "npy"
    uniform_fps = True
    broken: Sequence[BrokenFile] = ()

    def __init__(self, path: Path, *, camera: str | None, action_column: str | None) -> None:
        files = sorted(f for f in path.glob("*.npy") if not f.stem.endswith(".actions"))
        if not files:
            raise DataError(f"{path}: no arrays in it")
        self.path = path
        self._frames = [np.load(file, mmap_mode="r") for file in files]
        self.episodes = [
            EpisodeInfo(i, file.stem, file, len(frames), FPS, *frames.shape[1:3])
            for i, (file, frames) in enumerate(zip(files, self._frames, strict=True))
        ]
        asked = action_column == "action"
        self.action_spec = ActionSpec("action", "discrete", 2) if asked else None

    def describe(self) -> Description:
        return Description("arrays", f"{self.path}: no such actions", columns=("action",))

    def identity(self, episode: int) -> tuple[str, int | None]:
        info = self.episodes[episode]
        return info.path.name, info.path.stat().st_size

    def stream(self, episode: int, first: int, stop: int) -> Iterator[np.ndarray]:
        for frame in self._frames[episode][first:stop]:
            yield np.array(frame)

    def read(self, episode: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.array(self._frames[episode][np.asarray(indices)])

    def times(self, episode: int) -> np.ndarray:
        return np.arange(self.episodes[episode].frames) / FPS

    def actions(self, episode: int) -> np.ndarray | None:
        info = self.episodes[episode]
        return np.load(info.path.with_suffix(".actions.npy")) if self.action_spec else None


register_source("npy", detect=lambda path: any(path.glob("*.npy")), open=NpySource)
