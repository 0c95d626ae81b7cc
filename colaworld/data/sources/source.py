"""What a data set on disk must offer: the `Source` protocol.

Not here: opening one (`open_source` in this folder's `__init__`), clips, crops, caches
(../clips.py). A source knows files and frames only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from colaworld.contracts import ActionSpec

log = logging.getLogger(__name__)


@cache
def tell_once(level: int, message: str) -> None:
    """A training and its held-out share open the same set: once in a process is enough."""
    log.log(level, message)


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
    episodes: int = 1  # that are lost by it


@dataclass(frozen=True)
class Description:
    """What a source says of itself, for headers, listings and messages."""

    format: str
    """What the files are: "LeRobot v3", "video files"."""
    no_actions: str
    """The error of whoever asks for actions where `action_spec` is None: names file and column."""
    camera: str | None = None
    """Of several views, the one in use."""
    cameras: tuple[str, ...] = ()
    """Views to choose from."""
    columns: tuple[str, ...] = ()
    """What there is per frame besides its picture."""
    warnings: tuple[str, ...] = ()
    """What a person should know of it, though it can be read: a line each."""
    uneven: tuple[str, ...] = ()
    """Names of episodes whose frames are not evenly spaced in time."""
    reading: str | None = None
    """How frames are made of the files, where that has changed: latents are stored with it."""


class Source(Protocol):
    """Episodes of frames, perhaps with real actions."""

    kind: str  # the name it is registered by
    path: Path
    episodes: Sequence[EpisodeInfo]
    broken: Sequence[BrokenFile]  # found when opening; not among `episodes`
    action_spec: ActionSpec | None  # None: no such column
    uniform_fps: bool  # frames are evenly spaced, so that a rate that divides fps is a stride

    def describe(self) -> Description:
        """What it is, in words."""
        ...

    def identity(self, episode: int) -> tuple[str, int | None]:
        """What an episode's frames are read from: its name within the set, and its bytes.

        Fingerprints of a data set are made of these. The bytes are None where it is missing.
        """
        ...

    def stream(self, episode: int, first: int, stop: int) -> Iterator[np.ndarray]:
        """Frames first..stop-1 of an episode in order, each uint8 [H, W, 3]; bounded memory.

        Raises BrokenFileError where they cannot be read: the segment is counted and left out.
        """
        ...

    def read(self, episode: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames at `indices`, uint8 [n, H, W, 3]. Raises BrokenFileError as `stream` does."""
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


@runtime_checkable
class TellsStatistics(Protocol):
    """A source whose files state statistics of the actions: they are checked, never used."""

    def told_statistics(self) -> tuple[str, Mapping[str, list[float]]] | None:
        """(where it stands, what it says): min, max, mean, std, q01 and q99 per channel, count; each may
        be missing. None: nothing is said. Raises DataError where it cannot be read."""
        ...


@runtime_checkable
class TellsMissingActions(Protocol):
    """A source whose episodes have columns of their own, which it knows without reading them."""

    def lacks_actions(self, episode: int) -> bool:
        """Whether the set's action column is missing there: `actions` raises DataError."""
        ...


def without_actions(source: Source, episodes: Sequence[EpisodeInfo]) -> EpisodeInfo | None:
    """The first of these episodes that is known to lack the set's action column."""
    if source.action_spec is None or not isinstance(source, TellsMissingActions):
        return None
    return next((e for e in episodes if source.lacks_actions(e.index)), None)


@runtime_checkable
class TellsActionFiles(Protocol):
    """A source whose actions lie in files: what is measured of them is kept until one changes."""

    def action_files(self) -> Sequence[Path]:
        """The files that `actions` reads, of all episodes."""
        ...
