"""Add columns to a LeRobot v3 set: a new folder with the old set and, per frame, something more.

    data/*.parquet            rewritten, row group by row group, with the new columns at the end
    meta/info.json            features: the new columns
    meta/stats.json           their statistics; meta/episodes: per episode
    videos, and the rest      hard links to the old files, or copies

The old set stays as it was. Everything goes into a hidden sibling folder that is renamed at the end.
`put_in_place` then gives the old set the new one's tables, where it is to have the columns itself.
Not here: what the columns mean, or new sets (lerobot_writer.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colaworld.data.errors import DataError
from colaworld.data.parquet_file import opened_parquet, read_parquet
from colaworld.data.sources.lerobot import LeRobotSource
from colaworld.data.sources.lerobot_meta import read_json
from colaworld.data.sources.lerobot_statistics import Statistics
from colaworld.data.sources.new_folder import NewFolder, link_or_copy
from colaworld.files import write_atomically

_CHUNK = 65_536  # rows looked at together


def write_columns(
    root: Path | str,
    out: Path | str,
    columns: Mapping[str, np.ndarray],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    videos: Literal["link", "copy"] = "link",
    drop: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write the set at `root` with more columns to `out`, whole or not at all. Returns `out`.

    Args:
        root: a LeRobot v3 set.
        out: the new folder; absent or empty, and not inside `root`.
        columns: values per frame by name; row i belongs to the frame whose `index` is i. Integers or
            booleans [N], or floats or integers [N, D]; a memory map is read in parts. An action of
            row t leads from frame t to t + 1: an episode's last row leads nowhere, and still wants
            a valid value (LeRobot repeats the one before).
        names: of a column of integers [N], its classes; of one [N, D], its D dimensions.
        about: of a column, more that info.json says of it, as its `units` or a `description`.
        videos: "link" shares the files on disk (copies across file systems); "copy" doubles them.
        drop: columns of the old set that the new one does without.
        files: texts to add, by their path within the set.

    Raises:
        DataError: `root` is no such set or its rows are not 0..N-1, `out` holds something, a column
            exists or does not fit (names it), or the disk is full.
    """
    root, out, names, about = Path(root), Path(out), dict(names or {}), dict(about or {})
    source = LeRobotSource(root, action_column=None)
    if source.layout != "v3":
        raise DataError(
            f"{root}: columns are added to sets of layout v3.0, this one is "
            f"{source.info['codebase_version']}. LeRobot converts it in place: python -m "
            f"lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=USER/NAME --root={root} "
            "--push-to-hub=false (in LeRobot 0.4: lerobot.datasets.v30.convert_dataset_v21_to_v30)"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not empty; choose another folder")
    if root.resolve() in out.resolve().parents:
        raise DataError(f"{out}: lies inside {root}; choose a folder beside it")
    total = source.info.get("total_frames")
    if total is None:
        raise DataError(f"{root / 'meta/info.json'}: total_frames: missing; expected a count")
    if unknown := (names.keys() | about.keys()) - columns.keys():
        raise DataError(f"{out}: names for columns that are not written: {sorted(unknown)}")
    made = {
        name: _Column(out, name, values, total, tuple(names.get(name, ())))
        for name, values in columns.items()
    }
    for name, facts in about.items():
        made[name].feature.update({**facts, **made[name].feature})
    for name in made:
        if name in source.info["features"] and name not in drop:
            raise DataError(f"{root}: has a column {name!r} already; choose another name")
    folder = None
    try:
        folder = NewFolder(out)
        _share(source, folder.work, videos == "link")
        _write_rows(source, folder.work, made, total, drop)
        _write_episodes(root, folder.work, made, total, drop)
        _write_meta(source, folder.work, made, drop)
        for name, text in (files or {}).items():
            write_atomically(folder.work / name, text)
        folder.publish()
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}") from error
    finally:
        if folder is not None:
            folder.drop()
    return out


def put_in_place(new: Path, old: Path, columns: Sequence[str]) -> None:
    """Move what differs of a set by `write_columns` into the set it was made from, file by file.

    meta/info.json comes last: until then the set says that it has none of `columns`, old or new. Where
    this was broken off, the same call goes on. Then `new` is of no more use.
    """
    if (new / "meta/info.json").exists():
        info = read_json(old / "meta/info.json")
        kept = {k: v for k, v in info["features"].items() if k not in columns}
        if len(kept) < len(info["features"]):  # tables are exchanged one by one
            text = json.dumps({**info, "features": kept}, indent=1)
            write_atomically(old / "meta/info.json", text)
    files = [p.relative_to(new) for p in sorted(new.rglob("*")) if p.is_file()]
    ranks = {Path("meta/info.json"): 2, Path("meta/stats.json"): 1}
    for name in sorted(files, key=lambda name: (ranks.get(name, 0), str(name))):
        if (old / name).exists() and os.path.samefile(new / name, old / name):
            continue
        with (new / name).open("rb") as file:
            os.fsync(file.fileno())
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, old / name)


