"""What a LeRobot set says of itself, read and checked: meta/info.json, and the episodes of v3.0.

    INFO, LAYOUT          what info.json must hold, and by what its layout names files
    VIDEO, ACTION         what its features must hold
    COLUMNS               what the table of episodes must hold, one row per episode
    then across rows      numbers once; `length` = to - from, in frames and in seconds; no two
                          episodes share a frame of a film; totals of info.json; rows of each data file

Every DataError names the file and the column or key. No file outside the set's folder is read, and
none that is not a regular file. Not here: films and actions themselves (lerobot.py), the episodes of
v2.1 (lerobot_v2.py).

The format cannot tell: other names of classes or dimensions; an optional key that was taken away;
a class count in meta/stats.json that fits the values; films or rows of two episodes of one length
exchanged; a film shifted within frames that no episode claims; values in parquet files without page
checksums (ours have them).
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from colaworld.data.errors import DataError
from colaworld.data.parquet_file import opened_parquet, read_parquet

_MOST = 10**9  # frames, episodes, files: beyond it a number is a fault and not a size
# How a layout names its files: the numbers in a template. Each major version has its own.
_FIELDS = {"v2": ("episode_chunk", "episode_index"), "v3": ("chunk_index", "file_index")}


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_count(v) and v for v in value)


def _texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _names(value: Any) -> bool:
    if isinstance(value, dict):  # {"motors": ["pan", ...]} and {"pan": 0, ...} are LeRobot's, too
        return all(is_count(v) or _texts(v) for v in value.values())
    return _texts(value)


def _template(layout: str) -> Callable[[Any], bool]:
    numbers = "|".join(_FIELDS[layout])
    whole = re.compile(rf"([^{{}}]|\{{video_key\}}|\{{({numbers})(:0?\d{{0,2}}d)?\}})+")
    return lambda value: isinstance(value, str) and bool(whole.fullmatch(value))


@dataclass(frozen=True)
class Key:
    """One key of a JSON object. An optional one may be missing, but not of another kind."""

    name: str
    wanted: str
    fits: Callable[[Any], bool]
    required: bool = True


INFO = (
    Key("fps", "frames per second, above 0", lambda v: type(v) in (int, float) and 0 < v < 1e5),
    Key("total_episodes", "a count", is_count, required=False),
    Key("total_frames", "a count", is_count, required=False),
)
LAYOUT = {
    layout: tuple(
        Key(name, f"a path with the fields {{video_key}}, {{{a}}}, {{{b}}}", _template(layout))
        for name in ("data_path", "video_path")
    )
    for layout, (a, b) in _FIELDS.items()
}
LAYOUT["v2"] += (Key("chunks_size", "episodes per chunk", lambda v: is_count(v) and v > 0),)
FEATURE = (Key("dtype", "the name of a type", lambda v: isinstance(v, str)),)
VIDEO = (Key("shape", "three sizes", lambda v: _shape(v) and len(v) == 3),)
ACTION = (
    Key("shape", "a list of sizes", _shape),
    Key(
        "dtype",
        "numbers or bool (else choose another data.action_column, or none)",
        lambda v: kind_of(v) is not None,
    ),
    Key("names", "a list of names, groups of names, or null", _names, required=False),
    Key("class_names", "a list of names", _texts, required=False),
    Key("unit", "text", lambda v: isinstance(v, str), required=False),  # of every channel
    Key("units", "a list of texts", _texts, required=False),
    Key("mode", "absolute or relative", lambda v: v in ("absolute", "relative"), required=False),
    Key("frame", "text", lambda v: isinstance(v, str), required=False),
)


@dataclass(frozen=True)
class _Column:
    """One column of the table of episodes. `{camera}` stands for the one in use."""

    name: str
    whole: bool  # integers; otherwise seconds
    least: int = 0
    required: bool = True


COLUMNS = (
    _Column("episode_index", True),
    _Column("length", True, least=1),
    _Column("data/chunk_index", True),
    _Column("data/file_index", True),
    _Column("videos/{camera}/chunk_index", True),
    _Column("videos/{camera}/file_index", True),
    _Column("videos/{camera}/from_timestamp", False),
    _Column("videos/{camera}/to_timestamp", False, required=False),
    _Column("dataset_from_index", True, required=False),
    _Column("dataset_to_index", True, required=False),
)


@dataclass(frozen=True)
class Row:
    """One episode: which rows and which frames are its own."""

    episode: int
    length: int  # frames
    data: Path
    video: Path
    start: float  # seconds into the video


class Folder:
    """The files of a set at `root`: none but regular ones within it is opened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._within = [root.resolve()]
        if self._within[0].parent.name == "snapshots":  # the hub's cache keeps all bytes beside it
            self._within.append(self._within[0].parent.parent / "blobs")
        self._known: dict[str, Path] = {}
        self._inside: dict[str, bool] = {}  # folders that were looked at

    def file(self, name: str | Path, said_by: str) -> Path:
        """The path of `name`, there or not. Raises DataError where it leads out of the folder."""
        if (path := self._known.get(str(name))) is not None:
            return path
        path = self.root / name
        try:
            if self._plain(path):
                self._known[str(name)] = path
                return path
            mode = path.stat().st_mode if path.exists() else stat.S_IFREG
            real = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a name with \0
            raise DataError(f"{said_by}: {_shown(str(name))} is no file: {error}") from error
        if not any(real.is_relative_to(folder) for folder in self._within):
            raise DataError(
                f"{said_by}: {path} leads out of the set's folder, to {real}; what belongs to a "
                "set lies in it (a hard link or a mount will do)"
            )
        if not stat.S_ISREG(mode):
            raise DataError(f"{said_by}: {path} is no regular file")
        self._known[str(name)] = path
        return path

    def _plain(self, path: Path) -> bool:
        """Whether it is a regular file, or none, in a folder within the set: one look for most files."""
        folder = str(path.parent)
        if folder not in self._inside:
            real = path.parent.resolve()
            self._inside[folder] = any(real.is_relative_to(within) for within in self._within)
        try:
            regular = stat.S_ISREG(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            regular = True
        return regular and self._inside[folder] and path.name != ".."


def kind_of(dtype: Any) -> str | None:
    """ "int", "float" or "bool" of a type's name as LeRobot writes it; None: no number."""
    found = (
        re.fullmatch(r"(?:u?(int)|(float)|(bool))\d*", dtype) if isinstance(dtype, str) else None
    )
    return found and next(filter(None, found.groups()))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError, which names the file."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DataError(f"{file}: is no regular file")
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise DataError(f"{file}: missing; not a LeRobot data set?") from None
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected an object, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check(keys: Sequence[Key], value: dict[str, Any], where: str) -> None:
    """DataError, begun with `where`, for the first key that lacks or does not fit."""
    for key in keys:
        if key.name not in value:
            if key.required:
                raise DataError(f"{where}{key.name}: missing; expected {key.wanted}")
        elif not key.fits(value[key.name]):
            raise DataError(
                f"{where}{key.name}: expected {key.wanted}, got {_shown(value[key.name])}"
            )


def read_info(folder: Folder) -> dict[str, Any]:
    """meta/info.json with the keys of `INFO`, `LAYOUT`, and of `VIDEO` for each camera. Raises DataError."""
    file = folder.file("meta/info.json", str(folder.root))
    info = read_json(file)
    version = info.get("codebase_version")
    if not isinstance(version, str) or not version.startswith(("v2.", "v3.")):
        raise DataError(
            f"{file}: codebase_version: layout {_shown(version)} of LeRobot; v2.0, v2.1 and v3.0 are "
            "read here. Its videos without their actions can be used as they are: --data.source "
            "video_folder"
        )
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise DataError(f"{file}: features: expected objects by name, got {_shown(features)}")
    for name, feature in features.items():
        video = feature.get("dtype") == "video"
        check(FEATURE + VIDEO * video, feature, f"{file}: features.{name}.")
    if not cameras_of(info):
        raise DataError(f"{file}: has no video feature; it has: {', '.join(features)}")
    check(INFO + LAYOUT[layout_of(info)], info, f"{file}: ")
    return info


def layout_of(info: dict[str, Any]) -> str:
    """ "v2" or "v3": v2.0 and v2.1 differ in their statistics alone."""
    return info["codebase_version"][:2]


def cameras_of(info: dict[str, Any]) -> list[str]:
    """The names of the video features, in the order of info.json."""
    return [name for name, feature in info["features"].items() if feature["dtype"] == "video"]


def action_feature(root: Path, info: dict[str, Any], column: str) -> dict[str, Any] | None:
    """What info.json says of the column of actions, checked against `ACTION`. None: no such."""
    feature = info["features"].get(column)
    if feature is not None:
        check(ACTION, feature, f"{root / 'meta' / 'info.json'}: features.{column}.")
    return feature


def episode_spans(file: Path) -> list[tuple[int, int]]:
    """The least and the greatest `episode_index` of each row group. Raises DataError."""
    name, spans = "episode_index", []
    with opened_parquet(file, [name]) as opened:
        if name not in opened.schema_arrow.names:
            raise DataError(f"{file}: lacks the columns {name!r}")
        if not pa.types.is_integer(kind := opened.schema_arrow.field(name).type):
            raise DataError(f"{file}: column {name!r}: expected integers, got {kind}")
        for group in range(opened.num_row_groups):
            part = opened.read_row_group(group, columns=[name], use_threads=False)
            ends = pc.min_max(part[name]).as_py()
            spans.append((0, -1) if ends["min"] is None else (ends["min"], ends["max"]))
    return spans


def read_episodes(folder: Folder, info: dict[str, Any], camera: str) -> list[Row]:
    """All episodes, by number, checked as `COLUMNS` and this file's head say. Raises DataError."""
    meta, named = folder.root / "meta", folder.root / "meta" / "info.json"
    files = sorted((meta / "episodes").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{folder.root}: no episodes under meta/episodes")
    columns = {c.name.format(camera=camera): c for c in COLUMNS}
    parts: list[dict[str, np.ndarray]] = []
    for file in files:
        folder.file(file.relative_to(folder.root), f"{meta / 'episodes'}")
        table = read_parquet(
            file,
            [name for name, c in columns.items() if c.required],
            optional=[name for name, c in columns.items() if not c.required],
        )
        parts.append({n: _values(file, n, columns[n], table[n]) for n in table.column_names})
    lengths = [len(part["length"]) for part in parts]
    of_file = np.repeat(np.arange(len(files)), lengths)
    kept = [name for name in columns if all(name in part for part in parts)]
    table = {name: np.concatenate([part[name] for part in parts]) for name in kept}
    if not len(of_file):
        raise DataError(f"{files[0]}: holds no episodes")
    order = np.argsort(table["episode_index"], kind="stable")
    table, of_file = {name: values[order] for name, values in table.items()}, of_file[order]
    number, length = table["episode_index"], table["length"]

    def refuse(bad: np.ndarray, column: str, why: str) -> None:
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{files[of_file[row]]}: column {column!r}: episode {number[row]} {why}"
            )

    refuse(np.diff(number, prepend=-1) == 0, "episode_index", "is there twice")
    check_totals(named, info, len(number), int(length.sum()), "meta/episodes")
    if "dataset_from_index" in table and "dataset_to_index" in table:
        rows = table["dataset_to_index"] - table["dataset_from_index"]
        refuse(rows != length, "length", "differs from dataset_to_index - dataset_from_index")
    view, fps = f"videos/{camera}", float(info["fps"])
    start = table[f"{view}/from_timestamp"]
    seconds = table.get(f"{view}/to_timestamp", start + length / fps) - start
    wrong = np.abs(seconds * fps - length) > 1.01
    refuse(
        wrong,
        f"{view}/to_timestamp",
        f"does not last its `length` in frames at {fps:g} a second (fps of meta/info.json)",
    )

    def places(template: str, key: str) -> list[Path]:
        where = zip(table[f"{key}/chunk_index"], table[f"{key}/file_index"], strict=True)
        return [
            folder.file(
                info[template].format(video_key=camera, chunk_index=int(c), file_index=int(f)),
                f"{named}: {template}",
            )
            for c, f in where
        ]

    data, video = places("data_path", "data"), places("video_path", view)
    _, film = np.unique([str(path) for path in video], return_inverse=True)
    sequence = np.lexsort((start, film))
    follows = np.diff(film[sequence], prepend=-1) == 0
    gap = np.diff(start[sequence], prepend=0.0) - np.roll(length[sequence], 1) / fps
    overlaps = np.zeros(len(number), bool)
    overlaps[sequence] = follows & (gap < -0.5 / fps)
    refuse(overlaps, f"{view}/from_timestamp", "begins before the one before it in its film ends")
    return [
        Row(int(n), int(frames), d, v, float(s))
        for n, frames, d, v, s in zip(number, length, data, video, start, strict=True)
    ]


def check_totals(named: Path, info: dict[str, Any], episodes: int, frames: int, told: str) -> None:
    """DataError where info.json counts other episodes or frames than the table `told` holds."""
    for total, found in (("total_episodes", episodes), ("total_frames", frames)):
        if info.get(total, found) != found:
            raise DataError(
                f"{named}: {total} is {info[total]}, {told} holds {found}: rows are missing or too many"
            )


def _values(file: Path, name: str, column: _Column, values: pa.ChunkedArray) -> np.ndarray:
    """One column as an array, int64 or float64. Raises DataError."""
    where = f"{file}: column {name!r}"
    kind = pa.types.is_integer(values.type) or (
        not column.whole and pa.types.is_floating(values.type)
    )
    if not kind:
        wanted = "integers" if column.whole else "seconds"
        raise DataError(f"{where}: expected {wanted}, got {values.type}")
    if values.null_count:
        raise DataError(f"{where}: lacks {values.null_count} values")
    made = values.to_numpy()
    good = (made >= column.least) & (made <= _MOST)
    if not good.all():
        raise DataError(
            f"{where}: expected {column.least}..{_MOST}, got {made[int(good.argmin())]} in row "
            f"{int(good.argmin())}"
        )
    return made.astype(np.int64 if column.whole else np.float64)
