"""WebDataset: samples in uncompressed tar files, read in place, never unpacked.

    shards/000000.tar    a.mp4 a.json a.npy   b.mp4 b.json ...    the film of a sample is an episode

Members that agree up to the first dot of their last part are a sample. What follows that dot is:

    .mp4 .mkv .webm .avi .mov ...    the film; .left.mp4: the film of the camera `left`
    .npy, .NAME.npy                  the actions; an array NAME, per frame (plain_actions.py)
    .json                            an object: its lists action... are arrays, too; its fps is held
                                     against the film; all else, as captions, is not read

A tar stores each member's bytes in one run, so all is read from the tar by its offset. The names of
members are names: nothing is written anywhere. A tar of films alone is a set as well.
Not here: compressed tars.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np

from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.index_cache import IndexCache
from colaworld.data.sources import plain_actions
from colaworld.data.sources.camera import choose_camera
from colaworld.data.sources.files import holds, is_hidden
from colaworld.data.sources.registry import register_source
from colaworld.data.sources.source import Description
from colaworld.data.sources.videos import VideosSource, is_video
from colaworld.data.video_file import Video, check_regular, file_stamp

_LARGEST = 64 << 20  # bytes of a .json or .npy: beyond it a size is a fault
_RECORD = 20 * tarfile.BLOCKSIZE  # what a tar is padded to


class WebDatasetSource(VideosSource):
    """Tars in order of their path, films in order within; a single tar is a set, too.

    Of members with the same name the last counts, as it does for tar itself.
    """

    kind = "webdataset"
    format = "WebDataset"

    def __init__(
        self, path: Path, *, camera: str | None = None, action_column: str | None = "action"
    ) -> None:
        self._asked_camera = camera
        self._samples: dict[str, dict[str, Any]] = {}  # by the episode's name
        self._filmless: list[str] = []
        self.camera: str | None = None
        self.cameras: list[str] = []
        super().__init__(path, camera=camera, action_column=action_column)
        there = {n: None for e in self.episodes for n in self._samples[e.name]["columns"]}
        self._columns = sorted(there)
        self._column = plain_actions.column_of(action_column, there)
        if self._column is not None:
            self.action_spec = plain_actions.spec_of(self._column, self._arrays(self._column))

    def _find(self, index: IndexCache) -> Iterator[tuple[str, Path, Video]]:
        found: list[tuple[str, Path, str, dict[str, Any]]] = []
        for tar in self._files():
            if tar.suffix != ".tar":
                continue
            try:
                check_regular(tar)
                listed = index.get(f"{tar}: samples", partial(file_stamp, tar), partial(_list, tar))
            except OSError as error:
                self._skip(tar, f"{tar}: cannot be read: {error.strerror}")
                continue
            except BrokenFileError as error:
                self._skip(tar, str(error))
                continue
            for reason in listed["broken"]:
                self._skip(tar, reason)
            place = self._place_of(tar)
            found += ((place, tar, key, s) for key, s in listed["samples"].items())
        self._choose(found)
        for place, tar, key, sample in found:
            films = sample["films"]
            if not films:
                self._filmless.append(f"{place}/{key}")
            elif self.camera is not None and self.camera not in films:
                self._skip(tar, f"{tar}: {key}: has no film of {self.camera!r}, but {list(films)}")
            else:
                film = films[next(iter(films)) if self.camera is None else self.camera]
                self._samples[f"{place}/{film[0]}"] = sample
                yield f"{place}/{film[0]}", tar, _member(tar, *film)

    def _choose(self, found: list[tuple[str, Path, str, dict[str, Any]]]) -> None:
        names = list(dict.fromkeys(name for *_, sample in found for name in sample["films"]))
        several = next((item for item in found if len(item[3]["films"]) > 1), None)
        if several is not None:
            self.cameras = names
        if self._asked_camera is not None and names:
            self.camera = choose_camera(self.path, names, self._asked_camera)
        elif several is not None:
            place, _, key, sample = several
            raise DataError(
                f"{self.path}: the sample {place}/{key} has several films: "
                f"{', '.join(film[0] for film in sample['films'].values())}. A name ends for WebDataset "
                "at its first dot. If these are views, choose one: --data.camera "
                f"{next(iter(sample['films']))}; if they are films of their own, pack them without a "
                "dot in their names"
            )

    def _place(self, episode: int) -> str:
        return self.episodes[episode].name

    def describe(self) -> Description:
        about = super().describe()
        total = len(self.episodes)
        warnings = list(about.warnings)
        if self._filmless:
            first = self._filmless[0]
            warnings.append(f"{len(self._filmless)} samples have no film (first: {first})")
        if self._column is not None:
            without = [
                e.name
                for e in self.episodes
                if self._column not in self._samples[e.name]["columns"]
            ]
            if without:
                warnings.append(
                    f"{len(without)} of {total} samples have no column {self._column!r} (first: "
                    f"{without[0]}); their actions cannot be asked for"
                )
        other = [
            f"{e.name} ({rate:g}, its film {e.fps:.4g})"
            for e in self.episodes
            if (rate := self._samples[e.name]["fps"]) and abs(e.fps / rate - 1) > 0.01
        ]
        if other:
            warnings.append(
                f"{len(other)} of {total} samples say another fps in their .json than their film has "
                f"(first: {other[0]}): the film counts"
            )
        return Description(
            about.format,
            f"{self.path}: no sample has an action column {self._action_column!r} (a member "
            f".{self._action_column}.npy, or a list of that name in its .json); "
            f"columns: {', '.join(self._columns) or 'none'}",
            camera=self.camera,
            cameras=tuple(self.cameras),
            columns=tuple(self._columns),
            warnings=tuple(warnings),
            uneven=about.uneven,
            reading=about.reading,
        )

    def _arrays(self, column: str) -> Iterator[tuple[str, np.ndarray]]:
        for info in self.episodes:
            if column in self._samples[info.name]["columns"]:
                yield self._array(info.path, self._samples[info.name], column)

    def _array(self, tar: Path, sample: dict[str, Any], column: str) -> tuple[str, np.ndarray]:
        place = sample["columns"][column]
        where = f"{tar}: {place[0]}: column {column!r}"
        try:
            content = _bytes(tar, *place)
            if place[0].endswith(".npy"):
                return where, _npy(content)
            return where, np.asarray(json.loads(content)[column])
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{where} cannot be read: {error}") from error

    def action_files(self) -> list[Path]:
        return sorted({Path(episode.path) for episode in self.episodes})

    def actions(self, episode: int) -> np.ndarray | None:
        if self._column is None or self.action_spec is None:
            return None
        info = self.episodes[episode]
        sample = self._samples[info.name]
        if self._column not in sample["columns"]:
            raise DataError(f"{info.path}: {info.name}: has no column {self._column!r}")
        where, values = self._array(info.path, sample, self._column)
        return plain_actions.checked(where, values, self.action_spec, frames=info.frames)

    def lacks_actions(self, episode: int) -> bool:
        return self._column not in self._samples[self.episodes[episode].name]["columns"]


def _list(tar: Path) -> dict[str, Any]:
    """{"samples": {key: ...}, "broken": [reasons]} of a tar; see `_sample`."""
    members: dict[str, list] = {}
    broken: list[str] = []
    try:
        with tarfile.open(tar, "r:") as opened:
            before = -1
            for member in opened:
                if member.offset <= before or member.size < 0:  # a damaged size leads back
                    raise tarfile.ReadError(f"a size of {member.size} at byte {member.offset}")
                before = member.offset
                name = PurePosixPath(member.name)
                if member.isdir() or not _belongs(name):
                    continue
                if not member.isfile():
                    broken.append(f"{tar}: {name}: is a link or a device, not a file")
                elif member.issparse():
                    broken.append(f"{tar}: {name}: is stored sparse; pack it again without")
                else:
                    members[str(name)] = [str(name), member.offset_data, member.size]
            opened.fileobj.seek(opened.offset)  # where the list ends: zeros, or a damaged header
            end = opened.fileobj.read(tarfile.BLOCKSIZE + _RECORD)
            if any(end[: tarfile.BLOCKSIZE]):
                broken.append(f"{tar}: damaged at byte {opened.offset}: what follows is not read")
            elif any(end):
                broken.append(f"{tar}: another archive follows its end: it is not read")
            elif not end:
                broken.append(f"{tar}: has no end mark (cut off?)")
    except (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError) as error:
        broken.append(f"{tar}: cannot be read as an uncompressed tar: {error}")
    keys: dict[str, list[list]] = {}
    for place in members.values():
        keys.setdefault(_split(place[0])[0], []).append(place)
    samples = {}
    for key, places in keys.items():
        try:
            samples[key] = _sample(tar, places)
        except DataError as error:
            broken.append(str(error))
    return {"samples": samples, "broken": broken}


def _belongs(name: PurePosixPath) -> bool:
    return is_video(name) or (name.suffix in (".json", ".npy") and not is_hidden(name))


def _split(name: str) -> tuple[str, str]:
    """The key of a member's sample, and what the member is in it."""
    folder, slash, last = name.rpartition("/")
    key, _, what = last.partition(".")
    return f"{folder}{slash}{key}", what


