"""HDF5 files that may be damaged: opened, and looked through by a process of its own.

HDF5's library can run for ever on a damaged file, or end the process. So what opening a set wants to
know of a file (`look_through`) is asked of a child, which is given up where it says nothing for a minute.
What is read later lies where that look has found it.

`python -m colaworld.data.hdf5_file` is the child: a file name per line in, as JSON; an object per line
out, and empty lines while it is at work. It ends with its parent, or after a minute without a question.
Not here: which files, clips, actions (sources/hdf5.py).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from colaworld.data.errors import BrokenFileError, DataError
from colaworld.files import printable

_SIDE = 1 << 14  # pixels: beyond it a size is a fault
_PATIENCE = 60.0  # seconds without a word
# What h5py raises for files that are damaged, whatever it is that is.
_DAMAGED = (
    OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip


def h5py_package() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "HDF5 files are read by h5py, which is not installed: pip install 'colaworld[hdf5]'"
        ) from error
    return h5py


@contextlib.contextmanager
def opened(file: Path, what: str) -> Iterator[Any]:
    """The group `data` of a file; whatever h5py says within is a BrokenFileError with `what`."""
    try:
        with h5py_package().File(file, "r", locking="best-effort") as opened:
            yield inner(opened, "data")
    except (BrokenFileError, DataError):
        raise
    except _DAMAGED as error:
        raise BrokenFileError(f"{printable(file)}: {what}: cannot be read: {error}") from error


def inner(group: Any, name: str) -> Any:
    """A group or an array that lies in the file itself. BrokenFileError for a link out of it."""
    h5py = h5py_package()
    where = f"{printable(group.file.filename)}: {group.name.rstrip('/')}/{name}"
    link = group.get(name, getlink=True)
    if link is None:
        raise BrokenFileError(f"{where}: missing")
    if not isinstance(link, h5py.HardLink):
        raise BrokenFileError(f"{where}: is a link; only what lies in the file itself is read")
    found = group[name]
    if isinstance(found, h5py.Dataset):
        if found.external or found.is_virtual:
            raise BrokenFileError(f"{where}: its values lie in other files; those are not read")
        _check_written(where, found)
    return found


def _check_written(where: str, array: Any) -> None:
    """HDF5 gives zeros for what was never written: BrokenFileError."""
    if not array.size:
        raise BrokenFileError(f"{where}: is empty")
    if array.chunks is None:
        whole = array.id.get_storage_size() >= array.size * array.dtype.itemsize
    else:
        chunks = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
        whole = array.id.get_num_chunks() >= np.prod(chunks, dtype=np.int64)
    if not whole:
        raise BrokenFileError(f"{where}: not all of it was written")


class _Child:
    """The process that looks through files. One for all sets, started when it is first asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._rest = b""

    def ask(self, file: Path) -> dict[str, Any] | None:
        """Its answer; None where it died. Raises TimeoutError."""
        with self._lock:
            process = self._started()
            try:
                assert process.stdin is not None
                process.stdin.write(json.dumps(str(file)).encode() + b"\n")
                process.stdin.flush()
                while not (line := self._line(process)):
                    pass
                return json.loads(line)
            except (OSError, EOFError, ValueError) as error:
                self._end(process)
                if isinstance(error, TimeoutError):
                    raise
                return None

    def _started(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is None or process.poll() is not None or self._owner != os.getpid():
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "colaworld.data.hdf5_file"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            )
            self._owner, self._rest = os.getpid(), b""
            self._line(process, patience=max(60.0, _PATIENCE))  # it is there
        return process

    def _line(self, process: subprocess.Popen[bytes], *, patience: float | None = None) -> bytes:
        assert process.stdout is not None
        while b"\n" not in self._rest:
            wait = _PATIENCE if patience is None else patience
            if not select.select([process.stdout], [], [], wait)[0]:
                raise TimeoutError
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                raise EOFError
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate()
        self._process = None


_CHILD = _Child()


def look_through(file: Path) -> dict[str, Any]:
    """What `list_file` tells of it, at no risk.

    Raises OSError where the system refuses it, or where the library does not come to an end.
    """
    try:
        told = _CHILD.ask(file) or _CHILD.ask(file)  # it may have ended just before it was asked
    except TimeoutError:  # damage, or a disk that does not answer: not to be remembered
        said = f"HDF5's library says nothing for {_PATIENCE:g} s (damaged?)"
        raise OSError(errno.ETIMEDOUT, said) from None
    if told is None:
        return _none(f"{printable(file)}: damaged: HDF5's library ends the process that opens it")
    if "refused" in told:
        raise OSError(*told["refused"])
    return told


