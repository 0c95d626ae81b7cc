"""One process in a run folder at a time. Not here: what the folder holds (run_folder.py)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from colaworld.training.contracts import RunFolderError


class FolderLock:
    """Holds `folder` until `close` or until the process ends, however it ends.

    The lock is on the folder itself: no file is left behind. On a network file system it may hold for
    the processes of one machine only.

    Raises:
        RunFolderError: another process holds the folder.
        OSError: the folder cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise RunFolderError(
                f"{folder}: another process is training in this folder; wait for it, stop it, or "
                "choose another --out"
            ) from None

    def close(self) -> None:
        """Let the folder go."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a forked worker may hold a copy of it
        os.close(self._descriptor)
