"""LeRobot layouts v2.0 and v2.1: where they keep what v3.0 keeps in tables of many episodes.

    meta/episodes.jsonl                            a line per episode: episode_index, length, tasks
    meta/episodes_stats.jsonl                      a line per episode: its statistics; in v2.0 stats.json
    data/chunk-000/episode_000000.parquet          the rows of one episode
    videos/chunk-000/CAMERA/episode_000000.mp4     the film of one episode, from its start on

meta/info.json and what follows from the rows are checked as in v3.0, by the same code (lerobot_meta.py,
lerobot.py). Here, too: no two episodes share a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colaworld.data.errors import DataError
from colaworld.data.sources.lerobot_meta import (
    Folder,
    Key,
    Row,
    check,
    check_totals,
    is_count,
    read_json,
)

EPISODE = (
    Key("episode_index", "a number from 0 on", is_count),
    Key("length", "frames, at least 1", lambda v: is_count(v) and v > 0),
)


def read_episodes(folder: Folder, info: dict[str, Any], camera: str) -> list[Row]:
    """All episodes, by number, checked as `EPISODE` and this file's head say. Raises DataError."""
    named = folder.root / "meta" / "info.json"
    file = folder.file("meta/episodes.jsonl", str(folder.root))
    rows: dict[int, Row] = {}
    users: dict[Path, int] = {}
    for where, line in _lines(file):
        check(EPISODE, line, f"{where}: ")
        number = line["episode_index"]
        if number in rows:
            raise DataError(f"{where}: episode_index: episode {number} is there twice")
        places = []
        for template in ("data_path", "video_path"):
            name = info[template].format(
                video_key=camera,
                episode_chunk=number // info["chunks_size"],
                episode_index=number,
            )
            path = folder.file(name, f"{named}: {template}")
            if (other := users.setdefault(path, number)) != number or path in places:
                raise DataError(
                    f"{named}: {template}: episodes {other} and {number} share {path}; each has a "
                    "file of its own in this layout"
                )
            places.append(path)
        rows[number] = Row(number, line["length"], *places, start=0.0)
    if not rows:
        raise DataError(f"{file}: holds no episodes")
    check_totals(named, info, len(rows), sum(row.length for row in rows.values()), str(file))
    return [rows[number] for number in sorted(rows)]


def statistics(folder: Folder) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, {feature: {"max": ...}}) of each episode, or of the whole set (v2.0). Raises DataError."""
    file = folder.file("meta/episodes_stats.jsonl", str(folder.root))
    if not file.exists():
        whole = folder.file("meta/stats.json", str(folder.root))
        yield str(whole), read_json(whole)
        return
    for where, line in _lines(file):
        check([Key("stats", "an object", lambda v: isinstance(v, dict))], line, f"{where}: ")
        yield where, line["stats"]


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line of a JSON Lines file. Raises DataError."""
    where = str(file)
    try:
        with file.open(encoding="utf-8") as lines:
            for number, text in enumerate(lines, 1):
                where = f"{file}: line {number}"
                if not text.strip():
                    continue
                value = json.loads(text)
                if not isinstance(value, dict):
                    raise DataError(f"{where}: expected an object, got {value!r:.60}")
                yield where, value
    except FileNotFoundError:
        raise DataError(f"{file}: missing; not a LeRobot data set of this layout?") from None
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: cannot be read: {error}") from error
