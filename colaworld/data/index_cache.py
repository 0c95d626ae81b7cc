"""What opening a data set found out about its files, kept on disk: a start probes only what changed.

One JSON file per data set, under $COLAWORLD_CACHE, else $XDG_CACHE_HOME/colaworld, else
~/.cache/colaworld. An entry holds for a file's name, size and time of change; the whole file for one
version of this layout and of PyAV, which does the probing. It is written beside its name and renamed,
so that processes that share it see one whole state or another. It can be deleted at any time: what
is missing, damaged or not writable costs time and nothing else.
Not here: what the values mean (sources/).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av

from colaworld.files import write_atomically

log = logging.getLogger(__name__)
VERSION = 3  # raised when the meaning of a value changes


def cache_folder() -> Path | None:
    """Where this package may keep what it can make again. None: nowhere, without a home folder."""
    if own := os.environ.get("COLAWORLD_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return Path(shared) / "colaworld"
    try:
        return Path.home() / ".cache" / "colaworld"
    except RuntimeError:
        return None


class IndexCache:
    """Values by name and stamp, for the data set at `root`. `save()` when all were asked for."""

    def __init__(self, root: Path) -> None:
        # Names within it, and so errors, begin with the path as it was given.
        key = hashlib.sha256(f"{root.absolute()}\n{root}".encode()).hexdigest()[:32]
        folder = cache_folder()
        self.path = None if folder is None else folder / "index" / f"{key}.json"
        self._before = self._load()
        self._now: dict[str, Any] = {}

    def get(self, name: str, stamp: Callable[[], tuple[int, ...]], make: Callable[[], Any]) -> Any:
        """The JSON value kept for `name` while its stamp is the same, else that of `make()`."""
        try:
            mark = list(stamp())
        except OSError:
            return make()
        kept = self._before.get(name)
        value = kept[1] if kept is not None and kept[0] == mark else make()
        self._now[name] = [mark, value]
        return value

    def save(self, *, whole: bool = True) -> None:
        """Keep what was asked for, and, unless that was the `whole` set, what was there before."""
        if not whole:
            self._now = {**self._before, **self._now}
        if self.path is None or self._now == self._before:
            return
        try:
            text = json.dumps({**_header(self._now), "entries": self._now})
            write_atomically(self.path, text)
        except OSError as error:
            log.warning("%s: not kept, the next start probes again: %s", self.path, error)

    def _load(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            stored = json.loads(self.path.read_text())
            entries = stored.pop("entries")
            if stored["version"] != VERSION or stored["pyav"] != av.__version__:
                return {}
            if stored != _header(entries):
                raise ValueError("its checksum differs")
            return entries
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s: ignored, all files are probed again: %s", self.path, error)
            return {}


def _header(entries: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(entries, sort_keys=True)
    return {
        "version": VERSION,
        "pyav": av.__version__,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
