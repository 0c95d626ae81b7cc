"""Any folder of video files, recursive and unconverted: one file is one episode without actions.

Not here: frame rates made equal or sizes made equal (the loader's `fps`, `height`, `width`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from colaworld.data import decode
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.sources.base import BrokenFile, EpisodeInfo

log = logging.getLogger(__name__)
# fmt: off
SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".mts",
    ".m2ts", ".wmv", ".flv", ".ogv", ".3gp", ".y4m",
))
# fmt: on


class VideoFolderSource:
    """Files are taken in order of their path; hidden files and folders are left out."""

    kind = "video_folder"
    action_spec = None

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        files = [self.path] if self.path.is_file() else sorted(self._files())
        self.broken: list[BrokenFile] = []
        self.episodes: list[EpisodeInfo] = []
        for file in files:
            try:
                video = decode.probe(file)
            except BrokenFileError as error:
                log.warning("skipped: %s", error)
                self.broken.append(BrokenFile(file, str(error)))
                continue
            name = file.name if file == self.path else file.relative_to(self.path).as_posix()
            self.episodes.append(
                EpisodeInfo(
                    len(self.episodes),
                    name,
                    file,
                    video.frames,
                    video.fps,
                    video.height,
                    video.width,
                )
            )
        if not files:
            raise DataError(
                f"{self.path}: no video files in it (looked for {', '.join(sorted(SUFFIXES))})"
            )
        if not self.episodes:
            raise DataError(
                f"{self.path}: none of its {len(files)} video files can be read:\n"
                + "\n".join(f"  {b.reason}" for b in self.broken[:20])
            )

    def _files(self) -> Iterator[Path]:
        for file in self.path.rglob("*"):
            parts = file.relative_to(self.path).parts
            hidden = any(part.startswith(".") for part in parts)
            if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
                yield file

    def stream(self, episode: int, first: int, stop: int) -> Iterator[np.ndarray]:
        return decode.stream_frames(self.episodes[episode].path, first, stop)

    def read(self, episode: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return decode.read_frames(self.episodes[episode].path, indices)

    def times(self, episode: int) -> np.ndarray:
        return decode.frame_times(self.episodes[episode].path).seconds

    def actions(self, episode: int) -> np.ndarray | None:
        return None
