"""LeRobot data sets, layouts v2.0 to v3.0, by pyarrow and PyAV alone; also those LeRobot wrote itself.

Not here: what meta/ must hold (lerobot_meta.py, lerobot_v2.py), writing (lerobot_writer.py,
lerobot_columns.py), layouts before v2.0, images stored in parquet. A film is held against meta/info.json when the set is
opened: frames of that size, a rate within 1 % of fps. When an episode is decoded, its first and last
frame must lie within half a frame of where meta/ puts them.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from colaworld.contracts import ActionSpec
from colaworld.data import video_reader
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.index_cache import IndexCache
from colaworld.data.parquet_file import read_parquet
from colaworld.data.sources import lerobot_meta, lerobot_v2
from colaworld.data.sources.camera import choose_camera
from colaworld.data.sources.lerobot_statistics import told_together
from colaworld.data.sources.registry import register_source
from colaworld.data.sources.source import BrokenFile, Description, EpisodeInfo, tell_once
from colaworld.data.sources.videos import probe_video, told_notes
from colaworld.data.video_file import Video
from colaworld.data.video_reader import VideoInfo

_KEPT = 2**26  # bytes of an action column that are kept for the next episode


class LeRobotSource:
    """`camera`: a video feature's key, or its last part (default: the first feature).
    `action_column`: its name, or None.
    """

    kind = "lerobot"
    uniform_fps = True

    def __init__(
        self, path: Path, *, camera: str | None = None, action_column: str | None = "action"
    ) -> None:
        self.path = Path(path)
        self.folder = lerobot_meta.Folder(self.path)
        self.info = lerobot_meta.read_info(self.folder)
        self.cameras = lerobot_meta.cameras_of(self.info)
        self.camera = choose_camera(self.path, self.cameras, camera)
        if camera is None and len(self.cameras) > 1:
            tell_once(logging.INFO, f"{self.path}: using camera {self.camera} of {self.cameras}")
        self.action_column = action_column
        self.layout = lerobot_meta.layout_of(self.info)
        reader = lerobot_v2 if self.layout == "v2" else lerobot_meta
        rows = reader.read_episodes(self.folder, self.info, self.camera)
        self._data_files = list(dict.fromkeys(row.data for row in rows))
        self.broken: list[BrokenFile] = []
        self.episodes: list[EpisodeInfo] = []
        self._rows: list[lerobot_meta.Row] = []
        self._add(rows)
        self.action_spec = self._action_spec()
        self._sizes: dict[Path, int | None] = {}  # by file, asked once
        self._kept: tuple[tuple[Path, list[int]], pa.Table] | None = None
        self._spans: dict[Path, list[tuple[int, int]]] = {}  # episodes per row group, by file

    def _add(self, rows: Sequence[lerobot_meta.Row]) -> None:
        """Episodes whose films can be read; the films that cannot are named once each."""
        fps, index = float(self.info["fps"]), IndexCache(self.path)
        films: dict[Path, VideoInfo | str] = {}
        lost: Counter[tuple[Path, str]] = Counter()
        for row in rows:
            if row.video not in films:
                films[row.video] = self._film(row.video, index)
            film, name = films[row.video], f"episode {row.episode:06d}"
            if isinstance(film, VideoInfo) and row.start * fps + row.length > film.frames + 0.5:
                film = _cut_short(row.video, name, row, film.frames)
            if isinstance(film, str):
                lost[row.video, film] += 1
                continue
            self.episodes.append(
                EpisodeInfo(
                    index=len(self.episodes),
                    name=name,
                    path=row.video,
                    frames=row.length,
                    fps=fps,
                    height=film.height,
                    width=film.width,
                )
            )
            self._rows.append(row)
        index.save(whole=False)  # another camera's films keep their entries
        found = {file: film for file, film in films.items() if isinstance(film, VideoInfo)}
        ends = {
            row.video: row.start * fps + row.length
            for row in sorted(rows, key=lambda row: row.start)
        }
        self._longer = [
            f"{file} ({film.frames} frames, {round(ends[file])} claimed)"
            for file, film in found.items()
            if film.frames > ends[file] + 0.5
        ]
        # Of times info.json says what there is to say; a start that is lost makes episodes broken.
        notes = {note for film in found.values() for note in film.notes} - {"uneven", "cut"}
        self._told = told_notes(
            {
                note: [os.path.relpath(f, self.path) for f in found if note in found[f].notes]
                for note in sorted(notes)
            },
            len(found),
        )
        for (file, reason), count in lost.items():
            self.broken.append(BrokenFile(file, reason, episodes=count))
        if not self.episodes:
            reasons = "\n".join(f"  {b.reason}" for b in self.broken[:20])
            raise DataError(
                f"{self.path}: no film of its {len(rows)} episodes is whole:\n{reasons}"
            )

    def _film(self, file: Path, index: IndexCache) -> VideoInfo | str:
        """What a film says of itself, or why it cannot be read. DataError: info.json says otherwise."""
        try:
            film = probe_video(Video.file(file), index)
        except BrokenFileError as error:
            return str(error) if file.exists() else f"{file}: missing"
        meta, shape = self.path / "meta" / "info.json", self.info["features"][self.camera]["shape"]
        if [film.height, film.width] not in (shape[:2], shape[1:]):
            raise DataError(
                f"{file}: frames of {film.height}x{film.width}; {meta}: features.{self.camera}."
                f"shape says {shape}"
            )
        if abs(film.fps / self.info["fps"] - 1) > 0.01:
            raise DataError(
                f"{file}: {film.fps:.4g} frames a second; {meta}: fps says {self.info['fps']:g}"
            )
        return film

    def describe(self) -> Description:
        features = self.info["features"]
        columns = tuple(key for key, value in features.items() if value["dtype"] != "video")
        return Description(
            f"LeRobot {self.layout}",
            f"{self.path}/meta/info.json: no action column {self.action_column!r}; it has: "
            f"{', '.join(columns)}; set action_column",
            camera=self.camera,
            cameras=tuple(self.cameras),
            columns=columns,
            warnings=(
                *self._told,
                *(
                    f"{len(self._longer)} films go on after their last episode (first: {first}): is "
                    "each the film that meta/ means?"
                    for first in self._longer[:1]
                ),
            ),
        )

    def identity(self, episode: int) -> tuple[str, int | None]:
        file = self.episodes[episode].path
        if file not in self._sizes:
            self._sizes[file] = file.stat().st_size if file.is_file() else None
        return os.path.relpath(file, self.path), self._sizes[file]

    def number(self, episode: int) -> int:
        """The `episode_index` that the set itself gives an episode."""
        return self._rows[episode].episode

    def data_files(self) -> list[Path]:
        """The parquet files of all episodes, also of those whose films are broken, in order."""
        return list(self._data_files)

    def _action_spec(self) -> ActionSpec | None:
        column = self.action_column
        feature = column and lerobot_meta.action_feature(self.path, self.info, column)
        if not column or not feature:
            return None
        size = int(np.prod(feature["shape"]))
        if lerobot_meta.kind_of(feature["dtype"]) == "int" and size == 1:
            classes = tuple(feature.get("class_names") or ())
            count = len(classes) or self._largest_class(column) + 1
            return ActionSpec(column, "discrete", count, classes)
        names = feature.get("names") or ()
        if isinstance(names, dict):  # LeRobot also writes {"motors": [...]} and {"x": 0, "y": 1}
            if all(isinstance(place, int) for place in names.values()):
                names = sorted(names, key=names.__getitem__)
            else:
                names = [n for k, v in names.items() for n in (v if isinstance(v, list) else [k])]
        named = tuple(names) if len(names) == size else ()
        units = tuple(feature.get("units") or (feature.get("unit", ""),) * size)
        if len(units) != size:
            raise DataError(
                f"{self.path}/meta/info.json: features.{column}.units: expected {size}, one for each "
                f"channel, got {len(units)}"
            )
        return ActionSpec(
            *(column, "continuous", size, named),
            units=units if any(units) else (),
            mode=feature.get("mode", ""),
            frame=feature.get("frame", ""),
        )

    def _largest_class(self, column: str) -> int:
        if self.layout == "v2":
            return max(
                _largest(where, column, told) for where, told in lerobot_v2.statistics(self.folder)
            )
        file = self.folder.file("meta/stats.json", f"{self.path}")
        return _largest(str(file), column, lerobot_meta.read_json(file))

    def action_files(self) -> list[Path]:
        return sorted({row.data for row in self._rows})

    def told_statistics(self) -> tuple[str, dict[str, list[float]]] | None:
        """What meta/stats.json says of the actions, or in v2.1 the lines of its episodes together."""
        meta = self.path / "meta"
        kept = any((meta / name).exists() for name in ("stats.json", "episodes_stats.jsonl"))
        if self.action_column is None or not kept:
            return None
        if self.layout == "v2":
            told = list(lerobot_v2.statistics(self.folder))
        else:
            file = self.folder.file("meta/stats.json", f"{self.path}")
            told = [(str(file), lerobot_meta.read_json(file))]
        parts = [(at, of[self.action_column]) for at, of in told if self.action_column in of]
        return told_together(parts) if parts else None

    def _offset(self, episode: int) -> int:
        """Index of the episode's first frame within its video file."""
        row, info = self._rows[episode], self.episodes[episode]
        times = video_reader.frame_times(info.path)
        if times.lost:  # meta/ counts from a start that is not there
            raise BrokenFileError(f"{info.path}: its first {times.lost} frames cannot be decoded")
        seconds = times.seconds
        first = int(np.searchsorted(seconds, row.start - 0.5 / info.fps))
        if first + info.frames > len(seconds):
            raise BrokenFileError(_cut_short(info.path, info.name, row, len(seconds)))
        found = seconds[[first, first + info.frames - 1]]
        wanted = row.start + np.array([0, info.frames - 1]) / info.fps
        if (np.abs(found - wanted) > 0.5 / info.fps).any():
            raise BrokenFileError(
                f"{info.path}: {info.name} should show its first and last frame at "
                f"{wanted[0]:.3f} and {wanted[1]:.3f} s; the film shows them at {found[0]:.3f} and "
                f"{found[1]:.3f} s"
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
        where = f"{row.data}: column {spec.column!r}"
        if not row.data.is_file():
            raise DataError(f"{where} cannot be read: no such file")
        table = self._actions_near(row, spec.column)
        table = table.filter(pc.equal(table["episode_index"], row.episode))
        order = table["frame_index"]
        if not pa.types.is_integer(order.type) or not np.array_equal(
            order.to_numpy(), np.arange(info.frames)
        ):
            raise DataError(
                f"{where} does not match the frames of {info.name}: "
                f"{info.frames} rows with frame_index 0..{info.frames - 1} wanted, "
                f"{len(order)} rows found"
            )
        values = self._values(where, info, table[spec.column])
        if spec.kind == "discrete":
            values = values.reshape(-1).astype(np.int64)
            if values.min() < 0 or values.max() >= spec.size:
                raise DataError(
                    f"{where} of {info.name}: classes 0..{spec.size - 1} "
                    f"wanted, found {values.min()}..{values.max()}"
                )
            return values
        if not np.isfinite(values := values.astype(np.float32)).all():
            raise DataError(
                f"{where} of {info.name}: {np.sum(~np.isfinite(values))} values are not finite"
            )
        return values

    def _actions_near(self, row: lerobot_meta.Row, column: str) -> pa.Table:
        """The row groups that hold an episode's rows. The last ones read are kept: they may hold a thousand
        episodes, which are mostly asked for one after another."""
        if row.data not in self._spans:
            self._spans[row.data] = lerobot_meta.episode_spans(row.data)
        spans = enumerate(self._spans[row.data])
        groups = [group for group, (low, high) in spans if low <= row.episode <= high]
        asked, kept = (row.data, groups), self._kept
        if kept is not None and kept[0] == asked:
            return kept[1]
        table = read_parquet(row.data, [column, "frame_index", "episode_index"], groups=groups)
        self._kept = (asked, table) if table.nbytes <= _KEPT else None
        return table

    def _values(self, where: str, info: EpisodeInfo, column: pa.ChunkedArray) -> np.ndarray:
        """[frames, size] of the type that meta/info.json promises. Raises DataError."""
        assert self.action_spec is not None
        feature = self.info["features"][self.action_spec.column]
        size = int(np.prod(feature["shape"]))
        lacking, told = column.null_count, column.type
        even = True
        while pa.types.is_nested(column.type) and not lacking:
            if not hasattr(column.type, "value_type") or pa.types.is_map(column.type):
                break
            spread = pc.min_max(pc.list_value_length(column)).as_py()
            even = even and spread["min"] == spread["max"]
            column = pc.list_flatten(column)
            lacking = column.null_count
        if lacking:
            raise DataError(f"{where} lacks {lacking} values in {info.name}")
        if _kind(column.type) != lerobot_meta.kind_of(feature["dtype"]):
            raise DataError(
                f"{where} holds {told}, meta/info.json says {feature['dtype']}; make the two agree"
            )
        if not even or len(column) != info.frames * size:
            raise DataError(
                f"{where} holds {len(column)} numbers for the {info.frames} frames of {info.name}; "
                f"shape {feature['shape']} of meta/info.json wants {size} for each"
            )
        return column.to_numpy().reshape(info.frames, size)


def _largest(where: str, column: str, statistics: dict[str, Any]) -> int:
    """The largest class of a column by its statistics. Raises DataError."""
    of_column = statistics.get(column)
    most = of_column.get("max") if isinstance(of_column, dict) else None
    found = most[0] if isinstance(most, list) and len(most) == 1 else most
    if not isinstance(found, (int, float)) or not 0 <= found < 1e6 or found != int(found):
        raise DataError(
            f"{where}: {column}.max: expected the largest class, got {most!r:.60}; info.json "
            "names no classes, so the number of actions is unknown"
        )
    return int(found)


def _kind(kind: pa.DataType) -> str | None:
    """As `lerobot_meta.kind_of`, of a column."""
    tests = (
        ("int", pa.types.is_integer),
        ("float", pa.types.is_floating),
        ("bool", pa.types.is_boolean),
    )
    return next((name for name, test in tests if test(kind)), None)


def _cut_short(file: Path, name: str, row: lerobot_meta.Row, frames: int) -> str:
    return (
        f"{file}: {name} should be {row.length} frames from {row.start:.3f} s on; the file holds "
        f"{frames} frames (truncated?)"
    )


register_source(
    LeRobotSource.kind,
    # Without info.json, too: its films joined are no set of videos, and the error names what lacks.
    detect=lambda path: any(
        (path / "meta" / name).exists() for name in ("info.json", "episodes", "episodes.jsonl")
    ),
    open=LeRobotSource,
)
