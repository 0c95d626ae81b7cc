"""Any damage to meta/ or data/ of a LeRobot set gives the same episodes or an error that names a file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colaworld.data.errors import DataError
from colaworld.data.sources.lerobot import LeRobotSource
from colaworld.data.sources.lerobot_writer import CAMERA

INFO, STATS = "meta/info.json", "meta/stats.json"
EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"
LENGTHS = [11, 23, 17, 29]
# What the format cannot tell (see lerobot_meta.py): names and what is optional.
FREE = {"class_names", "unit", "names"}
WRONG: list[Any] = [
    None, True, "", "x", "../x", "/etc/passwd", "{", "{0}", "{video_key.__class__}", "v2.1", "int64",
    "float32", "video", 0, -1, 1, 0.5, 2, 7, 10**12, 10**400, 1e308, float("nan"), [], [2], ["a"], {}, {"a": 1},
]  # fmt: skip


def result(root: Path) -> Any:
    """All that a reader gets, but for pictures: which frames of which film stand in for them."""
    source = LeRobotSource(root)
    if source.broken:  # told, and counted against max_broken_share
        raise DataError(source.broken[0].reason)
    spec = source.action_spec
    kind = spec and (spec.column, spec.kind, spec.size)
    return kind, [
        (
            e.name, e.frames, e.fps, e.height, e.width, source.identity(e.index), source._offset(e.index),
            source.times(e.index).tobytes(),
            None if (a := source.actions(e.index)) is None else (a.dtype, a.shape, a.tobytes()),
        )
        for e in source.episodes
    ]  # fmt: skip


def outcome(root: Path, wanted: Any) -> str:
    """ "same", "named", or what went wrong; other errors than DataError are raised."""
    try:
        got = result(root)
    except DataError as error:
        return "named" if str(root) in str(error) else f"names no file: {error}"
    return "same" if got == wanted else "another result"


def keys(value: Any, path: tuple = ()) -> Iterator[tuple]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from keys(inner, (*path, key))


def mutate_json(value: Any, rng: random.Random) -> tuple[Any, str]:
    made = copy.deepcopy(value)
    *above, last = path = rng.choice([p for p in keys(value) if not FREE & set(p)])
    place = made
    for key in above:
        place = place[key]
    if rng.random() < 0.2 and path != ("features", "action"):  # without it: a set without actions
        del place[last]
        return made, f"{path} deleted"
    place[last] = rng.choice(WRONG)
    return made, f"{path} = {place[last]!r:.40}"


def mutate_table(table: pa.Table, rng: random.Random, names: list[str]) -> tuple[pa.Table, str]:
    """A cell, a column or a row."""
    name, row = rng.choice(names), rng.randrange(len(table))
    column = table[name]
    at = table.column_names.index(name)
    kind = rng.choice(["cell"] * 6 + ["drop", "cast", "pairs", "rename", "row gone", "row twice"])
    told = f"{name}[{row}]: {kind}"
    if kind == "row gone":
        return pa.concat_tables([table.slice(0, row), table.slice(row + 1)]), told
    if kind == "row twice":
        return pa.concat_tables([table, table.slice(row, 1)]), told
    if kind == "drop":
        return table.drop_columns([name]), told
    if kind == "rename":
        return table.rename_columns([f"{n}x" if n == name else n for n in table.column_names]), told
    if kind == "pairs":
        return table.set_column(at, name, pa.array([[v, v] for v in column.to_pylist()])), told
    if kind == "cast":
        to = rng.choice([pa.float32(), pa.string()])
        return table.set_column(at, name, column.cast(to)), f"{told} to {to}"
    values = column.to_pylist()
    values[row] = rng.choice(
        [None, -1, 0, 1, values[row - 1], values[row] + 1, 10**12, float("nan")]
    )
    if isinstance(values[row], float) and pa.types.is_integer(column.type):
        values = [v if v is None else float(v) for v in values]
    return table.set_column(at, name, pa.array(values)), f"{told} = {values[row]}"


def flip(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One bit; in two of three cases within the footer, which no checksum guards."""
    made = bytearray(content)
    footer = len(made) - 8 - int.from_bytes(made[-8:-4], "little")
    at, bit = rng.randrange(rng.choice([0, footer, footer]), len(made)), rng.randrange(8)
    made[at] ^= 1 << bit
    return bytes(made), f"bit {bit} of byte {at}"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, scene_set) -> Path:
    return scene_set(tmp_path_factory.mktemp("mutated") / "set", LENGTHS)


def tried(root: Path, name: str, count: int, change: Callable[[Path, random.Random], str]) -> None:
    """`count` changes of one file, each undone. Every one must be the same or named."""
    wanted, file = result(root), root / name
    before = file.read_bytes()
    seen: dict[str, int] = {}
    wrong = []
    for seed in range(count):
        told = change(file, random.Random(f"{name} {seed}"))
        try:
            happened = outcome(root, wanted)
        except Exception as error:
            happened = f"{type(error).__name__}: {error}"
        finally:
            file.write_bytes(before)
        seen[happened] = seen.get(happened, 0) + 1
        if happened not in ("same", "named"):
            wrong.append(f"{told}: {happened}")
    assert not wrong, "\n".join(wrong)
    assert seen["named"] > count // 4, seen  # else the changes are not what they should be


@pytest.fixture(scope="module")
def pristine_v21(tmp_path_factory, scene_set, as_v21) -> Path:
    root = tmp_path_factory.mktemp("mutated_v21")
    return as_v21(scene_set(root / "v3", LENGTHS, video_mb=1e-6), root / "set")


@pytest.mark.parametrize(
    ("layout", "name", "count"),
    [("", INFO, 250), ("_v21", INFO, 60), ("_v21", "meta/episodes.jsonl", 60)],
)
def test_json(request, layout, name, count) -> None:
    root = request.getfixturevalue(f"pristine{layout}")
    lines = name.endswith("jsonl")
    text = (root / name).read_text()
    value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    for line in value if lines else ():
        del line["tasks"]  # not read

    def change(file: Path, rng: random.Random) -> str:
        made, told = mutate_json(value, rng)
        file.write_text(
            "".join(map("{}\n".format, map(json.dumps, made))) if lines else json.dumps(made)
        )
        return told

    tried(root, name, count, change)


EPISODE_COLUMNS = ["episode_index", "length", "data/chunk_index", "data/file_index"]
EPISODE_COLUMNS += [f"dataset_{end}_index" for end in ("from", "to")]
EPISODE_COLUMNS += [
    f"videos/{CAMERA}/{n}" for n in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
]


@pytest.mark.parametrize(
    ("name", "count", "columns"),
    [
        (EPISODES, 250, EPISODE_COLUMNS),
        (DATA, 100, ["action", "frame_index", "episode_index"]),
    ],
)
def test_tables(pristine, name, count, columns) -> None:
    table = pq.read_table(pristine / name)

    def change(file: Path, rng: random.Random) -> str:
        while True:
            made, told = mutate_table(table, rng, columns)
            # another class within range is data, not damage; a checksum guards it (see below)
            if name != DATA or not told.startswith("action") or "cell" not in told:
                break
        pq.write_table(made, file)
        return told

    tried(pristine, name, count, change)


@pytest.mark.parametrize("name", [EPISODES, DATA])
def test_bits(pristine, name) -> None:
    def change(file: Path, rng: random.Random) -> str:
        made, told = flip(file.read_bytes(), rng)
        file.write_bytes(made)
        return told

    tried(pristine, name, 150, change)
