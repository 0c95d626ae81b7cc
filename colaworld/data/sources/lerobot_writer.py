"""Write a data set in the LeRobot v3.0 layout: parquet, mp4 and meta, streamed and atomic.

Not here: where frames come from. Nothing is kept but the running statistics, so memory does not
grow with the set. Everything goes into a hidden sibling folder that is renamed at the end
(new_folder.py): what carries the asked name is always complete. Parquet pages carry checksums.

    meta/info.json  stats.json  tasks.parquet  colaworld.json   how it was made: env, seed ...
    meta/episodes/chunk-000/file-000.parquet   one row per episode: where it is, its statistics
    data/chunk-000/file-000.parquet            one row per frame: action, timestamp, indices
    videos/CAMERA/chunk-000/file-000.mp4       several episodes one after another

Discrete actions are int64 of shape [1]; their classes are named in
`info.json: features.action.class_names` (a key of ours, which LeRobot ignores).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colaworld.contracts import ActionSpec
from colaworld.data import video_reader
from colaworld.data.config import EncodingConfig
from colaworld.data.errors import DataError
from colaworld.data.sources.lerobot_statistics import Statistics
from colaworld.data.sources.new_folder import NewFolder, link_or_copy
from colaworld.data.video_writer import VideoWriter

log = logging.getLogger(__name__)
CAMERA = "observation.images.main"
_FILES_PER_CHUNK = 1000  # LeRobot's own value
_ROWS_PER_GROUP = 20_000  # frames per parquet row group: an episode is found without a full read
_INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


class LeRobotWriter:
    """Add episodes, then `finish()`. As a context manager, an error (or Ctrl-C) leaves nothing.

    `made_by` goes into meta/colaworld.json. `video_mb`, `data_mb`: a file that has reached this
    size (data: uncompressed) is closed after the current episode.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: float,
        height: int,
        width: int,
        action: ActionSpec | None,
        encoding: EncodingConfig | None = None,
        camera: str = CAMERA,
        robot_type: str = "simulator",
        made_by: dict[str, Any] | None = None,
        video_mb: float = 200.0,
        data_mb: float = 100.0,
        overwrite: bool = False,
    ) -> None:
        self.root = Path(root)
        check_target(self.root, overwrite=overwrite)
        self.fps, self.height, self.width, self.action = fps, height, width, action
        self.encoding, self.camera = encoding or EncodingConfig(), camera
        self.robot_type, self.made_by = robot_type, dict(made_by or {})
        self._video_bytes, self._data_bytes = video_mb * 1e6, data_mb * 1e6
        self.episodes = self.frames = 0
        self.psnr: list[float] = []  # decoded against original, first episode of each video file
        self._tasks: dict[str, int] = {}
        self._statistics: dict[str, Statistics] = {}
        self._video: VideoWriter | None = None
        self._video_file = self._data_file = 0
        self._kept: np.ndarray | None = None
        self._data: pq.ParquetWriter | None = None
        self._buffer: list[pa.Table] = []
        self._rows: list[dict[str, Any]] = []
        self._index: pq.ParquetWriter | None = None
        self._folder = NewFolder(self.root, replaceable=check_recorded if overwrite else None)
        self._work = self._folder.work

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            self.abort()

    def add(self, frames: np.ndarray, actions: np.ndarray | None, *, task: str = "") -> None:
        """One episode: uint8 [n, H, W, 3] and, if the set has actions, [n] int or [n, A] float."""
        length = len(frames)
        self._check_actions(length, actions)
        sampled = Statistics.of_images(frames[:: max(1, length // 20)], length)
        self._add(self._write_video(frames), length, sampled, actions, task)

    def add_film(
        self,
        film: Path,
        frames: int,
        pictures: Statistics,
        actions: np.ndarray | None,
        *,
        task: str = "",
        link: bool = True,
    ) -> None:
        """One episode whose film is there: an mp4 of `frames` frames at the writer's rate from time 0
        on, taken over as it is, as a hard link where `link` and the file system allow.

        `pictures`: what `Statistics.of_images` says of its frames.
        """
        self._check_actions(frames, actions)
        if self._video is not None:
            self._close_video()
        place = self._work / f"videos/{self.camera}/{_place(self._video_file)}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(film.resolve(), place, link=link)
        self._add(0, frames, pictures, actions, task)
        self._video_file += 1

    def _check_actions(self, length: int, actions: np.ndarray | None) -> None:
        if (actions is None) != (self.action is None) or (
            actions is not None and len(actions) != length
        ):
            raise ValueError(
                f"{self.root}: episode {self.episodes}: one action per frame wanted "
                f"({length} frames, {'no' if actions is None else len(actions)} actions)"
            )

    def _add(
        self,
        start: int,
        length: int,
        pictures: Statistics,
        actions: np.ndarray | None,
        task: str,
    ) -> None:
        """The rows of an episode that begins at frame `start` of the current film."""
        task_index = self._tasks.setdefault(task, len(self._tasks))
        columns = {
            "timestamp": np.arange(length, dtype=np.float32) / np.float32(self.fps),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, self.episodes),
            "index": self.frames + np.arange(length),
            "task_index": np.full(length, task_index),
        }
        self._write_rows(columns, actions)
        row: dict[str, Any] = {
            "episode_index": self.episodes,
            "tasks": [task],
            "length": length,
            "data/chunk_index": self._data_file // _FILES_PER_CHUNK,
            "data/file_index": self._data_file % _FILES_PER_CHUNK,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + length,
            f"videos/{self.camera}/chunk_index": self._video_file // _FILES_PER_CHUNK,
            f"videos/{self.camera}/file_index": self._video_file % _FILES_PER_CHUNK,
            f"videos/{self.camera}/from_timestamp": start / self.fps,
            f"videos/{self.camera}/to_timestamp": (start + length) / self.fps,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        measured = {self.camera: pictures}
        if actions is not None:
            measured["action"] = Statistics.of(actions)
        measured |= {name: Statistics.of(values) for name, values in columns.items()}
        for name, statistics in measured.items():
            row |= {f"stats/{name}/{k}": v for k, v in statistics.to_dict().items()}
            before = self._statistics.get(name)
            self._statistics[name] = statistics if before is None else before.merged(statistics)
        self._rows.append(row)
        self.episodes += 1
        self.frames += length
        if len(self._rows) >= 500:
            self._flush_index()
        if self._video is not None and self._video.bytes >= self._video_bytes:
            self._close_video()
        if self._data is not None and self._data_held >= self._data_bytes:
            self._close_data()

    def finish(self) -> Path:
        """Close all files and move the set to its name. Returns the folder.

        Raises DataError if nothing was added, or where something with that name must stay: see
        `NewFolder.publish`.
        """
        try:
            if not self.episodes:
                raise DataError(f"{self.root}: no episodes were added")
            if self._video is not None:
                self._close_video()
            if self._data is not None:
                self._close_data()
            self._flush_index()
            if self._index is not None:
                self._index.close()
                self._index = None
            self._write_meta()
            self._folder.publish()
        except BaseException:
            self.abort()
            raise
        return self.root

    def abort(self) -> None:
        """Drop everything that was written."""
        for writer in (self._data, self._index):
            if writer is not None:
                writer.close()
        if self._video is not None:
            self._video.close()
        self._data = self._index = self._video = None
        self._folder.drop()

    def _write_video(self, frames: np.ndarray) -> int:
        """Returns the episode's first frame within the current file."""
        if self._video is None:
            name = f"videos/{self.camera}/{_place(self._video_file)}.mp4"
            self._video = VideoWriter(
                self._work / name,
                fps=self.fps,
                height=self.height,
                width=self.width,
                encoding=self.encoding,
            )
            self._kept = frames
        start = self._video.frames
        for frame in frames:
            self._video.write(frame)
        return start

    def _close_video(self) -> None:
        """Closes the file and compares its first episode with what was given."""
        assert self._video is not None and self._kept is not None
        self._video.close()
        decoded = video_reader.stream_frames(self._video.path, 0, len(self._kept))
        error = [
            np.mean((a.astype(np.float64) - b) ** 2)
            for a, b in zip(decoded, self._kept, strict=True)
        ]
        self.psnr.append(float(10 * np.log10(255.0**2 / max(np.mean(error), 1e-10))))
        if self.psnr[-1] < 30:
            log.warning(
                "%s: decodes at %.1f dB only; use pixel format yuv444p or a lower crf",
                self._video.path.name,
                self.psnr[-1],
            )
        self._video, self._kept = None, None
        self._video_file += 1

    def _write_rows(self, columns: dict[str, np.ndarray], actions: np.ndarray | None) -> None:
        arrays: dict[str, pa.Array] = {}
        if actions is not None and self.action is not None:
            if self.action.kind == "discrete":
                arrays["action"] = pa.array(np.asarray(actions).reshape(-1), pa.int64())
            else:
                flat = np.asarray(actions, np.float32).reshape(len(actions), self.action.size)
                arrays["action"] = pa.FixedSizeListArray.from_arrays(
                    pa.array(flat.ravel()), self.action.size
                )
        for name in _INDEX_COLUMNS:
            kind = pa.float32() if name == "timestamp" else pa.int64()
            arrays[name] = pa.array(columns[name], kind)
        table = pa.table(arrays)
        if self._data is None:
            path = self._work / f"data/{_place(self._data_file)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(path, table.schema, write_page_checksum=True)
            self._data_held = 0
        self._buffer.append(table)
        self._data_held += table.nbytes
        if sum(t.num_rows for t in self._buffer) >= _ROWS_PER_GROUP:
            self._flush_data()

    def _flush_data(self) -> None:
        if self._buffer and self._data is not None:
            self._data.write_table(pa.concat_tables(self._buffer))
            self._buffer = []

    def _close_data(self) -> None:
        assert self._data is not None
        self._flush_data()
        self._data.close()
        self._data = None
        self._data_file += 1

    def _flush_index(self) -> None:
        if not self._rows:
            return
        schema = None if self._index is None else self._index.schema
        table = pa.Table.from_pylist(self._rows, schema=schema)
        if self._index is None:
            path = self._work / "meta/episodes/chunk-000/file-000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._index = pq.ParquetWriter(path, table.schema, write_page_checksum=True)
        self._index.write_table(table)
        self._rows = []

    def _write_meta(self) -> None:
        meta = self._work / "meta"
        tasks = _task_table(list(self._tasks))
        pq.write_table(tasks, meta / "tasks.parquet", write_page_checksum=True)
        statistics = {name: value.to_dict() for name, value in self._statistics.items()}
        (meta / "stats.json").write_text(json.dumps(statistics))
        features: dict[str, Any] = {}
        if self.action is not None:
            features["action"] = _action_feature(self.action)
        features[self.camera] = {
            "dtype": "video",
            "shape": [self.height, self.width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": self.height,
                "video.width": self.width,
                "video.codec": "h264",
                "video.pix_fmt": self.encoding.pixel_format,
                "video.is_depth_map": False,
                "video.fps": self.fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
        for name in _INDEX_COLUMNS:
            kind = "float32" if name == "timestamp" else "int64"
            features[name] = {"dtype": kind, "shape": [1], "names": None}
        fps = int(self.fps) if float(self.fps).is_integer() else self.fps
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": round(self._data_bytes / 1e6),
            "video_files_size_in_mb": round(self._video_bytes / 1e6),
            "fps": fps,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features,
        }
        (meta / "info.json").write_text(json.dumps(info, indent=1))
        made = {**self.made_by, "decoded_psnr_db": [round(value, 2) for value in self.psnr]}
        (meta / "colaworld.json").write_text(json.dumps(made, indent=1))


def check_target(root: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something, before any work is done.

    With `overwrite`: something that is no recorded set.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        if not overwrite:
            raise DataError(f"{root}: exists and is not empty; choose another --out or --overwrite")
        check_recorded(root)


def check_recorded(root: Path) -> None:
    """Refuse what holds anything but a set that `LeRobotWriter` wrote."""
    parts = ("data", "meta", "videos")
    if not (root / "meta/info.json").is_file() or not (root / "meta/colaworld.json").is_file():
        raise DataError(f"{root}: is no recorded data set; --overwrite replaces nothing else")
    if more := sorted(path.name for path in root.iterdir() if path.name not in parts):
        raise DataError(
            f"{root}: holds more than a recorded data set: {', '.join(more[:5])}; move that away, "
            "--overwrite would delete it"
        )


def _place(number: int) -> str:
    return f"chunk-{number // _FILES_PER_CHUNK:03d}/file-{number % _FILES_PER_CHUNK:03d}"


def _action_feature(action: ActionSpec) -> dict[str, Any]:
    if action.kind == "discrete":
        feature = {"dtype": "int64", "shape": [1], "names": None}
        return {**feature, "class_names": list(action.names)}
    names = list(action.names) or [f"action_{i}" for i in range(action.size)]
    said = {"units": list(action.units), "mode": action.mode, "frame": action.frame}
    feature = {"dtype": "float32", "shape": [action.size], "names": names}
    return feature | {key: value for key, value in said.items() if value}


def _task_table(tasks: list[str]) -> pa.Table:
    """LeRobot reads this file through pandas and expects the task's text as the index."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
    names = {"task_index": ("int64", "int64", None), "task": ("unicode", "object", None)}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {
                "name": name,
                "field_name": name,
                "pandas_type": pandas_type,
                "numpy_type": numpy_type,
                "metadata": metadata,
            }
            for name, (pandas_type, numpy_type, metadata) in names.items()
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({b"pandas": json.dumps(pandas).encode()})
