"""The contract of a data set: measured from its rows, kept beside it, held against what it says itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colaworld.contracts import ActionSpec
from colaworld.data import action_statistics
from colaworld.data.action_statistics import (
    contract_file,
    contract_of,
    measure,
    read_contract,
    stated,
    told_wrongly,
    write_contract,
)
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.sources import open_source
from colaworld.data.sources.lerobot import LeRobotSource
from colaworld.data.sources.lerobot_writer import LeRobotWriter

LENGTHS = (7, 30, 23)
SPEC = ActionSpec("action", "continuous", 2, ("x", "y"), ("m", "rad"), "absolute", "base")


def _rows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, 2)) * [1, 30] + [5, 0]).astype(np.float32) for n in LENGTHS]


@pytest.fixture
def arm(tmp_path) -> Path:
    writer = LeRobotWriter(tmp_path / "arm", fps=10, height=16, width=16, action=SPEC)
    for rows in _rows():
        frames = np.random.default_rng(1).integers(0, 256, (len(rows), 16, 16, 3), np.uint8)
        writer.add(frames, rows)
    return writer.finish()


def _edit(file: Path, change) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_measures_every_row_of_every_episode(arm) -> None:
    made = measure(open_source(arm))
    rows = np.concatenate(_rows()).astype(np.float64)
    n = made.normaliser
    assert made.spec == SPEC and made.rate == 10.0 and n.count == 60 and n.kind == "mean_std"
    np.testing.assert_allclose(n.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(n.std, rows.std(0), rtol=1e-12)
    assert n.low == tuple(rows.min(0)) and n.high == tuple(rows.max(0))
    np.testing.assert_allclose((n.q01, n.q99), np.quantile(rows, (0.01, 0.99), axis=0))


def test_columns_are_read_again_only_where_a_file_changed(arm, monkeypatch) -> None:
    read, actions = [], LeRobotSource.actions

    def counted(self, episode):
        read.append(episode)
        return actions(self, episode)

    monkeypatch.setattr(LeRobotSource, "actions", counted)

    def contract():
        clips = ClipSet(DataConfig(path=arm, split="all", frames_per_clip=3))
        clips.require_actions()  # looks at one episode, which is kept
        read.clear()
        return contract_of(clips)

    first = contract()
    assert read == [0, 1, 2] and first == measure(open_source(arm))
    assert contract() == first and read == []
    (file,) = (arm / "data").rglob("*.parquet")
    table = pq.read_table(file)
    moved = pa.array([[2 * x for x in row] for row in table["action"].to_pylist()])
    column = table.schema.get_field_index("action")
    field = table.schema.field("action")
    pq.write_table(table.set_column(column, field, moved.cast(field.type)), file)
    assert contract().normaliser.mean == pytest.approx([2 * m for m in first.normaliser.mean])
    assert read == [0, 1, 2]
    _edit(arm / "meta/info.json", lambda v: v["features"]["action"].update(names=["p", "q"]))
    assert contract().names == ("p", "q") and read == [0, 1, 2]  # it means something else now


def test_quantiles_of_many_rows_come_from_an_even_share_of_them(arm, monkeypatch) -> None:
    monkeypatch.setattr(action_statistics, "SAMPLE", 500)
    sample = action_statistics._Sample()
    for start in range(0, 50_000, 100):
        sample.add(np.arange(start, start + 100)[:, None])
        assert sum(map(len, sample._kept)) <= 1100  # bounded
    rows = sample.rows()[:, 0]
    assert len(np.unique(rows)) == 500
    # 500 even draws of 0..49999: the mean within 4 standard errors (14434 / sqrt(500)) of the middle
    assert abs(rows.mean() - 25_000) < 4 * 14_434 / 500**0.5


def test_classes_are_counted(tmp_path, scene_set) -> None:
    source = open_source(scene_set(tmp_path / "set", [30, 12]))
    made = measure(source)
    counts = np.bincount(np.concatenate([source.actions(i) for i in (0, 1)]), minlength=5)
    assert made.normaliser.counts == tuple(counts) and made.normaliser.count == 42
    assert made.normaliser.kind == "none" and made.names == source.action_spec.names
    assert told_wrongly(source, made) == ([], [])


def test_comes_back_from_the_file_beside_the_set(arm) -> None:
    source = open_source(arm)
    assert read_contract(source) is None
    made = measure(source, scaling="quantile")
    assert write_contract(source, made) == arm / "meta/colaworld_actions.json"
    again = read_contract(open_source(arm))
    assert again == made and again.hash == made.hash
    clips = ClipSet(DataConfig(path=arm, frames_per_clip=3))
    assert contract_of(clips) == made
    strided = ClipSet(DataConfig(path=arm, frames_per_clip=3, fps=5.0))
    assert contract_of(strided) == made.every(2)
    assert list(contract_of(strided).names) == list(strided.action_spec.names)


def test_where_the_file_lies(tmp_path, arm) -> None:
    assert contract_file(arm) == arm / "meta/colaworld_actions.json"
    assert contract_file(tmp_path) == tmp_path / "colaworld_actions.json"
    (tmp_path / "robot.hdf5").touch()
    beside = tmp_path / "robot.hdf5.colaworld_actions.json"
    assert contract_file(tmp_path / "robot.hdf5") == beside


def test_a_file_of_other_rows_or_other_facts_is_refused(arm) -> None:
    source = open_source(arm)
    made = measure(source)
    file = write_contract(source, made)
    values = json.loads(file.read_text())
    values["columns"]["action"]["contract"]["units"] = ["m", "deg"]
    file.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"colaworld_actions.json: its values do not match"):
        read_contract(source)
    file.unlink()
    write_contract(source, replace(made, units=("m", "deg")))
    with pytest.raises(
        DataError, match=r"units: the data set says \('m', 'rad'\), .*\('m', 'deg'\)"
    ):
        read_contract(source)
    write_contract(source, made)
    writer = LeRobotWriter(arm, fps=10, height=16, width=16, action=SPEC, overwrite=True)
    kept = file.read_text()
    writer.add(
        np.random.default_rng(1).integers(0, 256, (9, 16, 16, 3), np.uint8), np.zeros((9, 2))
    )
    writer.finish()
    file.write_text(kept)
    with pytest.raises(
        DataError, match=r"describes episodes 3, .* the set has episodes 1.*data stats"
    ):
        read_contract(open_source(arm))


def test_a_file_of_other_numbers_is_refused(arm) -> None:
    source = open_source(arm)
    made = measure(source)
    write_contract(source, made)
    assert read_contract(open_source(arm)) == made
    (table,) = arm.glob("data/*/*.parquet")
    rows = pq.read_table(table)
    degrees = [[x, 57.3 * y] for x, y in rows["action"].to_pylist()]
    at, kind = rows.column_names.index("action"), rows["action"].type
    pq.write_table(rows.set_column(at, "action", pa.array(degrees, kind)), table)
    with pytest.raises(
        DataError, match=r"the rows of .* are not those it was measured from.*stats"
    ):
        read_contract(open_source(arm))


def test_what_a_person_says_fills_in_and_never_contradicts() -> None:
    bare = ActionSpec("action", "continuous", 2, ("motor_0", "motor_1"))
    said = {"names": ("x", "y"), "units": ("m", "m"), "mode": "relative", "frame": ""}
    assert stated(bare, said, who="me") == ActionSpec(
        "action", "continuous", 2, ("x", "y"), ("m", "m"), "relative"
    )
    with pytest.raises(DataError, match=r"mode: the data set says 'absolute', me says 'relative'"):
        stated(SPEC, {"mode": "relative"}, who="me")
    with pytest.raises(DataError, match=r"names: expected 0 or 2 names"):
        stated(bare, {"names": ("x",)}, who="me")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("std", [1.0, 0.5], r"std of y: says 0.5, the rows have 2|3[0-9.]+"),
        ("mean", [500.0, 0.0], r"mean of x: says 500, the rows have"),
        ("min", [-10.0, -100.0], r"min of x: says -10, the rows have"),
        ("count", [61], r"count: says \[61.0\], the rows are 60"),
        ("max", [1.0], r"max: says 1 numbers, there are 2 channels"),
    ],
)
def test_statistics_that_lie_are_named(arm, key, value, said) -> None:
    source = open_source(arm)
    made = measure(source)
    assert told_wrongly(source, made) == ([], [])
    _edit(arm / "meta/stats.json", lambda stats: stats["action"].update({key: value}))
    wrong, notes = told_wrongly(source, made)
    assert not notes and "meta/stats.json" in wrong[0]
    assert re.search(said, "\n".join(wrong))


def test_quantiles_that_differ_are_a_note_since_lerobot_averages_them(arm) -> None:
    source = open_source(arm)
    made = measure(source)
    exact = {"q01": list(made.normaliser.q01), "q99": list(made.normaliser.q99)}
    _edit(arm / "meta/stats.json", lambda stats: stats["action"].update(exact))
    assert told_wrongly(source, made) == ([], [])
    _edit(arm / "meta/stats.json", lambda stats: stats["action"].update(q99=[0.0, 0.0]))
    wrong, notes = told_wrongly(source, made)
    assert not wrong and [note.split(": ")[1] for note in notes] == ["q99 of x", "q99 of y"]


def test_statistics_of_the_episodes_of_v21_are_taken_together(tmp_path, scene_set, as_v21) -> None:
    old = as_v21(scene_set(tmp_path / "set", [8, 30], video_mb=1e-6), tmp_path / "v21")
    source = open_source(old)
    made = measure(source)
    file = old / "meta/episodes_stats.jsonl"
    parts = [source.actions(i).astype(float) for i in (0, 1)]

    def line(i: int, rows: np.ndarray) -> str:
        stats = {"min": rows.min(), "max": rows.max(), "mean": rows.mean(), "std": rows.std()}
        said = {"action": {k: [float(v)] for k, v in stats.items()} | {"count": [len(rows)]}}
        return json.dumps({"episode_index": i, "stats": said}) + "\n"

    file.write_text("".join(line(i, rows) for i, rows in enumerate(parts)))
    assert told_wrongly(source, made) == ([], [])
    file.write_text(line(0, parts[0]) + line(1, parts[1] + 1))
    wrong, _ = told_wrongly(source, made)
    assert len(wrong) >= 1 and "mean of channel 0" in "".join(wrong)


def test_without_actions_there_is_none(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [8, 8], actions=False)
    with pytest.raises(DataError, match="no action column 'action'"):
        measure(open_source(path))
    with pytest.raises(DataError, match="no action column 'action'"):
        contract_of(ClipSet(DataConfig(path=path, frames_per_clip=3)))