def _sample(tar: Path, places: list[list]) -> dict[str, Any]:
    """{"films": {camera: place}, "columns": {name: place}, "fps": number or None}. DataError."""
    films: dict[str, list] = {}
    columns: dict[str, list] = {}
    fps = None

    def add(to: dict[str, list], name: str, place: list, what: str) -> None:
        if name in to:
            raise DataError(f"{tar}: {place[0]}: has the {what} that {to[name][0]} has, too")
        to[name] = place

    for place in places:
        what, _, ending = _split(place[0])[1].rpartition(".")
        if ending == "npy":
            add(columns, what or "action", place, f"column {what or 'action'!r}")
        elif ending != "json":
            add(films, what or ending, place, "film")
        elif not what:
            try:
                value = json.loads(_bytes(tar, *place))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{tar}: {place[0]}: cannot be read: {error}") from error
            for name in value if isinstance(value, dict) else ():
                if name.startswith("action") and isinstance(value[name], list):
                    add(columns, name, place, f"column {name!r}")
            told = value.get("fps") if isinstance(value, dict) else None
            fps = told if type(told) in (int, float) and 0 < told < 1e5 else None
    return {"films": films, "columns": columns, "fps": fps}


def _bytes(tar: Path, name: str, offset: int, size: int) -> bytes:
    """A small member. ValueError where it is none, or is cut off."""
    if size > _LARGEST:
        raise ValueError(f"{size} bytes are too many for one")
    with tar.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"cut off after {len(content)} of {size} bytes")
    return content


