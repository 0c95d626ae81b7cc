"""Files: written whole or not at all, and known again by their sums; who holds a folder.

A reader sees the old file or the new one, never half of one. What we write carries a sha256: a tensor
file in the JSON beside it, that JSON in itself (`seal`). Whoever reads it compares.
Not here: what is in a file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
SHARD_GB = 5.0  # what hubs and file systems carry comfortably in one file
SEAL = "sha256"  # the key of the hash of all other keys
_OF_RUN = {
    "format_version",
    "global_step",
    "config",
}  # in every config.json beside weights of a run
_OF_EXPORT = {"colaworld", "model"}


class FileError(ValueError):
    """A file that cannot be read or is not as it was written; the message names it."""


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write beside `path`, flush to disk, rename over it. The folder is made when missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        share(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # of a full disk the system names none
        raise


def sync(path: Path) -> None:
    """Make sure that a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def makeable(folder: Path) -> bool:
    """Whether a folder is there, or its nearest parent that is one could hold it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def printable(text: object, *, keep: str = "") -> str:
    """For messages: control characters, and bytes of a name that are no UTF-8, spelled out."""
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def share(path: str | Path) -> None:
    """Give a file that was made private the mode of any new file: 0644 under the usual umask."""
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def write_refused(path: str | Path, error: Exception, need: int = 0) -> tuple[str, OSError]:
    """What to say where writing `path` failed, and the error of the system behind it.

    `need`: bytes of what was to be written. safetensors tells the system's errors in words.
    """
    if not isinstance(error, OSError):
        number = re.search(r"\(os error (\d+)\)", str(error))
        error = OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(error)
    home = Path(path).parent
    while not home.exists():
        home = home.parent
    advice = "make the folder writable"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = f"make room ({shutil.disk_usage(home).free / 1e6:.1f} MB are free there)"
    elif error.errno == errno.EFBIG:
        advice = "raise the limit on the size of a file (ulimit -f)"
    size = f" (it needs {need / 1e6:.1f} MB)" if need else ""
    return f"{path}: cannot be written{size}: {error}; {advice}", error


def plain(value: Any) -> Any:
    """Numbers as JSON knows them: NaN and infinity, which JSON has not, become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON, atomically; non-finite numbers as null."""
    write_atomically(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, *, made_by: str = "") -> Any:
    """Read JSON. Raises FileError, which names the file, where it is missing or not JSON.

    made_by: what writes such a file, for the message where it is missing.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # to open a pipe is to wait for ever
            raise FileError(f"{path}: expected a file, found something else")
        return json.loads(Path(path).read_text())
    except OSError as error:
        hint = f"; {made_by} writes it" if made_by else ""
        raise FileError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: not valid JSON: {error}") from None


# -- sums ----------------------------------------------------------------------------------------


def verifies() -> bool:
    """Whether sums of weights and latents are compared: unless COLAWORLD_VERIFY=0 asks for speed."""
    return os.environ.get("COLAWORLD_VERIFY", "1") != "0"


def sha256_of(path: Path, *, skip: int = 0) -> str:
    """Hash of a file behind its first `skip` bytes; a file of any size is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(skip)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, want: str, *, skip: int = 0) -> None:
    """FileError unless the content of `path` (behind `skip` bytes) has this hash."""
    if not path.is_file():
        raise FileError(f"{path}: expected a file, found none")
    if sha256_of(path, skip=skip) != want:
        raise FileError(f"{path}: its content does not match the recorded sha256")


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON values with their own hash among them. ValueError where they are not JSON."""
    values = json.loads(json.dumps(values, allow_nan=False))
    return {**values, SEAL: _hash_of(values)}


def check_seal(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether JSON values read from `path` carry their hash. FileError where it does not match."""
    if SEAL not in values:
        return False
    if _hash_of({k: v for k, v in values.items() if k != SEAL}) != values[SEAL]:
        raise FileError(f"{path}: its values do not match the recorded sha256")
    return True


def _hash_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def recorded(file: Path) -> dict[str, Any]:
    """Size and hash of a file, as the JSON beside it records them under "files"."""
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def check_recorded(folder: Path, *, verify: bool = True, ours: bool = False) -> None:
    """Compare the files of a folder with the sums in the config.json that we wrote there.

    Weights of others record none: nothing is compared. `ours`: they cannot be of others, as those in
    the weights/ of a run never are; then config.json must hold what we write. verify=False and
    COLAWORLD_VERIFY=0 skip sums, which is said, as it is of folders from before sums were recorded.

    Raises FileError where a file, or config.json itself, is not as it was written.
    """
    path = folder / "config.json"
    run = folder.name == "weights" and (folder.parent / "config.yaml").is_file()
    if run and not path.exists():
        raise FileError(
            f"{path} is missing: without its sums nobody knows whether the weights are whole; bring "
            "it back, or delete weights/ and call train --resume, which writes both"
        )
    described: Any = read_json(path) if path.exists() else None
    held: Set[str] = described.keys() if isinstance(described, dict) else set()
    if not (run or ours or held & {"colaworld", "global_step"}):
        return
    wanted = _OF_RUN if run or "global_step" in held else _OF_EXPORT
    wanted = wanted | {"files"} if SEAL in held else wanted
    if (lost := sorted(wanted - held)) or (SEAL not in held and "files" in held):
        raise FileError(
            f"{path}: expected what colaworld writes, which holds {', '.join(lost or [SEAL])}: it was "
            "replaced or changed"
        )
    if not (verify and verifies()):
        log.warning("%s: loaded without comparing sums, as asked", folder)
    elif not check_seal(path, described):
        log.warning("%s: from before sums were recorded, and not compared with any", folder)
    else:
        for name, want in _sums(path, described["files"]).items():
            check_sha256(folder / name, want)


def _sums(path: Path, files: Any) -> dict[str, str]:
    """File -> hash of the "files" that the JSON at `path` records, which may be a stranger's."""
    sums: dict[str, str] = {}
    for name, entry in files.items() if isinstance(files, dict) else [("", None)]:
        want = entry.get("sha256") if isinstance(entry, dict) else None
        if not isinstance(want, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise FileError(
                f"{path}: files: expected files of its folder, each with its sha256, got "
                f"{f'{name}: {entry}' if name else files!r:.60}"
            )
        sums[name] = want
    return sums


# -- one process in a folder ---------------------------------------------------------------------


def held(folder: Path) -> bool:
    """Whether a process, this one too, holds a folder by a `FolderLock`."""
    try:
        FolderLock(folder, shared=True).close()
    except BlockingIOError:
        return True
    return False


class FolderLock:
    """Holds `folder` until `close` or until the process ends, however it ends.

    The lock is on the folder itself: no file is left behind. On a network file system it may hold for
    the processes of one machine only, and one that has no locks is warned of. `shared`: beside others
    that share it, and no one else.

    Raises:
        BlockingIOError: another process holds the folder.
        OSError: the folder cannot be opened or locked.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            try:
                fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:  # by a look of `held`, perhaps, which is short
                time.sleep(0.05)
                fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                os.close(self._descriptor)
                raise
            log.warning(
                "%s: cannot be locked (%s); use it from one process", folder, error.strerror
            )

    def in_place(self) -> bool:
        """Whether the folder that is held is still the one of that name."""
        held = os.fstat(self._descriptor)
        return self.folder.is_dir() and os.path.samestat(held, self.folder.stat())

    def close(self) -> None:
        """Let the folder go."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a forked worker may hold a copy of it
        os.close(self._descriptor)
