"""Few labels: which recorded transitions are used, and that fewer are a part of more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.loader import ClipLoader
from colaworld.data.sources.source import EpisodeInfo
from colaworld.data.split import labelled


def episodes(*frames: int) -> list[EpisodeInfo]:
    return [EpisodeInfo(i, f"e{i}", Path("f"), n, 10.0, 8, 8) for i, n in enumerate(frames)]


def test_whole_episodes_and_the_last_one_cut() -> None:
    some = episodes(11, 11, 11, 11)
    whole = labelled(some, 40, seed=0, path="set")
    assert whole == {0: 11, 1: 11, 2: 11, 3: 11}
    kept = labelled(some, 25, seed=0, path="set")
    assert sorted(kept.values()) == [6, 11, 11] and sum(n - 1 for n in kept.values()) == 25
    assert labelled(some[::-1], 25, seed=0, path="set") == kept  # whatever the order of files
    found = {tuple(labelled(some, 10, seed=seed, path="set")) for seed in range(20)}
    assert found == {(0,), (1,), (2,), (3,)}


def test_fewer_are_a_part_of_more() -> None:
    some = episodes(*(5 + n for n in range(30)))
    before: set[tuple[int, int]] = set()
    for labels in (1, 10, 100, 400):
        kept = labelled(some, labels, seed=3, path="set")
        now = {(index, step) for index, frames in kept.items() for step in range(frames - 1)}
        assert len(now) == labels and before <= now
        before = now


def test_more_than_there_are_is_an_error_with_both_numbers() -> None:
    with pytest.raises(
        DataError, match=r"at most the 20 recorded transitions of its 2 training .* 21"
    ):
        labelled(episodes(11, 11), 21, seed=0, path="set")


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    from colaworld.cli.main import main

    out = tmp_path_factory.mktemp("few_labels") / "scene"
    assert main(["record", "scene", "--out", str(out), "--episodes", "10", "--steps", "8"]) == 0
    return out


def test_clips_come_from_those_transitions_alone(scene) -> None:
    config = DataConfig(path=scene, frames_per_clip=3, holdout=0.2, labels=17)
    clips = ClipSet(config)  # 7 transitions an episode: two whole and 3 of a third
    assert clips.labels == 17 and len(clips.episodes) == 3
    assert clips.held_out == 2 and clips.unlabelled == 5
    assert clips.count == 6 + 6 + 2  # a clip of 3 frames starts at each place but the last two
    kept = labelled(ClipSet(replace(config, labels=None)).episodes, 17, seed=0, path=scene)
    loader = ClipLoader(config, batch_size=4, seed=0, with_actions=True)
    seen = {
        (int(e), int(s))
        for _ in range(20)
        for b in [next(loader)]
        for e, s in zip(b.episode, b.start, strict=True)
    }
    loader.close()
    assert seen == {(e, s) for e, frames in kept.items() for s in range(frames - 2)}


def test_a_cut_too_short_for_a_clip_is_not_counted_and_held_out_ones_are_not_cut(scene) -> None:
    config = DataConfig(path=scene, frames_per_clip=4, holdout=0.2, labels=9)
    assert ClipSet(config).labels == 7  # two more hold no clip of three transitions
    whole = ClipSet(replace(config, split="heldout"))
    assert whole.labels is None and whole.count == 2 * 5
    with pytest.raises(DataError, match=r"data\.labels: 2 recorded transitions hold no clip of 4"):
        ClipSet(replace(config, labels=2))
