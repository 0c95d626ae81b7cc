"""HDF5 files of demonstrations, as robomimic and LIBERO write them: pixels instead of films.

    data                      attribute env_args: JSON, whose env_kwargs.control_freq is the rate
    data/demo_0/obs/CAMERA    uint8 [T, H, W, 3]
    data/demo_0/actions       [T, A]; other arrays of a demonstration are columns as well

A file holds the demonstrations of one task; a set is a folder of such files, or one. Of a file no
more is read than the frames that are asked for. It is opened for each read and closed after it: no
handle is shared by threads or outlives a fork.

Frames are as they are stored. robosuite renders upside down, and LIBERO's files keep it so: it is
warned of, not mended. LIBERO films after each action (known by the attribute bddl_file_name), so its
row t leads to frame t: rows are moved by one, and the last is repeated.

What leads out of a file (links, external or virtual storage) is refused. HDF5 keeps no checksum of
pixels: flipped bits are other pixels. Not here: `mask`, which names subsets.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.index_cache import IndexCache
from colaworld.data.sources import plain_actions
from colaworld.data.sources.camera import choose_camera
from colaworld.data.sources.files import FilesSource, holds
from colaworld.data.sources.registry import register_source
from colaworld.data.sources.source import Description, EpisodeInfo
from colaworld.data.sources.videos import is_video
from colaworld.data.video_file import check_regular, file_stamp
from colaworld.files import printable

SUFFIXES = (".hdf5", ".h5", ".hdf")
_SIDE = 1 << 14  # pixels: beyond it a size is a fault
_BLOCK = 8 << 20  # bytes of frames read together
_LARGEST = 64 << 20  # bytes of a column of one demonstration: beyond it a size is a fault
# What h5py raises for files that are damaged, whatever it is that is.
_DAMAGED = (
    OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip


class _Demo(NamedTuple):
    name: str
    shape: tuple[int, ...]  # of its frames
    columns: tuple[str, ...]


class Hdf5Source(FilesSource):
    """Files in order of their path, demonstrations by number. Views are told apart by name.

    `recorded_fps`: frames a second, for files that do not say.
    """

    kind = "hdf5"
    uniform_fps = True
    _what = "demonstrations in HDF5 files"
    _wanted = "looked for data/demo_.../obs/CAMERA in " + ", ".join(SUFFIXES)

    def __init__(
        self,
        path: Path,
        *,
        camera: str | None = None,
        action_column: str | None = "action",
        recorded_fps: float | None = None,
    ) -> None:
        super().__init__(path)
        _h5py()
        self._demos: list[_Demo] = []  # of each episode
        self._shifted: dict[Path, None] = {}
        self._inverted: dict[Path, None] = {}
        self._other_rate: dict[Path, float] = {}
        found = list(self._find())
        views = dict.fromkeys(view for *_, demo in found for view in demo["views"])
        self.cameras = list(views)
        self.camera = choose_camera(self.path, self.cameras, camera) if views else None
        columns: dict[str, None] = {}
        for file, listed, name, demo in found:
            shape = demo["views"].get(self.camera)
            if shape is None:
                held = ", ".join(demo["obs"]) or "nothing"
                self._skip(file, f"{file}: {name}: no frames of {self.camera!r}; obs holds {held}")
                continue
            fps = recorded_fps or listed["fps"]
            if fps is None:
                raise DataError(
                    f"{file}: does not say how many frames a second it has (attribute env_args of "
                    "data: env_kwargs.control_freq); set it: --data.recorded-fps N"
                )
            if recorded_fps and listed["fps"] and listed["fps"] != recorded_fps:
                self._other_rate[file] = listed["fps"]
            for told, to in (("shifted", self._shifted), ("inverted", self._inverted)):
                if listed[told]:
                    to[file] = None
            columns |= dict.fromkeys(demo["columns"])
            self.episodes.append(
                EpisodeInfo(
                    len(self.episodes),
                    f"{self._place_of(file)}/{name}",
                    file,
                    shape[0],
                    fps,
                    *shape[1:3],
                )
            )
            self._demos.append(_Demo(name, tuple(shape), tuple(demo["columns"])))
        self._check_found()
        self._asked, self._columns = action_column, sorted(columns)
        self._column = plain_actions.column_of(action_column, columns)
        self.action_spec = None
        if self._column is not None:
            self.action_spec = plain_actions.spec_of(self._column, self._arrays(self._column))

    def _find(self) -> Iterator[tuple[Path, dict[str, Any], str, dict[str, Any]]]:
        """(file, what is told of it, demonstration, what is told of that)."""
        index = IndexCache(self.path)
        try:
            for file in self._files():
                if file.suffix not in SUFFIXES:
                    continue
                try:
                    check_regular(file)
                    listed = index.get(str(file), partial(file_stamp, file), partial(_list, file))
                except (
                    OSError
                ) as error:  # not for good: permissions, a disk, another process writes
                    self._skip(file, f"{file}: cannot be read: {error.strerror or error}")
                    continue
                except BrokenFileError as error:
                    self._skip(file, str(error))
                    continue
                for reason in listed["broken"]:
                    self._skip(file, reason)
                yield from ((file, listed, name, demo) for name, demo in listed["demos"].items())
        except BaseException:
            index.save(whole=False)
            raise
        index.save()

    def describe(self) -> Description:
        warnings = self._passed_over()
        if self._inverted:
            warnings.append(
                f"{len(self._inverted)} files say that their frames are upside down "
                f"(macros_image_convention is opengl; first: {next(iter(self._inverted))}): they are "
                "read as they are"
            )
        if self._shifted and self.action_spec is not None:
            warnings.append(
                f"{len(self._shifted)} files were filmed by LIBERO after each action (first: "
                f"{next(iter(self._shifted))}): their actions are moved by one row, to the frame they "
                "start from"
            )
        if self._other_rate:
            file, rate = next(iter(self._other_rate.items()))
            warnings.append(
                f"{len(self._other_rate)} files say another rate than recorded_fps, which counts "
                f"(first: {file}: {rate:g})"
            )
        return Description(
            "HDF5",
            f"{self.path}: no demonstration has a column {self._asked!r}; columns: "
            f"{', '.join(self._columns) or 'none'}; set action_column",
            camera=self.camera,
            cameras=tuple(self.cameras),
            columns=tuple(self._columns),
            warnings=tuple(warnings),
        )

    def identity(self, episode: int) -> tuple[str, int | None]:
        info = self.episodes[episode]
        size = info.path.stat().st_size if info.path.is_file() else None
        return info.name, size

    def stream(self, episode: int, first: int, stop: int) -> Iterator[np.ndarray]:
        self._check(episode, stop)
        step = max(1, _BLOCK // self._frame_bytes(episode))
        with self._pixels(episode) as pixels:
            for start in range(first, stop, step):
                yield from pixels[start : min(start + step, stop)]

    def read(self, episode: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, np.int64)
        self._check(episode, int(indices.max(initial=-1)) + 1)
        wanted, back = np.unique(indices, return_inverse=True)
        with self._pixels(episode) as pixels:
            runs = np.split(wanted, np.nonzero(np.diff(wanted) > 1)[0] + 1)
            return np.concatenate([pixels[run[0] : run[-1] + 1] for run in runs])[back]

    def times(self, episode: int) -> np.ndarray:
        info = self.episodes[episode]
        return np.arange(info.frames) / info.fps

    def actions(self, episode: int) -> np.ndarray | None:
        if self._column is None or self.action_spec is None:
            return None
        where, values = self._array(episode, self._column)
        frames = self.episodes[episode].frames
        made = plain_actions.checked(where, values, self.action_spec, frames=frames)
        if self.episodes[episode].path in self._shifted:
            made = np.concatenate([made[1:], made[-1:]])
        return made

    def _check(self, episode: int, stop: int) -> None:
        if stop > self.episodes[episode].frames:
            info = self.episodes[episode]
            raise ValueError(f"{info.name}: frame {stop - 1} asked, it has {info.frames} frames")

    def _frame_bytes(self, episode: int) -> int:
        return int(np.prod(self._demos[episode].shape[1:], dtype=np.int64))

    @contextlib.contextmanager
    def _pixels(self, episode: int) -> Iterator[Any]:
        """The array of an episode's frames, its file open; whatever fails is a BrokenFileError."""
        info, demo = self.episodes[episode], self._demos[episode]
        with _opened(info.path, demo.name) as data:
            pixels = _inner(_inner(_inner(data, demo.name), "obs"), self.camera)
            if pixels.shape != demo.shape or pixels.dtype != np.uint8:
                raise BrokenFileError(f"{info.path}: {demo.name}: has changed since it was opened")
            yield pixels

    def _array(self, episode: int, column: str) -> tuple[str, np.ndarray]:
        info, name = self.episodes[episode], self._demos[episode].name
        where = f"{info.path}: {name}: column {column!r}"
        try:
            with _opened(info.path, name) as data:
                demo = _inner(data, name)
                if column not in demo:
                    raise DataError(f"{where} is missing")
                array = _inner(demo, column)
                if array.ndim not in (1, 2) or len(array) != info.frames:
                    raise DataError(
                        f"{where}: {list(array.shape)} for {info.frames} frames; expected a row each"
                    )
                if array.nbytes > _LARGEST:
                    raise DataError(f"{where}: {array.nbytes} bytes are too many for one")
                return where, array[()]
        except BrokenFileError as error:
            raise DataError(f"{where} cannot be read: {error}") from error

    def _arrays(self, column: str) -> Iterator[tuple[str, np.ndarray]]:
        for info, demo in zip(self.episodes, self._demos, strict=True):
            if column in demo.columns:
                yield self._array(info.index, column)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "HDF5 files are read by h5py, which is not installed: pip install 'colaworld[hdf5]'"
        ) from error
    return h5py


