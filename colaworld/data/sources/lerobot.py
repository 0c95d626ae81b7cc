"""LeRobot data sets, layout v3.0, by pyarrow and PyAV alone; also those LeRobot wrote itself.

Not here: writing (lerobot_writer.py, lerobot_columns.py), layouts before v3.0, images stored in parquet.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colaworld.contracts import ActionSpec
from colaworld.data import video_reader
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.sources.registry import register_source
from colaworld.data.sources.source import BrokenFile, Description, EpisodeInfo

log = logging.getLogger(__name__)


class LeRobotSource:
    """`camera`: a video feature's key (default: the first). `action_column`: its name, or None."""

    kind = "lerobot"
    uniform_fps = True

    def __init__(
        self, path: Path, *, camera: str | None = None, action_column: str | None = "action"
    ) -> None:
        self.path = Path(path)
        self.info = _read_json(self.path / "meta" / "info.json")
        version = str(self.info.get("codebase_version", "?"))
        if not version.startswith("v3."):
            raise DataError(
                f"{self.path}: layout {version} of LeRobot; v3.0 is read here; convert it with "
                "LeRobot's own conversion script"
            )
        features = self.info["features"]
        self.cameras = [key for key, value in features.items() if value["dtype"] == "video"]
        if not self.cameras:
            raise DataError(f"{self.path}: has no video feature; it has: {', '.join(features)}")
        if camera is not None and camera not in self.cameras:
            raise DataError(
                f"{self.path}: no camera {camera!r}; choose one of: {', '.join(self.cameras)}"
            )
        if camera is None and len(self.cameras) > 1:
            log.info("%s: using camera %s of %s", self.path, self.cameras[0], self.cameras)
        self.camera = camera or self.cameras[0]
        self.action_column = action_column
        self.broken: list[BrokenFile] = []
        self._rows = self._read_episodes()
        height, width = features[self.camera]["shape"][:2]
        axes = features[self.camera].get("names")  # LeRobot allows null
        if isinstance(axes, list) and axes[:1] in (["channel"], ["channels"]):
            height, width = features[self.camera]["shape"][1:]
        fps = float(self.info["fps"])
        self.episodes = [
            EpisodeInfo(
                index=i,
                name=f"episode {row['episode_index']:06d}",
                path=self._video_file(row),
                frames=int(row["length"]),
                fps=fps,
                height=int(height),
                width=int(width),
            )
            for i, row in enumerate(self._rows)
        ]
        self.action_spec = self._action_spec()
        self._sizes: dict[Path, int | None] = {}  # by file, asked once

    def describe(self) -> Description:
        features = self.info["features"]
        columns = tuple(key for key, value in features.items() if value["dtype"] != "video")
        return Description(
            "LeRobot v3",
            f"{self.path}/meta/info.json: no action column {self.action_column!r}; it has: "
            f"{', '.join(columns)}; set action_column",
            camera=self.camera,
            cameras=tuple(self.cameras),
            columns=columns,
        )

    def identity(self, episode: int) -> tuple[str, int | None]:
        file = self.episodes[episode].path
        if file not in self._sizes:
            self._sizes[file] = file.stat().st_size if file.is_file() else None
        return os.path.relpath(file, self.path), self._sizes[file]

    def _read_episodes(self) -> list[dict[str, Any]]:
        files = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise DataError(f"{self.path}: no episodes under meta/episodes")
        key = f"videos/{self.camera}"
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        columns += [f"{key}/chunk_index", f"{key}/file_index", f"{key}/from_timestamp"]
        tables = []
        for file in files:
            try:
                tables.append(pq.read_table(file, columns=columns))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file}: cannot be read: {error}") from error
            missing = [c for c in columns if c not in tables[-1].column_names]
            if missing:
                raise DataError(f"{file}: lacks the columns {', '.join(missing)}")
        return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row["episode_index"])

    def _video_file(self, row: dict[str, Any]) -> Path:
        return self.path / self.info["video_path"].format(
            video_key=self.camera,
            chunk_index=row[f"videos/{self.camera}/chunk_index"],
            file_index=row[f"videos/{self.camera}/file_index"],
        )

    def data_files(self) -> list[Path]:
        """The parquet files of all episodes, in order."""
        return list(dict.fromkeys(self._data_file(row) for row in self._rows))

    def _data_file(self, row: dict[str, Any]) -> Path:
        return self.path / self.info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )

    def _action_spec(self) -> ActionSpec | None:
        feature = self.info["features"].get(self.action_column) if self.action_column else None
        if feature is None:
            return None
        column, size = str(self.action_column), int(np.prod(feature["shape"]))
        if str(feature["dtype"]).startswith(("int", "uint")) and size == 1:
            classes = tuple(feature.get("class_names") or ())
            count = len(classes) or self._largest_class(column) + 1
            return ActionSpec(column, "discrete", count, classes)
        names = feature.get("names")
        if isinstance(names, dict):  # LeRobot also writes {"motors": [...]}
            names = [name for group in names.values() for name in group]
        named = tuple(str(n) for n in names) if names and len(names) == size else ()
        return ActionSpec(column, "continuous", size, named, str(feature.get("unit", "")))

    def _largest_class(self, column: str) -> int:
        stats = _read_json(self.path / "meta" / "stats.json")
        if column not in stats:
            raise DataError(
                f"{self.path / 'meta/stats.json'}: no column {column!r}, and info.json names no "
                "classes; the number of actions is unknown"
            )
        return int(np.max(stats[column]["max"]))

    def _offset(self, episode: int) -> int:
        """Index of the episode's first frame within its video file."""
        row, info = self._rows[episode], self.episodes[episode]
        seconds = video_reader.frame_times(info.path).seconds
        start = float(row[f"videos/{self.camera}/from_timestamp"])
        first = int(np.searchsorted(seconds, start - 0.5 / info.fps))
        if first + info.frames > len(seconds) or abs(seconds[first] - start) > 0.5 / info.fps:
            raise BrokenFileError(
                f"{info.path}: {info.name} should be {info.frames} frames from {start:.3f} s on; "
                f"the file holds {len(seconds)} frames (truncated?)"
            )
        return first

    def _check(self, episode: int, stop: int) -> None:
        if stop > self.episodes[episode].frames:
            info = self.episodes[episode]
            raise ValueError(f"{info.name}: frame {stop - 1} asked, it has {info.frames} frames")

    def stream(self, episode: int, first: int, stop: int) -> Iterator[np.ndarray]:
        self._check(episode, stop)
        offset = self._offset(episode)
        return video_reader.stream_frames(
            self.episodes[episode].path, offset + first, offset + stop
        )

    def read(self, episode: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, np.int64)
        self._check(episode, int(indices.max(initial=-1)) + 1)
        return video_reader.read_frames(
            self.episodes[episode].path, indices + self._offset(episode)
        )

    def times(self, episode: int) -> np.ndarray:
        info = self.episodes[episode]
        return np.arange(info.frames) / info.fps

    def actions(self, episode: int) -> np.ndarray | None:
        if self.action_spec is None:
            return None
        spec, info, row = self.action_spec, self.episodes[episode], self._rows[episode]
        file = self._data_file(row)
        try:
            table = pq.read_table(
                file,
                columns=[spec.column, "frame_index"],
                filters=[("episode_index", "==", int(row["episode_index"]))],
            )
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: column {spec.column!r} cannot be read: {error}") from error
        if spec.column not in table.column_names:
            raise DataError(f"{file}: has no column {spec.column!r}, which meta/info.json promises")
        order = table["frame_index"].to_numpy()
        if len(order) != info.frames or not np.array_equal(order, np.arange(info.frames)):
            raise DataError(
                f"{file}: column {spec.column!r} does not match the frames of {info.name}: "
                f"{info.frames} rows with frame_index 0..{info.frames - 1} wanted, "
                f"{len(order)} rows found"
            )
        column = table[spec.column]
        if column.null_count:
            raise DataError(
                f"{file}: column {spec.column!r} lacks {column.null_count} values in {info.name}"
            )
        values = np.asarray(column.to_pylist())
        if spec.kind == "discrete":
            values = values.reshape(-1).astype(np.int64)
            if values.min() < 0 or values.max() >= spec.size:
                raise DataError(
                    f"{file}: column {spec.column!r} of {info.name}: classes 0..{spec.size - 1} "
                    f"wanted, found {values.min()}..{values.max()}"
                )
            return values
        values = values.astype(np.float32).reshape(len(order), -1)
        if values.shape[1] != spec.size or not np.isfinite(values).all():
            raise DataError(
                f"{file}: column {spec.column!r} of {info.name}: finite vectors of {spec.size} "
                f"wanted, got {list(values.shape)} with {np.sum(~np.isfinite(values))} not finite"
            )
        return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: missing; not a LeRobot data set?") from None
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


register_source(
    LeRobotSource.kind,
    detect=lambda path: (path / "meta" / "info.json").exists(),
    open=LeRobotSource,
)
