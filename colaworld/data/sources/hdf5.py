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
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.hdf5_file import h5py_package, inner, look_through, opened
from colaworld.data.index_cache import IndexCache
from colaworld.data.sources import plain_actions
from colaworld.data.sources.camera import choose_camera
from colaworld.data.sources.files import FilesSource, holds
from colaworld.data.sources.registry import register_source
from colaworld.data.sources.source import Description, EpisodeInfo
from colaworld.data.sources.videos import is_video
from colaworld.data.video_file import check_regular, file_stamp

SUFFIXES = (".hdf5", ".h5", ".hdf")
_BLOCK = 8 << 20  # bytes of frames read together
_LARGEST = 64 << 20  # bytes of a column of one demonstration: beyond it a size is a fault


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
        h5py_package()
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
                    listed = index.get(
                        str(file), partial(file_stamp, file), partial(look_through, file)
                    )
                except OSError as error:  # not for good: permissions, a disk, a writer
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

    def action_files(self) -> list[Path]:
        return sorted({Path(episode.path) for episode in self.episodes})

    def actions(self, episode: int) -> np.ndarray | None:
        if self._column is None or self.action_spec is None:
            return None
        where, values = self._array(episode, self._column)
        frames = self.episodes[episode].frames
        made = plain_actions.checked(where, values, self.action_spec, frames=frames)
        if self.episodes[episode].path in self._shifted:
            made = np.concatenate([made[1:], made[-1:]])
        return made

    def lacks_actions(self, episode: int) -> bool:
        return self._column not in self._demos[episode].columns

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
        with _data(info.path, demo.name) as data:
            pixels = inner(inner(inner(data, demo.name), "obs"), self.camera)
            if pixels.shape != demo.shape or pixels.dtype != np.uint8:
                raise BrokenFileError(f"{info.path}: {demo.name}: has changed since it was opened")
            yield pixels

    def _array(self, episode: int, column: str) -> tuple[str, np.ndarray]:
        info, name = self.episodes[episode], self._demos[episode].name
        where = f"{info.path}: {name}: column {column!r}"
        try:
            with _data(info.path, name) as data:
                demo = inner(data, name)
                if column not in demo:
                    raise DataError(f"{where} is missing")
                array = inner(demo, column)
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


@contextlib.contextmanager
def _data(file: Path, what: str) -> Iterator[Any]:
    try:
        check_regular(file)
    except OSError as error:
        raise BrokenFileError(f"{file}: cannot be read: {error.strerror}") from error
    with opened(file, what) as data:
        yield data


register_source(
    Hdf5Source.kind,
    detect=lambda path: holds(path, lambda file: file.suffix in SUFFIXES, unless=is_video),
    open=Hdf5Source,
    takes_fps=True,
)
