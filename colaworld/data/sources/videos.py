"""What sources of plain videos share: one video is one episode, of any size and rate, no actions.

A subclass says where its videos are (`_find`); they are probed once and remembered (../index_cache.py).
Not here: which files there are (files.py), frame rates made equal or sizes made equal (the loader's `fps`, `height`, `width`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from colaworld.data import video_reader
from colaworld.data.errors import BrokenFileError
from colaworld.data.index_cache import IndexCache
from colaworld.data.sources.files import FilesSource, is_hidden
from colaworld.data.sources.source import Description, EpisodeInfo
from colaworld.data.video_file import READING, Video
from colaworld.data.video_reader import NOTES, VideoInfo

# fmt: off
SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".mts",
    ".m2ts", ".wmv", ".flv", ".ogv", ".3gp", ".y4m",
))
# fmt: on


def is_video(name: PurePath) -> bool:
    """Whether a name is that of a video, and neither it nor a folder above it is hidden."""
    return name.suffix.lower() in SUFFIXES and not is_hidden(name)


class VideosSource(FilesSource):
    """Episodes in the order of `_find`."""

    kind: str
    format = "video files"
    _what = "video files"
    _wanted = (
        f"looked for {', '.join(sorted(SUFFIXES))}; a set may also be a LeRobot folder, which has "
        "meta/info.json, or hold .tar files of videos or .hdf5 files"
    )
    action_spec = None
    uniform_fps = False

    def __init__(
        self, path: Path, *, camera: str | None = None, action_column: str | None = "action"
    ) -> None:
        super().__init__(path)
        self._action_column = action_column
        self._videos: list[Video] = []
        self._notes: dict[str, list[str]] = {}  # of which episodes something is to be said
        index = IndexCache(self.path)
        try:
            for name, file, video in self._find(index):
                self._add(name, file, video, index)
        except BaseException:  # Ctrl-C during a long first look, for one
            index.save(whole=False)
            raise
        index.save()
        self._check_found()

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

    def describe(self) -> Description:
        notes = {note: names for note, names in self._notes.items() if note != "uneven"}
        return Description(
            self.format,
            f"{self.path}: a folder of videos has no actions (column {self._action_column!r} was asked); "
            "record or convert to LeRobot v3 to have them",
            warnings=(*told_notes(notes, len(self.episodes)), *self._passed_over()),
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


def told_notes(notes: Mapping[str, Sequence[str]], total: int) -> list[str]:
    """What `NOTES` say of these videos among `total`, a line each; `notes`: key -> names."""
    return [
        f"{len(names)} of {total} videos are {NOTES[note]} (first: {names[0]})"
        for note, names in notes.items()
    ]


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
