"""What sources that look for files in a folder share: which files there are, and what is told of bad ones.

Links to files are followed: whoever made the set put them there. Linked folders are not, and a warning
names them; nor is anything hidden read. Not here: what is in the files (videos.py, hdf5.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from colaworld.data.errors import DataError
from colaworld.data.sources.source import BrokenFile, EpisodeInfo


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


def holds(path: Path, wanted: Callable[[Path], bool], *, unless: Callable[[Path], bool]) -> bool:
    """Whether a file is `wanted`, or a folder has such files and none of those in `unless`, which is
    asked for names within it."""
    if path.is_file():
        return wanted(path)
    found = False
    for file in walk(path):  # once, and only up to the first of the others
        if unless(file.relative_to(path)) and file.is_file():
            return False
        found = found or wanted(file)
    return found


class FilesSource:
    """A folder of files, or one file. Broken ones are named, skipped and listed in `broken`."""

    _what = "files"  # the plural, for messages
    _wanted = ""  # which are looked for

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.broken: list[BrokenFile] = []
        self.episodes: list[EpisodeInfo] = []
        self._linked: list[Path] = []

    def _files(self) -> list[Path]:
        """The file, or what is in the folder, in order of path."""
        if self.path.is_file():
            return [self.path]
        closed: list[OSError] = []
        found = sorted(walk(self.path, linked=self._linked, closed=closed))
        for error in closed:
            self._skip(Path(error.filename), f"{error.filename}: cannot be read: {error.strerror}")
        return found

    def _place_of(self, file: Path) -> str:
        """How a file is called within the set."""
        return file.name if file == self.path else file.relative_to(self.path).as_posix()

    def _skip(self, file: Path, reason: str) -> None:
        self.broken.append(BrokenFile(file, reason))

    def _check_found(self) -> None:
        """DataError where there is no episode."""
        total = len(self.episodes) + len(self.broken)
        if not total:
            raise DataError(
                f"{self.path}: no {self._what} in it ({self._wanted})"
                f"{''.join(f'; {line}' for line in self._passed_over())}"
            )
        if not self.episodes:
            raise DataError(
                f"{self.path}: none of its {total} {self._what} can be read:\n"
                + "\n".join(f"  {b.reason}" for b in self.broken[:20])
            )

    def _passed_over(self) -> list[str]:
        if not self._linked:
            return []
        names = ", ".join(str(path) for path in self._linked[:5])
        more = f" and {len(self._linked) - 5} more" if len(self._linked) > 5 else ""
        return [f"linked folders are not followed: {names}{more}; link their files, or move them"]