def _none(*broken: str) -> dict[str, Any]:
    return {"fps": None, "shifted": False, "inverted": False, "demos": {}, "broken": list(broken)}


def list_file(file: Path) -> dict[str, Any]:
    """What is told of a file and of each demonstration in it; `broken`: reasons."""
    told = _none()
    with file.open("rb"):  # what the system refuses is said by the system
        pass
    try:
        with opened(file, "data") as data:
            _list_data(file, data, told)
    except BrokenFileError as error:
        if isinstance(error.__cause__, BlockingIOError):
            raise error.__cause__ from None
        told["broken"].append(str(error))
    return told


def _list_data(file: Path, data: Any, told: dict[str, Any]) -> None:
    told["fps"] = _rate(file, data)
    told["shifted"] = "bddl_file_name" in data.attrs
    told["inverted"] = data.attrs.get("macros_image_convention") in ("opengl", b"opengl")
    number = {name: int(found[0]) for name in data if (found := re.findall(r"\d{1,9}$", name))}
    total = 0
    for name in sorted(data, key=lambda name: (number.get(name, -1), name)):
        print(flush=True)  # still at work
        try:
            demo = _list_demo(inner(data, name))
        except BrokenFileError as error:
            told["broken"].append(str(error))
        except _DAMAGED as error:
            told["broken"].append(f"{printable(file)}: {name}: cannot be read: {error}")
        else:
            told["demos"][name] = demo
            total += max([shape[0] for shape in demo["views"].values()], default=0)
    for attribute, found in (("num_demos", len(list(data))), ("total", total)):
        said = data.attrs.get(attribute, found)
        if said != found and not (attribute == "total" and told["broken"]):
            told["broken"].append(
                f"{printable(file)}: data: {attribute} is {said}, but it holds {found}: are some gone?"
            )


def _list_demo(demo: Any) -> dict[str, Any]:
    """{"views": {camera: [T, H, W, 3]}, "columns": [names], "obs": [what else is there]}."""
    h5py = h5py_package()
    where = f"{printable(demo.file.filename)}: {demo.name}"
    if not isinstance(demo, h5py.Group):
        raise BrokenFileError(f"{where}: is no group")
    obs = inner(demo, "obs")
    if not isinstance(obs, h5py.Group):
        raise BrokenFileError(f"{where}/obs: is no group")
    views, held = {}, []
    for name in obs:
        if not isinstance(obs.get(name, getlink=True), h5py.HardLink):
            held.append(f"{name} (a link)")
            continue
        array = obs[name]
        if not isinstance(array, h5py.Dataset):
            continue
        held.append(f"{name} {array.dtype} {list(array.shape)}")
        if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3:
            if max(array.shape[1:3]) > _SIDE:
                raise BrokenFileError(f"{where}/obs/{name}: frames of {array.shape[1:3]} pixels")
            inner(obs, name)
            views[name] = list(array.shape)
    lengths = {shape[0] for shape in views.values()}
    said = demo.attrs.get("num_samples")
    if said is not None and lengths and lengths != {said}:
        raise BrokenFileError(
            f"{where}: num_samples is {said}, its views have {sorted(lengths)} frames"
        )
    links = {name: demo.get(name, getlink=True) for name in demo}
    columns = [
        name
        for name, link in links.items()
        if not isinstance(link, h5py.HardLink) or isinstance(demo[name], h5py.Dataset)
    ]
    return {"views": views, "columns": columns, "obs": held}


def _rate(file: Path, data: Any) -> float | None:
    """control_freq of env_args; None where it is not said. BrokenFileError where it is no rate."""
    try:
        arguments = json.loads(data.attrs.get("env_args", "{}"))
        inner = arguments.get("env_kwargs", {}) if isinstance(arguments, dict) else None
        found = inner.get("control_freq") if isinstance(inner, dict) else "no object"
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{printable(file)}: data: env_args is no JSON: {error}") from error
    if found is not None and not (type(found) in (int, float) and 0 < found < 1e5):
        raise BrokenFileError(
            f"{printable(file)}: data: env_args: env_kwargs.control_freq: expected frames per second, "
            f"got {found!r:.60}"
        )
    return None if found is None else float(found)


def _serve() -> None:
    print(flush=True)
    while select.select([sys.stdin], [], [], 60)[0] and (line := sys.stdin.readline()):
        try:
            told: dict[str, Any] = list_file(Path(json.loads(line)))
        except OSError as error:
            told = {"refused": [error.errno, error.strerror or str(error)]}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    _serve()
