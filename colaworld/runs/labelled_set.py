"""From labels of episodes to a LeRobot v3 set that has them.

    a v3 set          keeps everything; its tables get columns (lerobot_columns.py)
    anything else     first becomes a v3 set: a film per episode, taken over or encoded, recorded actions

Not here: the labels (label.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.data.clips import ClipSet
from colaworld.data.config import EncodingConfig
from colaworld.data.errors import DataError
from colaworld.data.labels import CODE, COLUMNS, PROVENANCE
from colaworld.data.sources.films import as_it_is, encode_episode, picture_statistics
from colaworld.data.sources.lerobot import LeRobotSource
from colaworld.data.sources.lerobot_columns import first_rows, put_in_place, write_columns
from colaworld.data.sources.lerobot_statistics import Statistics
from colaworld.data.sources.lerobot_writer import LeRobotWriter
from colaworld.data.sources.source import without_actions
from colaworld.files import seal
from colaworld.runs.label_work import Work

_NAMED = 4096  # entries of a codebook that info.json lists as classes


def is_v3(clips: ClipSet) -> bool:
    """Whether a set can get columns as it is."""
    return isinstance(clips.source, LeRobotSource) and clips.source.layout == "v3"


def left_out(clips: ClipSet) -> Iterator[str]:
    """What of a set does not come along into a new v3 one, a line each; nothing of a v3 set."""
    if is_v3(clips):
        return
    about, source = clips.source.describe(), clips.source
    if about.uneven:
        yield (
            f"{len(about.uneven)} films are not evenly spaced in time (first: {about.uneven[0]}): the "
            "labelled set has their frames, evenly spaced"
        )
    if (lacking := without_actions(source, source.episodes)) is not None:
        column = source.action_spec and source.action_spec.column
        yield f"actions left out: {lacking.name} has no column {column!r}"
    if isinstance(source, LeRobotSource):
        kept = source.action_spec and source.action_spec.column
        indices = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
        lost = [name for name in about.columns if name != kept and name not in indices]
        lost += [name for name in about.cameras if name != about.camera]
        if lost:
            yield f"columns and cameras left out: {', '.join(lost)} (a v3 set keeps all of them)"


def kept_actions(clips: ClipSet) -> ActionSpec | None:
    """What recorded actions come along into a new set: those that every episode has."""
    source = clips.source
    return None if without_actions(source, source.episodes) else source.action_spec


def check_counted(clips: ClipSet) -> None:
    """DataError where a v3 set does not say how many rows it has."""
    if isinstance(clips.source, LeRobotSource) and "total_frames" not in clips.source.info:
        raise DataError(
            f"{clips.config.path}/meta/info.json: total_frames: missing; expected a count"
        )


def check_alike(clips: ClipSet, episodes: Sequence[int]) -> None:
    """DataError where episodes have no place in one LeRobot set: it has one size and one rate."""
    chosen = [clips.source.episodes[e] for e in episodes]
    first = chosen[0]
    for other in chosen:
        if (other.height, other.width) != (first.height, first.width):
            raise DataError(
                f"{clips.config.path}: a LeRobot set has frames of one size: {first.name} has "
                f"{first.height}x{first.width}, {other.name} has {other.height}x{other.width}; label "
                "each size in a call of its own"
            )
        if abs(other.fps / first.fps - 1) > 2e-4:
            raise DataError(
                f"{clips.config.path}: a LeRobot set has one rate: {first.name} has {first.fps:.5g} "
                f"frames/s, {other.name} has {other.fps:.5g}; label each rate in a call of its own"
            )


def prepare_episode(
    clips: ClipSet, episode: int, work: Work, *, fps: float, step: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """What a new set needs of an episode: its film, if it has to be encoded, and these arrays.

    Raises BrokenFileError where frames cannot be read, DataError where actions do not fit them.
    """
    source = clips.source
    made = {}
    if kept_actions(clips) is not None:
        actions = source.actions(episode)
        assert actions is not None
        made["action"] = actions
    if not as_it_is(source, episode, fps) and not work.film(episode).exists():
        path = work.film(episode)
        encode_episode(source, episode, path, fps=fps, encoding=EncodingConfig(), step=step)
    pictures = picture_statistics(source, episode)
    for name in ("low", "high", "mean", "m2"):
        made[f"picture.{name}"] = getattr(pictures, name)
    made["picture.count"] = np.array([pictures.count])
    return made


def write_set(
    clips: ClipSet,
    episodes: Sequence[int],
    work: Work,
    *,
    codebook_size: int | None,
    names: Mapping[str, Sequence[str]],
    about: Mapping[str, Mapping[str, Any]],
    provenance: Mapping[str, Any],
    fps: float,
    in_place: bool,
    link: bool,
) -> None:
    """The labelled set at `work.out`, of the parts of `episodes`; `names` and `about` of columns as
    `write_columns` takes them; `fps` as its films were prepared.

    Raises DataError where it cannot be written; nothing is there under its name then.
    """
    base = Path(str(clips.config.path))
    if isinstance(clips.source, LeRobotSource) and is_v3(clips):
        rows = first_rows(clips.source)
        firsts = [rows[e] for e in episodes]
        total = int(clips.source.info["total_frames"])
    else:
        base = _as_v3(clips, episodes, work, fps, link)
        lengths = [clips.source.episodes[e].frames for e in episodes]
        firsts = np.cumsum([0, *lengths[:-1]]).tolist()
        total = sum(lengths)
    columns = _columns(work, dict(zip(firsts, episodes, strict=True)), total)
    names = dict(names)
    if CODE in columns and columns[CODE].shape[1] == 1:
        columns[CODE] = columns[CODE][:, 0]  # a class, which readers know as such
        if codebook_size is not None and codebook_size <= _NAMED:
            names[CODE] = [str(i) for i in range(codebook_size)]
    if in_place:
        shutil.rmtree(work.new, ignore_errors=True)
    write_columns(
        base,
        work.new if in_place else work.out,
        columns,
        names=names,
        about=about,
        videos="link" if link else "copy",
        drop=COLUMNS,
        files={PROVENANCE: json.dumps(seal(provenance), indent=1) + "\n"},
    )
    if in_place:
        put_in_place(work.new, base, COLUMNS)


def _as_v3(clips: ClipSet, episodes: Sequence[int], work: Work, fps: float, link: bool) -> Path:
    """The set without labels, in the work folder."""
    source, path = clips.source, work.root / "set"
    shutil.rmtree(path, ignore_errors=True)
    first = source.episodes[episodes[0]]
    with LeRobotWriter(
        path,
        fps=fps,
        height=first.height,
        width=first.width,
        action=kept_actions(clips),
        robot_type="unknown",
        made_by={"made_by": "colaworld label", "source": source.describe().format},
    ) as writer:
        for episode in episodes:
            part, info = work.load(episode), source.episodes[episode]
            values = [part[f"picture.{name}"] for name in ("low", "high", "mean", "m2")]
            pictures = Statistics(*values, int(part["picture.count"][0]))
            pictures.shape, pictures.frames = (3, 1, 1), info.frames
            encoded = work.film(episode)
            film, shared = (encoded, True) if encoded.exists() else (info.path, link)
            writer.add_film(film, info.frames, pictures, part.get("action"), link=shared)
        return writer.finish()


def _columns(work: Work, episodes: Mapping[int, int], total: int) -> dict[str, np.ndarray]:
    """Values of all rows, kept on the disk; rows of no labelled episode are zeros.

    `episodes`: by the row they begin at.
    """
    folder, made = work.root / "columns", {}
    folder.mkdir(exist_ok=True)
    some = work.load(next(iter(episodes.values())))
    for name in COLUMNS:
        if name not in some:
            continue
        dtype = some[name].dtype
        width = some[name].shape[1] if some[name].ndim == 2 else 1
        done = 0
        with (folder / name).open("wb") as file:
            for first in sorted(episodes):
                _zeros(file, (first - done) * width, dtype)
                values = work.load(episodes[first])[name]
                file.write(values.tobytes())
                done = first + len(values)
            _zeros(file, (total - done) * width, dtype)
        shape = (total, width) if some[name].ndim == 2 else (total,)
        made[name] = np.memmap(folder / name, dtype, "r", shape=shape)
    return made


def _zeros(file: Any, count: int, dtype: np.dtype) -> None:
    while count > 0:
        part = min(count, 1 << 20)
        file.write(np.zeros(part, dtype).tobytes())
        count -= part