def first_rows(source: LeRobotSource) -> list[int]:
    """For each of the set's `episodes`, the `index` of its first frame's row.

    Raises DataError where the rows of an episode do not follow each other.
    """
    names = ["episode_index", "frame_index", "index"]
    found: dict[int, int] = {}
    for file in source.data_files():
        table = read_parquet(file, names)
        for name in names:
            if not pa.types.is_integer(table[name].type) or table[name].null_count:
                raise DataError(f"{file}: column {name!r} should hold integers, one in each row")
        episode, frame, index = (table[name].to_numpy() for name in names)
        pairs = np.unique(np.stack([episode, index - frame], axis=1), axis=0)
        for number, first in pairs.tolist():
            if found.setdefault(number, first) != first:
                raise DataError(f"{file}: the rows of episode {number} do not follow each other")
    numbers = [source.number(e.index) for e in source.episodes]
    if missing := [number for number in numbers if number not in found]:
        raise DataError(f"{source.path}: data/ has no rows of episode {missing[0]}")
    return [found[number] for number in numbers]


class _Column:
    """Values of one column, checked, and what LeRobot says about them."""

    def __init__(
        self, out: Path, name: str, values: np.ndarray, total: int, names: tuple[str, ...]
    ) -> None:
        where = f"{out}: column {name!r}"
        if not name or "/" in name:
            raise DataError(f"{where}: LeRobot wants a name without '/'")
        values = values if isinstance(values, np.ndarray) else np.asarray(values)
        if values.ndim not in (1, 2) or len(values) != total or 0 in values.shape:
            raise DataError(
                f"{where}: expected [{total}] or [{total}, D], one row per frame, got "
                f"{list(values.shape)}"
            )
        if values.dtype.kind not in "iubf":
            raise DataError(f"{where}: expected integers, booleans or floats, got {values.dtype}")
        self.values = values
        self.width = values.shape[1] if values.ndim == 2 else 1
        kind = values.dtype.kind
        self.dtype = {"b": "bool", "f": "float64" if values.itemsize == 8 else "float32"}.get(
            kind, "int64"
        )
        self.feature: dict[str, Any] = {"dtype": self.dtype, "shape": [self.width], "names": None}
        if names and values.ndim == 1 and self.dtype == "int64":
            self.feature["class_names"] = list(names)
            low, high = values.min(), values.max()
            if low < 0 or high >= len(names):
                raise DataError(f"{where}: {len(names)} classes are named, found {low}..{high}")
        elif names:
            if len(names) != self.width:
                raise DataError(f"{where}: expected {self.width} names, got {len(names)}")
            self.feature["names"] = list(names)
        for first in range(0, total, _CHUNK) if kind == "f" else ():
            bad = ~np.isfinite(values[first : first + _CHUNK]).reshape(-1, self.width).all(1)
            if bad.any():
                raise DataError(f"{where}: row {first + int(bad.argmax())} is not finite")

    def array(self, rows: np.ndarray) -> pa.Array:
        """The values of frames `rows` [n] as parquet keeps them."""
        values = np.asarray(self.values[rows], self.dtype)
        flat = pa.array(values.reshape(-1))
        return flat if self.width == 1 else pa.FixedSizeListArray.from_arrays(flat, self.width)

    def statistics(self, first: int, stop: int) -> Statistics:
        """Over frames first..stop-1."""
        parts = (self.values[i : min(i + _CHUNK, stop)] for i in range(first, stop, _CHUNK))
        made = Statistics.of(next(parts))
        for part in parts:
            made = made.merged(Statistics.of(part))
        return made

    def hugging_face(self) -> dict[str, Any]:
        """The feature as `datasets` writes it into a parquet file."""
        value = {"dtype": self.dtype, "_type": "Value"}
        if self.width == 1:
            return value
        return {"feature": value, "length": self.width, "_type": "Sequence"}


def _share(source: LeRobotSource, work: Path, link: bool) -> None:
    """Every file but hidden ones; those that are rewritten later are replaced, not written into."""
    for folder, below, files in os.walk(source.path):
        below[:] = [name for name in below if not name.startswith(".")]
        place = Path(folder).relative_to(source.path)
        (work / place).mkdir(parents=True, exist_ok=True)
        linked = [name for name in below if (Path(folder) / name).is_symlink()]
        for name in [*files, *linked]:
            if name.startswith("."):
                continue
            file, new = (
                source.folder.file(place / name, f"{source.path}").resolve(),
                work / place / name,
            )
            link_or_copy(file, new, link=link)


