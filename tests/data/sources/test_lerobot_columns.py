"""A set with more columns: the old one as it was, the new one whole or absent, read by anybody."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colaworld.contracts import ActionSpec
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.episode_stream import episode_stream
from colaworld.data.errors import DataError
from colaworld.data.sources import open_source
from colaworld.data.sources.lerobot_columns import first_rows, put_in_place, write_columns

LENGTHS = [60, 45, 70, 8]
TOTAL = sum(LENGTHS)
CODES = np.arange(TOTAL) % 6
VECTORS = np.random.default_rng(0).normal(size=(TOTAL, 3)).astype(np.float32)


@pytest.fixture
def old(tmp_path, scene_set) -> Path:
    return scene_set(tmp_path / "old", LENGTHS, video_mb=0.01, data_mb=0.006)


def _digest(root: Path) -> dict[str, str]:
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("videos", ["link", "copy"])
def test_new_columns_come_back_and_the_old_set_stays(old, tmp_path, videos) -> None:
    before = _digest(old)
    assert sum(name.startswith("data/") for name in before) >= 2
    new = write_columns(
        old,
        tmp_path / "new",
        {"latent_action": CODES, "latent": VECTORS},
        names={"latent_action": [f"code {i}" for i in range(6)], "latent": ["x", "y", "z"]},
        videos=videos,
    )
    assert _digest(old) == before and sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]
    after = _digest(new)
    assert before.keys() == after.keys()
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"data", "meta"}
    shared = [os.path.samefile(old / n, new / n) for n in before if n.startswith("videos/")]
    assert set(shared) == {videos == "link"}

    labels = open_source(new, action_column="latent_action")
    assert labels.action_spec == ActionSpec(
        "latent_action", "discrete", 6, tuple(f"code {i}" for i in range(6))
    )
    vectors = open_source(new, action_column="latent")
    assert vectors.action_spec == ActionSpec("latent", "continuous", 3, ("x", "y", "z"))
    edges = np.cumsum([0, *LENGTHS])
    original = open_source(old)
    for i, (first, stop) in enumerate(pairwise(edges)):
        np.testing.assert_array_equal(labels.actions(i), CODES[first:stop])
        np.testing.assert_array_equal(vectors.actions(i), VECTORS[first:stop])
        np.testing.assert_array_equal(open_source(new).actions(i), original.actions(i))
        np.testing.assert_array_equal(labels.read(i, [0, 7]), original.read(i, [0, 7]))


def test_a_loader_takes_them_as_actions(old, tmp_path) -> None:
    new = write_columns(old, tmp_path / "new", {"latent": VECTORS})
    config = DataConfig(path=new, frames_per_clip=4, split="all", action_column="latent")
    np.testing.assert_array_equal(ClipSet(config).clip_actions(1, 5), VECTORS[65:68])


def test_labels_made_from_a_stream_land_on_their_frames(old, tmp_path) -> None:
    """What the room's README shows, with a label that can be known from two frames."""
    clips = ClipSet(DataConfig(path=old, split="all", frames_per_clip=4))
    offset = np.cumsum([0, *(e.frames for e in clips.source.episodes)])
    made = np.zeros(offset[-1], np.float32)
    for w in episode_stream(clips, window=16):
        frames = w.frames.float()
        change = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
        made[offset[w.episode] + w.index[:-1].numpy()] = change
    new = open_source(write_columns(old, tmp_path / "new", {"c": made}), action_column="c")
    for i, length in enumerate(LENGTHS):
        frames = new.read(i, range(length)).astype(np.float32)
        wanted = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
        np.testing.assert_allclose(new.actions(i)[:-1, 0], wanted, rtol=1e-5)


