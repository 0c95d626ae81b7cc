"""Places told from the place before: which rows, from where clips begin, and what the contract says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from colaworld.contracts import ActionSpec
from colaworld.data.action_statistics import contract_of, measure, write_contract
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.latent_cache import LatentCache
from colaworld.data.latent_writer import write_latents
from colaworld.data.once import iterate_once
from colaworld.data.sources import open_source
from colaworld.data.sources.lerobot_writer import LeRobotWriter

LENGTHS = (7, 4, 12)


def _rows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(0, 100, (n, 2)).astype(np.float32) for n in LENGTHS]


def _written(path: Path, **changes: object) -> Path:
    spec = ActionSpec(
        **{"column": "action", "kind": "continuous", "size": 2, "mode": "absolute", **changes}  # type: ignore[arg-type]
    )
    writer = LeRobotWriter(path, fps=10, height=16, width=16, action=spec)
    for rows in _rows():
        frames = np.random.default_rng(1).integers(0, 256, (len(rows), 16, 16, 3), np.uint8)
        writer.add(frames, rows[:, 0].astype(np.int64) % 2 if spec.kind == "discrete" else rows)
    return writer.finish()


@pytest.fixture
def arm(tmp_path) -> Path:
    return _written(tmp_path / "arm")


def config(path: Path, **changes: object) -> DataConfig:
    return DataConfig(
        path=path,
        frames_per_clip=3,
        holdout=0.0,
        actions="relative",
        scene_cut_threshold=0,
        **changes,
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_each_step_is_told_from_the_place_before(arm, stride) -> None:
    clips = ClipSet(config(arm, stride=stride))
    assert clips.action_spec is not None
    assert clips.action_spec.mode == "relative" and clips.action_spec.size == 2 * stride
    for start in range(1, LENGTHS[2] - 2 * stride):
        places = _rows()[2][start - 1 : start + 2 * stride]
        wanted = np.diff(places, axis=0).reshape(2, -1)
        np.testing.assert_allclose(clips.clip_actions(2, start), wanted, rtol=1e-6)


def test_no_clip_begins_where_nothing_lies_before(arm) -> None:
    """An episode of four frames holds one clip of three behind its first; whole, it holds two."""
    clips = ClipSet(config(arm))
    assert [(s.first, s.starts) for s in clips.segments] == [(1, 4), (1, 1), (1, 9)]
    assert [e.index for e in ClipSet(config(arm, stride=2)).too_short] == [1]
    read = list(iterate_once(config(arm), batch_size=2, limit=20, with_actions=True, split="all"))
    for batch in read:
        assert batch.actions is not None
        for episode, start, actions in zip(
            batch.episode.tolist(), batch.start.tolist(), batch.actions, strict=True
        ):
            assert start >= 1
            wanted = np.diff(_rows()[episode][start - 1 : start + 2], axis=0)
            np.testing.assert_allclose(actions.numpy(), wanted, rtol=1e-6)
    assert {int(e) for batch in read for e in batch.episode} == {0, 1, 2}


def test_the_contract_is_of_the_ways(arm) -> None:
    recorded = contract_of(ClipSet(DataConfig(path=arm, frames_per_clip=3, holdout=0.0)))
    made = contract_of(ClipSet(config(arm)))
    ways = np.concatenate([np.diff(r, axis=0) for r in _rows()])
    assert made.normaliser.count == len(ways) == sum(LENGTHS) - len(LENGTHS)
    assert (recorded.mode, made.mode) == ("absolute", "relative") and made.hash != recorded.hash
    np.testing.assert_allclose(made.normaliser.std, ways.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(made.normaliser.mean, ways.mean(axis=0), atol=1e-4)
    write_contract(
        open_source(arm),
        measure(
            open_source(arm),
            spec=ActionSpec("action", "continuous", 2, ("x", "y"), ("m", "m"), "absolute"),
        ),
    )
    told = contract_of(ClipSet(config(arm)))
    assert (told.names, told.units, told.mode) == (("x", "y"), ("m", "m"), "relative")


def test_ways_are_not_kept_for_actions_that_are_relative_as_recorded(tmp_path) -> None:
    """A set that says only later that its actions are relative: what was measured of their differences is no
    longer taken for them."""
    path = _written(tmp_path / "other", mode="")
    contract_of(ClipSet(config(path)))
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["action"]["mode"] = "relative"
    (path / "meta/info.json").write_text(json.dumps(info))
    made = contract_of(ClipSet(replace(config(path), actions="as_recorded")))
    assert made.mode == "relative"
    np.testing.assert_allclose(made.normaliser.mean, np.concatenate(_rows()).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    "changes, found",
    [({"mode": "relative"}, "relative as they are"), ({"kind": "discrete"}, "classes")],
)
def test_what_is_no_place_is_refused(tmp_path, changes, found) -> None:
    if changes.get("kind") == "discrete":
        changes = {**changes, "mode": ""}
    path = _written(tmp_path / "other", **changes)
    with pytest.raises(
        DataError, match=rf"other: data\.actions: relative is for places, .*'action' are {found}"
    ):
        ClipSet(config(path))


def test_films_without_actions_are_read_as_they_are(arm) -> None:
    clips = ClipSet(config(arm, action_column=None))
    assert clips.action_spec is None and clips.segments[0].first == 1


def test_an_episode_that_is_too_short_by_its_first_frame_is_told_so(arm) -> None:
    with pytest.raises(
        DataError, match=r"has 12 frames, .* needs 13, with one before it for data.actions relative"
    ):
        ClipSet(replace(config(arm), frames_per_clip=12))


@pytest.mark.parametrize("stride", [1, 2])
def test_latents_are_stored_of_every_frame(arm, tmp_path, stride) -> None:
    """Whatever actions are read as: the key does not tell, and who reads them as recorded would miss some."""

    def encode(frames: torch.Tensor) -> torch.Tensor:
        return frames.mean((3, 4))[:, ::stride, :, None, None].transpose(1, 2)

    clips = ClipSet(config(arm))
    write_latents(tmp_path / "latents", clips, encode, tokenizer="toy", temporal_stride=stride)
    recorded = ClipSet(replace(config(arm), actions="as_recorded"))
    for one in (clips, recorded):
        stored = LatentCache.open(tmp_path / "latents", one, tokenizer="toy")
        assert all(
            stored.has(s.episode, s.first + k) for s in one.segments for k in range(s.starts)
        )