def _npy(content: bytes) -> np.ndarray:
    """An array of numbers; nothing is unpickled, nothing allocated that is not there. ValueError."""
    file = io.BytesIO(content)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    try:
        shape, by_column, dtype = read[np.lib.format.read_magic(file)[0]](file)
    except Exception as error:  # whatever numpy's parser of Python text comes to
        raise ValueError(f"no header of an array of version 1 or 2: {error!r}") from error
    rest = content[file.tell() :]
    if dtype.kind not in "biuf" or any(n < 0 for n in shape):
        raise ValueError(f"expected numbers, got {dtype} {shape}")
    if len(rest) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(rest)} bytes for {dtype} {shape}")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if by_column else "C")


def _member(tar: Path, name: str, offset: int, size: int) -> Video:
    def open_member() -> BinaryIO:
        return cast(BinaryIO, _Slice(tar, name, offset, size))

    def stamp() -> tuple[int, ...]:
        return size, *file_stamp(tar), offset

    return Video(f"{tar}: {name}", open_member, stamp)


class _Slice(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file of its own."""

    def __init__(self, path: Path, name: str, offset: int, size: int) -> None:
        self.name = name  # its ending helps FFmpeg to guess the format
        self._file = path.open("rb", buffering=0)
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + to)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(memoryview(buffer)[:wanted])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


register_source(
    WebDatasetSource.kind,
    detect=lambda path: holds(path, lambda file: file.suffix == ".tar", unless=is_video),
    open=WebDatasetSource,
)