def test_meta_describes_them(old, tmp_path) -> None:
    columns = {"code": CODES, "latent": VECTORS, "first": CODES == 0, "pair": VECTORS[:, :2] > 0}
    new = write_columns(old, tmp_path / "new", columns)
    info = json.loads((new / "meta/info.json").read_text())
    told = {name: (f["dtype"], f["shape"]) for name, f in info["features"].items()}
    assert told["code"] == ("int64", [1]) and told["latent"] == ("float32", [3])
    assert told["first"] == ("bool", [1]) and told["pair"] == ("bool", [2])
    before = json.loads((old / "meta/info.json").read_text())
    assert {k: v for k, v in info.items() if k != "features"} == {
        k: v for k, v in before.items() if k != "features"
    }
    stats = json.loads((new / "meta/stats.json").read_text())
    np.testing.assert_allclose(stats["latent"]["mean"], VECTORS.astype(float).mean(0))
    np.testing.assert_allclose(stats["latent"]["std"], VECTORS.astype(float).std(0))
    assert stats["code"]["max"] == [5] and stats["code"]["count"] == [TOTAL]
    assert stats["action"] == json.loads((old / "meta/stats.json").read_text())["action"]
    rows = pq.read_table(new / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    np.testing.assert_allclose(rows[3]["stats/latent/max"], VECTORS[-8:].max(0))
    assert rows[3]["stats/code/count"] == [8] and rows[3]["stats/action/count"] == [8]


def test_parquet_alone_reads_them_in_the_order_of_frames(old, tmp_path) -> None:
    new = write_columns(old, tmp_path / "new", {"code": CODES, "latent": VECTORS})
    table = pq.read_table(new / "data")
    assert table["code"].to_numpy()[np.argsort(table["index"].to_numpy())].tolist() == list(CODES)
    assert str(table.schema.field("latent").type) == "fixed_size_list<element: float>[3]"


def test_pandas_and_datasets_read_them(old, tmp_path) -> None:
    new = write_columns(old, tmp_path / "new", {"code": CODES, "latent": VECTORS})
    files = sorted(map(str, (new / "data").rglob("*.parquet")))
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.concat([pandas.read_parquet(file) for file in files])
    np.testing.assert_array_equal(np.stack(frame["latent"]), VECTORS)
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows["code"][:8] == CODES[:8].tolist() and len(rows) == TOTAL


def test_features_that_hugging_face_left_in_the_files_grow(old, tmp_path) -> None:
    for file in (old / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        features = {"action": {"dtype": "int64", "_type": "Value"}}
        about = json.dumps({"info": {"features": features}})
        pq.write_table(table.replace_schema_metadata({"huggingface": about}), file)
    new = write_columns(old, tmp_path / "new", {"latent": VECTORS})
    for file in (new / "data").rglob("*.parquet"):
        about = json.loads(pq.read_schema(file).metadata[b"huggingface"])
        assert list(about["info"]["features"]) == ["action", "latent"]
        assert about["info"]["features"]["latent"]["length"] == 3


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"action": CODES}, {}, r"old: has a column 'action' already"),
        ({"a/b": CODES}, {}, r"'a/b'.*without '/'"),
        ({"c": CODES[1:]}, {}, r"'c': expected \[183\] or \[183, D\].*got \[182\]"),
        ({"c": VECTORS[:, :, None]}, {}, r"'c': expected .*got \[183, 3, 1\]"),
        ({"c": CODES.astype(str)}, {}, r"'c': expected integers, booleans or floats"),
        ({"c": np.where(VECTORS[9] == VECTORS, np.nan, VECTORS)}, {}, r"'c': row 9 is not finite"),
        ({"c": CODES}, {"names": {"c": ["a", "b"]}}, r"'c': 2 classes are named, found 0\.\.5"),
        ({"c": VECTORS}, {"names": {"c": ["a"]}}, r"'c': expected 3 names, got 1"),
        ({"c": CODES}, {"names": {"d": ["a"]}}, r"not written: \['d'\]"),
    ],
)
def test_columns_that_do_not_fit(old, tmp_path, columns, options, message) -> None:
    with pytest.raises(DataError, match=message):
        write_columns(old, tmp_path / "new", columns, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_nothing_is_left_of_what_failed(old, tmp_path, monkeypatch) -> None:
    file = min((old / "data").rglob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    with pytest.raises(DataError, match=r"counts 183 frames, data/ holds 182"):
        write_columns(old, tmp_path / "new", {"c": CODES})
    pq.write_table(
        table.set_column(table.column_names.index("index"), "index", [[7] * len(table)]), file
    )
    with pytest.raises(DataError, match=r"file-000\.parquet: column 'index'"):
        write_columns(old, tmp_path / "new", {"c": CODES})
    at = table.column_names.index("index")
    for values, message in (
        ([None] + [1] * (len(table) - 1), "each of"),
        ([0.5] * len(table), "double"),
    ):
        wrong = pa.array(values) if values[0] else pa.array(values, pa.int64())
        pq.write_table(table.set_column(at, "index", wrong), file)
        with pytest.raises(DataError, match=rf"file-000\.parquet: column 'index' .*{message}"):
            write_columns(old, tmp_path / "new", {"c": CODES})
    pq.write_table(table, file)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(DataError, match=r"new: cannot be written: .*No space left"):
            write_columns(old, tmp_path / "new", {"c": CODES})
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    (tmp_path / "new").mkdir()
    (tmp_path / "new/precious.txt").write_text("x")
    for out, message in ((tmp_path / "new", "not empty"), (old / "below", "lies inside")):
        with pytest.raises(DataError, match=message):
            write_columns(old, out, {"c": CODES})
    assert (tmp_path / "new/precious.txt").exists() and not (old / "below").exists()


def test_tables_without_rows(old, tmp_path) -> None:
    """One of episodes stays as it is; one of frames that episodes are said to be in is refused."""
    folder = old / "meta/episodes/chunk-000"
    empty = pq.read_table(folder / "file-000.parquet").slice(0, 0)
    pq.write_table(empty, folder / "file-001.parquet")
    new = write_columns(old, tmp_path / "new", {"c": CODES})
    assert (new / "meta/episodes/chunk-000/file-001.parquet").samefile(folder / "file-001.parquet")
    assert len(open_source(new, action_column="c").actions(3)) == LENGTHS[3]
    file = max((old / "data").rglob("*.parquet"))
    with pq.ParquetWriter(file, pq.read_schema(file)):
        pass  # no row group at all
    with pytest.raises(DataError, match=r"meta/info\.json counts 183 frames, data/ holds \d+$"):
        write_columns(old, tmp_path / "newer", {"c": CODES})
    assert not (tmp_path / "newer").exists()


def test_nothing_from_outside_the_old_set_is_shared(old, tmp_path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("x")
    for name, place, message in (
        ("notes", "../secret/key", "leads out of the set's folder"),
        ("more", "../secret", "leads out of the set's folder"),
        ("loop", ".", "is no regular file"),
    ):
        (old / name).symlink_to(place)
        with pytest.raises(DataError, match=message):
            write_columns(old, tmp_path / "new", {"c": CODES})
        (old / name).unlink()
    os.mkfifo(old / "pipe")
    with pytest.raises(DataError, match="pipe is no regular file"):
        write_columns(old, tmp_path / "new", {"c": CODES})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old", "secret"]


def test_columns_take_the_place_of_others(old, tmp_path) -> None:
    first = write_columns(old, tmp_path / "first", {"code": CODES, "latent": VECTORS})
    new = write_columns(
        first,
        tmp_path / "new",
        {"latent": VECTORS[:, :2]},
        drop=["code", "latent", "absent"],
        files={"meta/about.json": "{}"},
    )
    plain = write_columns(old, tmp_path / "plain", {"latent": VECTORS[:, :2]})
    assert _digest(new) == _digest(plain) | {"meta/about.json": hashlib.sha256(b"{}").hexdigest()}
    with pytest.raises(DataError, match="has a column 'latent' already"):
        write_columns(first, tmp_path / "x", {"latent": VECTORS})


@pytest.mark.parametrize("before", [0, 1, 3, 4, 99])
def test_put_in_place_goes_on_where_it_stopped(old, tmp_path, monkeypatch, before) -> None:
    """Whatever it had moved; on the way the set never says that it has what is moved."""
    target = write_columns(old, tmp_path / "target", {"code": CODES})
    wanted = write_columns(old, tmp_path / "wanted", {"code": CODES + 1, "latent": VECTORS})
    new = write_columns(
        target, tmp_path / "new", {"code": CODES + 1, "latent": VECTORS}, drop=["code"]
    )
    replace, left = os.replace, [before]

    def killed(source, destination):
        if str(source).startswith(str(new)):
            left[0] -= 1
            if left[0] < 0:
                raise InterruptedError
        replace(source, destination)

    monkeypatch.setattr(os, "replace", killed)
    try:
        put_in_place(new, target, ["code", "latent"])
        assert before == 99
    except InterruptedError:
        info = json.loads((target / "meta/info.json").read_text())
        assert not {"code", "latent"} & info["features"].keys()
        np.testing.assert_array_equal(open_source(target).actions(1), open_source(old).actions(1))
    left[0] = 10**6
    put_in_place(new, target, ["code", "latent"])
    assert _digest(target) == _digest(wanted)


def test_where_the_rows_of_an_episode_begin(old, tmp_path) -> None:
    assert first_rows(open_source(old)) == [0, 60, 105, 175]
    file = sorted(old.glob("data/*/*.parquet"))[0]
    table = pq.read_table(file)
    place = table.column_names.index("index")
    index = table["index"].to_numpy().copy()
    index[[3, 4]] = index[[4, 3]]
    pq.write_table(table.set_column(place, "index", pa.array(index)), file)
    with pytest.raises(DataError, match="the rows of episode 0 do not follow each other"):
        first_rows(open_source(old))
