"""A source from one file outside the package: found, opened, trained on, looked at and labelled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from colaworld.cli.main import main
from colaworld.config import from_dict, to_dict
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.episode_stream import episode_stream
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.latent_cache import LatentKey
from colaworld.data.loader import ClipLoader
from colaworld.data.sources import open_source
from colaworld.data.sources.registry import register_source

PLUGIN = Path(__file__).with_name("plugin_npy.py")


@pytest.fixture
def plugin(from_outside):
    from_outside(PLUGIN)


@pytest.fixture
def arrays(tmp_path) -> Path:
    """Episodes of 12, 15 and 9 frames; the mean of a frame is 10 + 4 t."""
    (tmp_path / "arrays").mkdir()
    rng = np.random.default_rng(0)
    for i, n in enumerate((12, 15, 9)):
        noise = rng.integers(-3, 4, (n, 16, 20, 3))
        frames = 10 + 4 * np.arange(n)[:, None, None, None] + noise
        np.save(tmp_path / f"arrays/e{i}.npy", frames.astype(np.uint8))
        np.save(tmp_path / f"arrays/e{i}.actions.npy", np.arange(n) % 2)
    return tmp_path / "arrays"


def test_it_is_found_and_gives_clips_with_actions(plugin, arrays) -> None:
    config = DataConfig(path=arrays, frames_per_clip=4, split="all")
    assert open_source(arrays).kind == "npy"
    loader = ClipLoader(config, batch_size=5, seed=0, with_actions=True)
    starts = set()
    for _ in range(20):
        batch = next(loader)
        means = batch.frames.float().mean((2, 3, 4))
        np.testing.assert_allclose(means[:, 0], 10 + 4 * batch.start, atol=1)
        assert (batch.actions[:, 0] == batch.start % 2).all()
        starts |= set(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))
    loader.close()
    assert starts == {(e, s) for e, n in enumerate((12, 15, 9)) for s in range(n - 3)}
    assert sum(len(w.index) - w.repeats for w in episode_stream(loader.clips, window=5)) == 36
    assert ClipSet(replace(config, fps=5.0)).stride(0) == 2


def test_a_source_that_gives_fewer_frames_than_it_says_is_left_out(
    plugin, arrays, monkeypatch
) -> None:
    """Not filled up with whatever lay in memory."""
    clips = ClipSet(DataConfig(path=arrays, frames_per_clip=4, split="all", max_broken_share=0.5))
    whole = type(clips.source).stream

    def short(self, episode: int, first: int, stop: int):
        yield from list(whole(self, episode, first, stop))[: -2 if episode == 1 else None]

    monkeypatch.setattr(type(clips.source), "stream", short)
    said = r"e1.npy: e1: expected frames up to 14, the source gave none from 13 on"
    with pytest.raises(BrokenFileError, match=said):
        list(clips.stream(1, 0, 15))
    loader = ClipLoader(clips.config, batch_size=5, seed=0)
    seen = {int(e) for _ in range(20) for e in next(loader).episode}
    loader.close()
    assert seen == {0, 2}


def test_its_files_are_part_of_a_fingerprint(plugin, arrays) -> None:
    config = DataConfig(path=arrays, frames_per_clip=4, split="all")
    key = LatentKey.of(ClipSet(config), tokenizer="t", per_clip=False)
    assert key.data["source"] == "npy" and key.data["episodes"] == 3
    np.save(arrays / "e1.npy", np.zeros((15, 16, 21, 3), np.uint8))
    config = DataConfig(path=arrays, frames_per_clip=4, split="all", height=16, width=20)
    other = LatentKey.of(ClipSet(config), tokenizer="t", per_clip=False)
    assert other.data["files"] != key.data["files"]


def test_the_command_knows_it(plugin, arrays, tmp_path, capsys) -> None:
    sheet = tmp_path / "sheet.png"
    for options in ([], ["--source", "npy"]):
        assert main(["data", "inspect", str(arrays), "--sheet", str(sheet), *options]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "(npy)" in said and "column 'action' (discrete, 2" in said


def test_a_configuration_names_it_and_is_clear_where_it_is_not_known(arrays) -> None:
    config = from_dict(DataConfig, to_dict(DataConfig(path=arrays, source="npy")))
    with pytest.raises(
        DataError, match=r"no source 'npy' is registered; known: hdf5, lerobot, .*IMPORT"
    ):
        ClipSet(config)


def test_names_that_are_taken() -> None:
    for name in ("lerobot", "auto"):
        with pytest.raises(DataError, match=f"source '{name}': there is one of this name"):
            register_source(name, detect=lambda path: True, open=open_source)
