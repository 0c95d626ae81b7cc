"""What a data set on disk must offer: the `Source` protocol, and how one is opened.

Not here: clips, windows, crops (clips.py), caches (cache.py). A source knows files and frames only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.data.errors import DataError


@dataclass(frozen=True)
class EpisodeInfo:
    """One uninterrupted recording."""

    index: int
    name: str  # stable across machines: what the held-out share is drawn by
    path: Path  # the file its frames are in; several episodes may share one
    frames: int
    fps: float
    height: int
    width: int


@dataclass(frozen=True)
class BrokenFile:
    """A file (or episode) that could not be used, and why."""

    path: Path
    reason: str


class Source(Protocol):
    """Episodes of frames, perhaps with real actions."""

    kind: str  # "lerobot", "video_folder"
    path: Path
    episodes: Sequence[EpisodeInfo]
    broken: Sequence[BrokenFile]  # found when opening; not among `episodes`
    action_spec: ActionSpec | None  # None: no such column

    def stream(self, episode: int, first: int, stop: int) -> Iterator[np.ndarray]:
        """Frames first..stop-1 of an episode in order, each uint8 [H, W, 3]; bounded memory."""
        ...

    def read(self, episode: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames at `indices`, uint8 [n, H, W, 3]."""
        ...

    def times(self, episode: int) -> np.ndarray:
        """Seconds since the episode's first frame, float64 [frames]."""
        ...

    def actions(self, episode: int) -> np.ndarray | None:
        """int64 [frames] or float32 [frames, A]; row t leads from frame t to t + 1.

        None where the set has no action column. Raises DataError (naming file and column) where
        the column does not match the frames: there is no default action.
        """
        ...


def open_source(
    path: Path | str,
    *,
    kind: str = "auto",
    camera: str | None = None,
    action_column: str | None = "action",
) -> Source:
    """Open a folder as the `kind` of source it is; "auto" looks for LeRobot's meta/info.json."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder; record one with `colaworld record`")
    if kind == "auto":
        kind = "lerobot" if (path / "meta" / "info.json").exists() else "video_folder"
    if kind == "lerobot":
        from colaworld.data.sources.lerobot import LeRobotSource

        return LeRobotSource(path, camera=camera, action_column=action_column)
    if kind == "video_folder":
        from colaworld.data.sources.video_folder import VideoFolderSource

        return VideoFolderSource(path)
    raise DataError(f"unknown source {kind!r}; expected auto, lerobot or video_folder")
