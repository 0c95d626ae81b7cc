"""A folder that is made beside its name and gets it when it is whole; nothing of others is lost by it.

    .NAME.partial    where it is made: locked while its maker lives, so that a second one is refused
                     and what a killed one left is cleared by the next
    .NAME.replaced   what had the name before, for the moment until it is deleted

Not here: what is written into it (lerobot_writer.py, lerobot_columns.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from colaworld.data.errors import DataError


class NewFolder:
    """Fill `work`, then `publish()` or `drop()`.

    `replaceable(folder)` raises DataError where a folder that holds something must stay; without it,
    every such folder stays.

    Raises:
        DataError: another process makes the same folder.
        OSError: the folder beside it cannot be made.
    """

    def __init__(self, target: Path, *, replaceable: Callable[[Path], None] | None = None) -> None:
        self.target, self._replaceable = Path(target).resolve(), replaceable
        self.work = self.target.with_name(f".{self.target.name}.partial")
        self._aside = self.target.with_name(f".{self.target.name}.replaced")
        self.work.parent.mkdir(parents=True, exist_ok=True)
        self._lock()
        for left in self.work.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        if self._aside.exists() and not self.target.exists():  # killed between two renames
            os.rename(self._aside, self.target)
        shutil.rmtree(self._aside, ignore_errors=True)

    def _lock(self) -> None:
        while True:
            self.work.mkdir(exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            try:
                self._descriptor = os.open(self.work, flags)
            except FileNotFoundError:  # published since
                continue
            held = True
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                held = False
                if isinstance(error, BlockingIOError) or any(self.work.iterdir()):
                    os.close(self._descriptor)
                    raise DataError(
                        f"{self.target}: another process is writing it; wait, or choose another "
                        f"folder (where locks are not supported: delete {self.work} if none is)"
                    ) from None
            now = self.work.stat() if self.work.exists() else None
            if not held or (now and os.path.samestat(os.fstat(self._descriptor), now)):
                return
            os.close(self._descriptor)  # it was published, or dropped, just before

    def publish(self) -> Path:
        """Give the folder its name. Returns it.

        Raises DataError where something with that name must stay: it does, and what was made is
        kept beside it, under the name that the error tells.
        """
        try:
            if self._replaceable and self.target.is_dir() and any(self.target.iterdir()):
                os.rename(self.target, self._aside)
                self._replaceable(self._aside)
            os.rename(self.work, self.target)  # an empty folder gives way, anything else does not
        except BaseException as error:
            if self._aside.exists() and not self.target.exists():
                os.rename(self._aside, self.target)
            if not self.target.exists() or not isinstance(error, (DataError, OSError)):
                raise
            numbers = (self.target.with_name(f"{self.target.name}-{n}") for n in range(2, 10_000))
            kept = next(path for path in numbers if not path.exists())
            os.rename(self.work, kept)
            self._close()
            raise DataError(
                f"{self.target}: has come to hold something else and stays as it is; what was made "
                f"is in {kept} ({error})"
            ) from None
        self._close()
        shutil.rmtree(self._aside, ignore_errors=True)
        return self.target

    def drop(self) -> None:
        """Delete what was made. Again, or after `publish`: nothing happens."""
        if self._descriptor >= 0:
            shutil.rmtree(self.work, ignore_errors=True)
            self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def link_or_copy(file: Path, new: Path, *, link: bool = True) -> None:
    """A hard link to `file`; a copy without `link`, or where the file systems allow none."""
    try:
        if not link:
            raise OSError
        os.link(file, new)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(file, new)