@contextlib.contextmanager
def _opened(file: Path, what: str) -> Iterator[Any]:
    """The group `data` of a file; whatever h5py says within is a BrokenFileError with `what`."""
    try:
        check_regular(file)
        with _h5py().File(file, "r", locking="best-effort") as opened:
            yield _inner(opened, "data")
    except BrokenFileError:
        raise
    except _DAMAGED as error:
        raise BrokenFileError(f"{printable(file)}: {what}: cannot be read: {error}") from error


def _inner(group: Any, name: str) -> Any:
    """A group or an array that lies in the file itself. BrokenFileError for a link out of it."""
    h5py = _h5py()
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


def _list(file: Path) -> dict[str, Any]:
    """What is told of a file and of each demonstration in it; `broken`: reasons."""
    told: dict[str, Any] = {
        "fps": None,
        "shifted": False,
        "inverted": False,
        "demos": {},
        "broken": [],
    }
    with file.open("rb"):  # what the system refuses is said by the system
        pass
    try:
        with _opened(file, "data") as data:
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
        try:
            demo = _list_demo(_inner(data, name))
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
    h5py = _h5py()
    where = f"{printable(demo.file.filename)}: {demo.name}"
    if not isinstance(demo, h5py.Group):
        raise BrokenFileError(f"{where}: is no group")
    obs = _inner(demo, "obs")
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
            _inner(obs, name)
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


register_source(
    Hdf5Source.kind,
    detect=lambda path: holds(path, lambda file: file.suffix in SUFFIXES, unless=is_video),
    open=Hdf5Source,
    takes_fps=True,
)
