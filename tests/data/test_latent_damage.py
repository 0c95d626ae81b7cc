"""A latent cache that is not as it was written: the same latents or an error that names the file,
never other latents; and encoding again makes it whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from colaworld.data import latent_cache
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.latent_cache import LatentCache
from colaworld.data.latent_writer import Written, write_latents
from colaworld.data.loader import ClipLoader
from colaworld.files import FolderLock, seal

LENGTHS = [9, 7, 8]


def tokenize(frames: torch.Tensor) -> torch.Tensor:
    """[n, T, 3, 20, 24] -> [n, 3, T, 5, 6]."""
    return F.avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, frames.shape[:2]).transpose(1, 2)


@pytest.fixture
def clips(tmp_path, scene_set) -> ClipSet:
    path = scene_set(tmp_path / "set", LENGTHS)
    return ClipSet(DataConfig(path=path, frames_per_clip=5, split="all", workers=0))


def write(root, clips, **options) -> Written:
    options = {"tokenizer": "toy", "temporal_stride": 1, "shard_mb": 0.003, **options}
    return write_latents(root, clips, tokenize, **options)


def read(root, clips) -> torch.Tensor:
    """All clips, [n, 3, 5, 5, 6]."""
    cache = LatentCache.open(root, clips, tokenizer="toy")
    places = [(p.episode, s) for p in clips.segments for s in range(p.first, p.first + p.starts)]
    return torch.stack([cache.clip(*place) for place in places])


def files(root) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(root.iterdir())}


def test_whatever_changes_is_noticed_and_made_whole(clips, tmp_path, damaged) -> None:
    root, draw = tmp_path / "cache", random.Random(0)
    assert write(root, clips).shards > 2
    whole, latents, outcomes = files(root), read(root, clips), {"same": 0, "told": 0}
    for number in range(240):
        name = draw.choice(["key.json", "index.parquet", *whole])
        (root / name).write_bytes(damaged(whole[name], draw))
        try:
            same = torch.equal(read(root, clips), latents)
            assert same, f"mutation {number} of {name} gave other latents"
            outcomes["same"] += 1
        except DataError as error:
            assert name in str(error) or "something else" in str(error), (number, name)
            outcomes["told"] += 1
        if number % 8 == 0 and name != "key.json":
            write(root, clips)
            assert torch.equal(read(root, clips), latents), f"{number} of {name} was not made whole"
            assert name == "index.parquet" or files(root) == whole
        (root / name).write_bytes(whole[name])
    assert outcomes["told"] > 200


def test_a_damaged_shard_is_not_trained_on_and_is_encoded_again(clips, tmp_path, caplog) -> None:
    write(tmp_path / "cache", clips)
    whole = files(tmp_path / "cache")
    for name in ("shard_000000.safetensors", "shard_000002.safetensors"):
        data = bytearray(whole[name])
        data[-300] ^= 1
        (tmp_path / "cache" / name).write_bytes(data)
    for workers in (0, 1):
        cache = LatentCache.open(tmp_path / "cache", clips, tokenizer="toy")
        config = replace(clips.config, workers=workers)
        loader = ClipLoader(config, batch_size=4, seed=0, latents=cache)
        with pytest.raises(DataError, match=r"shard_00000[02]\S+: damaged: .*sha256; encode again"):
            for _ in range(9):
                next(loader)
        loader.close()
    assert write(tmp_path / "cache", clips).shards == 2
    assert files(tmp_path / "cache") == whole
    for name in ("shard_000000", "shard_000002"):
        assert f"{name}.safetensors is damaged, and encoded again" in caplog.text


def test_a_shard_in_the_place_of_another_is_encoded_again(clips, tmp_path) -> None:
    root = tmp_path / "cache"
    write(root, clips)
    whole, latents = files(root), read(root, clips)
    one, two = "shard_000000.safetensors", "shard_000001.safetensors"
    for kept in ({"index.parquet"}, set()):
        (root / one).write_bytes(whole[two])
        (root / two).write_bytes(whole[one])
        for name in {"index.parquet"} - kept:
            (root / name).unlink()
        assert write(root, clips).shards == 2
        assert files(root) == whole and torch.equal(read(root, clips), latents)


def test_a_shard_damaged_before_the_index_is_encoded_again(clips, tmp_path) -> None:
    write(tmp_path / "cache", clips)
    whole = files(tmp_path / "cache")
    (tmp_path / "cache" / "index.parquet").unlink()
    data = bytearray(whole["shard_000001.safetensors"])
    data[-1] ^= 1
    (tmp_path / "cache" / "shard_000001.safetensors").write_bytes(data)
    assert write(tmp_path / "cache", clips).shards == 1
    assert files(tmp_path / "cache") == whole


def test_each_shard_is_hashed_once(clips, tmp_path, monkeypatch, caplog) -> None:
    shards = write(tmp_path / "cache", clips).shards
    hashed, real = [], latent_cache.check_sha256
    monkeypatch.setattr(
        latent_cache, "check_sha256", lambda *a, **k: (hashed.append(a[0]), real(*a, **k))
    )
    cache = LatentCache.open(tmp_path / "cache", clips, tokenizer="toy")
    for _ in range(3):
        for start in range(5):
            cache.clip(0, start), cache.clip(2, start - start % 3)
    assert len(hashed) == len(set(hashed)) <= shards
    monkeypatch.setenv("COLAWORLD_VERIFY", "0")
    read(tmp_path / "cache", clips)
    assert len(hashed) <= shards and "without comparing sums, as asked" in caplog.text


def age(root) -> None:
    """As an earlier release wrote it: without any hash."""
    header = json.loads((root / "key.json").read_text())
    del header["sha256"]
    (root / "key.json").write_text(json.dumps(header))
    shards = sorted(root.glob("shard_*"))
    for path in shards:
        tensors = load_file(path)
        save_file(tensors, path, metadata={"key": latent_cache.key_hash(header)})
    table = pq.read_table(root / "index.parquet")
    sizes = json.dumps([path.stat().st_size for path in shards])
    pq.write_table(table.replace_schema_metadata({"shard_bytes": sizes}), root / "index.parquet")


def test_a_cache_of_an_earlier_release_is_read_and_used(clips, tmp_path, caplog) -> None:
    root = tmp_path / "cache"
    write(root, clips)
    latents = read(root, clips)
    assert not caplog.records
    age(root)
    assert torch.equal(read(root, clips), latents)
    assert caplog.text.count("from before sums were recorded") == 1
    assert write(root, clips) == Written(0, 0, 0, True)
    assert torch.equal(read(root, clips), latents)


def test_values_that_are_not_finite_are_not_read(clips, tmp_path) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        root = tmp_path / dtype
        write(root, clips, dtype=dtype)
        age(root)
        read(root, clips)
        path = root / "shard_000001.safetensors"
        tensors = load_file(path)
        tensors["latents"][1, 0, 0, 0] = float("inf") if dtype == "float16" else float("nan")
        key = latent_cache.key_hash(json.loads((root / "key.json").read_text()))
        save_file(tensors, path, metadata={"key": key})
        with pytest.raises(
            DataError, match=r"shard_000001\S+: damaged: it holds values that are not"
        ):
            read(root, clips)


@pytest.mark.parametrize(
    ("column", "line", "value"),
    [("row", 0, -1), ("row", 0, 10**6), ("shard", 0, 99), ("count", 1, 0), ("first", 0, 3)],
)
def test_an_index_that_cannot_be_is_refused_without_a_hash(
    clips, tmp_path, column, line, value
) -> None:
    write(tmp_path, clips)
    age(tmp_path)
    table = pq.read_table(tmp_path / "index.parquet")
    values = table[column].to_numpy().copy()
    values[line] = value
    at = table.column_names.index(column)
    changed = table.set_column(at, column, [values]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, tmp_path / "index.parquet")
    with pytest.raises(DataError, match=r"(index\.parquet|shard_\d+\.safetensors): damaged"):
        read(tmp_path, clips)


def test_shards_that_changed_places_are_noticed_without_a_hash(clips, tmp_path) -> None:
    write(tmp_path, clips)
    age(tmp_path)
    table = pq.read_table(tmp_path / "index.parquet")
    turned = np.roll(table["shard"].to_numpy(), 1)
    at = table.column_names.index("shard")
    changed = table.set_column(at, "shard", [turned]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, tmp_path / "index.parquet")
    with pytest.raises(DataError, match=r"index\.parquet tells of other frames"):
        read(tmp_path, clips)


@pytest.mark.parametrize(
    "change",
    [
        {"every": 0},
        {"every": -1},
        {"every": 2},
        {"dtype": "int8"},
        {"dtype": None},
        {"layout": "clips"},
        {"shape": []},
        {"shape": "357"},
        {"shape": [3, 5, "6"]},
        {"shards": 0},
        {"entries_per_shard": 0.5},
        {"frames_per_clip": None},
        {"key": {}},
        {"key": None},
    ],
)
def test_a_key_that_cannot_be_is_refused_by_its_field(clips, tmp_path, change) -> None:
    write(tmp_path, clips)
    header = json.loads((tmp_path / "key.json").read_text())
    del header["sha256"]
    for text in (json.dumps(header | change), json.dumps(seal(header | change))):
        (tmp_path / "key.json").write_text(text)
        with pytest.raises(DataError, match=r"key\.json: not the key of a latent cache"):
            LatentCache.open(tmp_path, clips, tokenizer="toy")
        with pytest.raises(DataError, match=r"key\.json: not the key of a latent cache"):
            write(tmp_path, clips)
    (tmp_path / "key.json").write_text(json.dumps(seal(header | {"shards": 77})))
    with pytest.raises(DataError, match=r"key\.json: damaged: 77 shards"):
        write(tmp_path, clips)


def test_a_second_call_is_refused_while_one_encodes(clips, tmp_path) -> None:
    root = tmp_path / "cache"
    write(root, clips)
    program = (
        "import sys, pathlib; from colaworld.files import FolderLock; "
        "held = FolderLock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        for ranks in (1, 2):
            with pytest.raises(DataError, match="another process encodes into this folder"):
                write(root, clips, world_size=ranks)
    finally:
        other.kill()
        other.wait()
    (root / ".writing1_shard_000001.safetensors").write_bytes(b"left by a killed process")
    held = FolderLock(root, shared=True)  # ranks work beside each other
    write(root, clips, rank=1, world_size=2)
    held.close()
    write(root, clips)
    assert not list(root.glob(".*"))
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in root.iterdir())


def test_a_pipe_in_place_of_a_part_is_refused(clips, tmp_path) -> None:
    for name in ("key.json", "index.parquet", "shard_000001.safetensors"):
        root = tmp_path / name
        write(root, clips)
        latents = read(root, clips)
        (root / name).unlink()
        os.mkfifo(root / name)
        with pytest.raises(DataError, match=r"not the key|not complete|shard_000001\S+: damaged"):
            read(root, clips)
        if name != "key.json":
            write(root, clips)
            assert torch.equal(read(root, clips), latents)
        shutil.rmtree(root)


def test_a_damaged_index_is_never_read_by_threads(clips, tmp_path, monkeypatch) -> None:
    """On a damaged footer `pyarrow.parquet.read_table` can wait for ever."""
    write(tmp_path, clips)
    monkeypatch.delattr(pq, "read_table")
    latents, index = read(tmp_path, clips), tmp_path / "index.parquet"
    whole = index.read_bytes()
    for at in range(len(whole) - 400, len(whole)):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert torch.equal(read(tmp_path, clips), latents), at
        except DataError as error:
            assert "index.parquet: damaged" in str(error), at
