"""What sources of plain videos share: one video is one episode, of any size and rate, no actions.

A subclass says where its videos are (`_find`); they are probed once and remembered (../index_cache.py).
Links to files are followed: whoever made the set put them there. Linked folders are not, and a warning
names them; nor is anything hidden read.
Not here: frame rates made equal or sizes made equal (the loader's `fps`, `height`, `width`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from colaworld.data import video_reader
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.index_cache import IndexCache
from colaworld.data.sources.source import BrokenFile, Description, EpisodeInfo
from colaworld.data.video_file import READING, Video
from colaworld.data.video_reader import NOTES, VideoInfo

log = logging.getLogger(__name__)
# fmt: off
SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".mts",
    ".m2ts", ".wmv", ".flv", ".ogv", ".3gp", ".y4m",
))
# fmt: on


def is_video(name: PurePath) -> bool:
    """Whether a name is that of a video, and neither it nor a folder above it is hidden."""
    return name.suffix.lower() in SUFFIXES and not is_hidden(name)


def is_hidden(name: PurePath) -> bool:
    """Whether it or a folder above it is hidden."""
    return any(part.startswith(".") and part != ".." for part in name.parts)


def walk(
    root: Path, *, linked: list[Path] | None = None, closed: list[OSError] | None = None
) -> Iterator[Path]:
    """Whatever is no folder below `root`, without what is hidden, in any order.

    Fills, where given: `linked` with folders that are links, which are not entered; `closed` with the
    errors of those that cannot be listed.
    """
    for folder, names, files in os.walk(root, onerror=None if closed is None else closed.append):
        names[:] = [name for name in names if not name.startswith(".")]
        if linked is not None:
            linked += [Path(folder, name) for name in names if os.path.islink(f"{folder}/{name}")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


class VideosSource:
    """Episodes in the order of `_find`. Broken ones are named, skipped and listed in `broken`."""

    kind: str
    format = "video files"
    _what = "a folder of videos"
    action_spec = None
    uniform_fps = False

    def __init__(
        self, path: Path, *, camera: str | None = None, action_column: str | None = "action"
    ) -> None:
        self.path, self._action_column = Path(path), action_column
        self.broken: list[BrokenFile] = []
        self.episodes: list[EpisodeInfo] = []
        self._videos: list[Video] = []
        self._linked: list[Path] = []
        self._notes: dict[str, list[str]] = {}  # of which episodes something is to be said
        index = IndexCache(self.path)
        try:
            for name, file, video in self._find(index):
                self._add(name, file, video, index)
        except BaseException:  # Ctrl-C during a long first look, for one
            index.save(whole=False)
            raise
        index.save()
        total = len(self.episodes) + len(self.broken)
        if not total:
            raise DataError(
                f"{self.path}: no video files in it (looked for {', '.join(sorted(SUFFIXES))}; a set "
                "may also be a LeRobot folder, which has meta/info.json, or .tar files of videos"
                f"){''.join(f'; {line}' for line in self._passed_over())}"
            )
        if not self.episodes:
            raise DataError(
                f"{self.path}: none of its {total} video files can be read:\n"
                + "\n".join(f"  {b.reason}" for b in self.broken[:20])
            )

    def _find(self, index: IndexCache) -> Iterator[tuple[str, Path, Video]]:
        """(name within the set, file on disk, video) of each episode; `_skip` what is broken."""
        raise NotImplementedError

    def _add(self, name: str, file: Path, video: Video, index: IndexCache) -> None:
        try:
            info = probe_video(video, index)
        except BrokenFileError as error:
            self._skip(file, str(error))
            return
        number = len(self.episodes)
        self._videos.append(video)
        for note in info.notes:
            self._notes.setdefault(note, []).append(name)
        self.episodes.append(
            EpisodeInfo(number, name, file, info.frames, info.fps, info.height, info.width)
        )

    def _skip(self, file: Path, reason: str) -> None:
        log.warning("skipped: %s", reason)
        self.broken.append(BrokenFile(file, reason))

    def _files(self) -> list[Path]:
        """What is in the folder, in order of path."""
        closed: list[OSError] = []
        found = sorted(walk(self.path, linked=self._linked, closed=closed))
        for error in closed:
            self._skip(Path(error.filename), f"{error.filename}: cannot be read: {error.strerror}")
        return found

    def _passed_over(self) -> list[str]:
        if not self._linked:
            return []
        names = ", ".join(str(path) for path in self._linked[:5])
        more = f" and {len(self._linked) - 5} more" if len(self._linked) > 5 else ""
        return [f"linked folders are not followed: {names}{more}; link their files, or move them"]

    def describe(self) -> Description:
        total = len(self.episodes)
        notes = [
            f"{len(names)} of {total} videos are {NOTES[note]} (first: {names[0]})"
            for note, names in self._notes.items()
            if note != "uneven"
        ]
        return Description(
            self.format,
            f"{self.path}: {self._what} has no actions (column {self._action_column!r} was asked); "
            " record or convert to LeRobot v3 to have them",
            warnings=(*notes, *self._passed_over()),
            uneven=tuple(self._notes.get("uneven", ())),
            reading=READING,
        )

    def identity(self, episode: int) -> tuple[str, int | None]:
        try:
            size = self._videos[episode].stamp()[0]
        except OSError:
            size = None
        return self._place(episode), size

    def _place(self, episode: int) -> str:
        return os.path.relpath(self.episodes[episode].path, self.path)

    def stream(self, episode: int, first: int, stop: int) -> Iterator[np.ndarray]:
        return video_reader.stream_frames(self._videos[episode], first, stop)

    def read(self, episode: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return video_reader.read_frames(self._videos[episode], indices)

    def times(self, episode: int) -> np.ndarray:
        return video_reader.frame_times(self._videos[episode]).seconds

    def actions(self, episode: int) -> np.ndarray | None:
        return None


def probe_video(video: Video, index: IndexCache) -> VideoInfo:
    """`video_reader.probe`, or what it found before. Raises BrokenFileError."""

    def make() -> dict[str, Any]:
        try:
            return asdict(video_reader.probe(video))
        except BrokenFileError as error:
            if isinstance(error.__cause__, OSError):  # not for good: permissions, a disk, a network
                raise
            return {"broken": str(error)}

    value = index.get(video.name, video.stamp, make)
    if "broken" in value:
        raise BrokenFileError(value["broken"])
    return VideoInfo(**value)