def _write_rows(
    source: LeRobotSource,
    work: Path,
    columns: Mapping[str, _Column],
    total: int,
    drop: Sequence[str],
) -> None:
    seen = np.zeros(total, bool)
    for file in source.data_files():
        try:
            old = pq.ParquetFile(file, page_checksum_verification=True)
            kind = dict(zip(old.schema_arrow.names, old.schema_arrow.types, strict=True)).get(
                "index"
            )
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
        if kind is None:
            raise DataError(f"{file}: has no column 'index'")
        if not pa.types.is_integer(kind):
            raise DataError(f"{file}: column 'index' should hold integers, not {kind}")
        with old, _Rewritten(work / file.relative_to(source.path)) as new:
            for group in range(old.num_row_groups):
                try:
                    table = old.read_row_group(group)
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise DataError(f"{file}: cannot be read: {error}") from error
                rows = table["index"].fill_null(-1).to_numpy()
                inside = not len(rows) or (rows.min() >= 0 and rows.max() < total)
                if not inside or seen[rows].any() or len(np.unique(rows)) < len(rows):
                    raise DataError(
                        f"{file}: column 'index' should hold each of 0..{total - 1} once, in all files"
                    )
                seen[rows] = True
                try:
                    new.write(_with_columns(table, rows, columns, drop))
                except (ValueError, AttributeError, TypeError) as error:  # of huggingface's JSON
                    raise DataError(f"{file}: its metadata cannot be read: {error}") from error
    if not seen.all():
        raise DataError(
            f"{source.path}: meta/info.json counts {total} frames, data/ holds {int(seen.sum())}"
        )


def _with_columns(
    table: pa.Table, rows: np.ndarray, columns: Mapping[str, _Column], drop: Sequence[str]
) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    table = table.drop_columns([name for name in drop if name in table.column_names])
    for name, column in columns.items():
        table = table.append_column(name, column.array(rows))
    if b"huggingface" in metadata:
        about = json.loads(metadata[b"huggingface"])
        features = about.setdefault("info", {}).setdefault("features", {})
        for name in drop:
            features.pop(name, None)
        features.update({name: column.hugging_face() for name, column in columns.items()})
        metadata[b"huggingface"] = json.dumps(about).encode()
    return table.replace_schema_metadata(metadata or None)


def _write_episodes(
    root: Path, work: Path, columns: Mapping[str, _Column], total: int, drop: Sequence[str]
) -> None:
    """Statistics per episode, beside those that are there. Sets that keep none stay so."""
    for file in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        with opened_parquet(file, ["stats/*"]) as old:
            table = old.read()
        told = any(name.startswith("stats/") for name in table.column_names)
        if not told or not len(table):  # without a row there is nothing to add to
            continue
        ends = [f"dataset_{end}_index" for end in ("from", "to")]
        if missing := [name for name in ends if name not in table.column_names]:
            raise DataError(f"{file}: lacks the columns {', '.join(missing)}")
        old_stats = tuple(f"stats/{name}/" for name in drop)
        table = table.drop_columns([n for n in table.column_names if n.startswith(old_stats)])
        spans = list(zip(*(table[name].to_pylist() for name in ends), strict=True))
        if any(not 0 <= first < stop <= total for first, stop in spans):
            raise DataError(f"{file}: dataset_from_index..dataset_to_index leave 0..{total}")
        for name, column in columns.items():
            rows = [column.statistics(*span).to_dict() for span in spans]
            for key in rows[0]:
                table = table.append_column(f"stats/{name}/{key}", pa.array([r[key] for r in rows]))
        with _Rewritten(work / file.relative_to(root)) as new:
            new.write(table)


def _write_meta(
    source: LeRobotSource, work: Path, columns: Mapping[str, _Column], drop: Sequence[str]
) -> None:
    kept = {name: told for name, told in source.info["features"].items() if name not in drop}
    features = {name: column.feature for name, column in columns.items()}
    info = {**source.info, "features": {**kept, **features}}
    write_atomically(work / "meta" / "info.json", json.dumps(info, indent=1))  # never into a link
    file = work / "meta" / "stats.json"
    before = read_json(file) if file.exists() else {}
    before = {name: told for name, told in before.items() if name not in drop}
    total = int(info["total_frames"])
    after = {name: column.statistics(0, total).to_dict() for name, column in columns.items()}
    write_atomically(file, json.dumps({**before, **after}))


class _Rewritten:
    """A parquet file that takes the place of another; with the schema of its first table."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # it may be a link to the old one
        self._path, self._writer = path, None

    def __enter__(self) -> _Rewritten:
        return self

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, write_page_checksum=True)
        self._writer.write_table(table)

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()
