"""The same films in each format: the same clips in the same order, resumed exactly, each rank its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from colaworld.cli.bench import suite
from colaworld.contracts import ClipBatch
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.loader import ClipLoader
from colaworld.data.sources import open_source

LENGTHS = [12, 9, 15, 11]
FORMATS = ["video_folder", "lerobot-v3", "lerobot-v2", "webdataset", "hdf5"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory, scene_set) -> dict[str, Path]:
    pytest.importorskip("h5py", reason="h5py is not installed")
    root = tmp_path_factory.mktemp("packed")
    return suite("packed").pack(scene_set(root / "lerobot-v3", LENGTHS, video_mb=1e-6), root)


def config_of(path: Path) -> DataConfig:
    return DataConfig(path=path, frames_per_clip=4, split="all", workers=0)


def batches(path: Path, count: int, *, actions: bool = True, **options) -> list[ClipBatch]:
    with_actions = actions and not path.name.startswith("video")
    loader = ClipLoader(config_of(path), batch_size=4, seed=3, with_actions=with_actions, **options)
    made = [next(loader) for _ in range(count)]
    loader.close()
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_films_give_the_same_clips(packed, name) -> None:
    kind = name.split("-")[0]
    assert open_source(packed[name]).kind == kind
    for got, wanted in zip(batches(packed[name], 9), batches(packed["lerobot-v3"], 9), strict=True):
        assert torch.equal(got.frames, wanted.frames)
        assert torch.equal(got.episode, wanted.episode) and torch.equal(got.start, wanted.start)
        assert torch.equal(got.fps, wanted.fps)
        if kind != "video_folder":
            assert torch.equal(got.actions, wanted.actions)


@pytest.mark.parametrize("name", ["lerobot-v2", "hdf5"])  # of films the times count, even or not
def test_a_rate_is_a_stride_where_frames_are_even(packed, name) -> None:
    made = [
        next(ClipLoader(replace(config_of(packed[which]), fps=5.0), batch_size=6, seed=1)).frames
        for which in (name, "lerobot-v3")
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize("name", FORMATS[2:])
def test_resume_gives_the_next_clip(packed, name) -> None:
    loader = ClipLoader(config_of(packed[name]), batch_size=4, seed=3)
    for _ in range(7):
        next(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    other = ClipLoader(config_of(packed[name]), batch_size=4, seed=3)
    other.load_state_dict(state)
    for _ in range(12):
        wanted, got = next(loader), next(other)
        assert torch.equal(got.frames, wanted.frames) and torch.equal(got.start, wanted.start)


@pytest.mark.parametrize("name", FORMATS[2:])
def test_ranks_share_nothing(packed, name) -> None:
    shares = []
    for rank in range(2):
        made = batches(packed[name], 6, rank=rank, world_size=2)
        shares.append({int(e) for batch in made for e in batch.episode})
    assert not shares[0] & shares[1] and shares[0] | shares[1] == {0, 1, 2, 3}


@pytest.mark.parametrize("name", FORMATS[2:])
def test_a_damaged_file_is_named(packed, tmp_path, name) -> None:
    path = shutil.copytree(packed[name], tmp_path / name)
    suffix = {"lerobot-v2": "mp4", "webdataset": "tar", "hdf5": "hdf5"}[name]
    file = sorted(path.rglob(f"*.{suffix}"))[-1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"{file}") as caught:
        ClipSet(config_of(path))
    assert "broken" in str(caught.value) or "can be read" in str(caught.value)


def test_known_frames(packed) -> None:
    """Read alone, in any order, from any format: the frames of the film."""
    wanted = open_source(packed["lerobot-v3"])
    for name in FORMATS:
        source = open_source(packed[name])
        for episode, length in enumerate(LENGTHS):
            asked = [length - 1, 2, 0, 2]
            frames = source.read(episode, asked)
            np.testing.assert_array_equal(frames, wanted.read(episode, asked))
            np.testing.assert_array_equal(
                np.stack(list(source.stream(episode, 2, 3)))[0], frames[1]
            )
