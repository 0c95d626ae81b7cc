"""Starts and goals: made once, copied for who plays, kept in a file that is held against what is played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from colaworld.config import ConfigError
from colaworld.files import FileError
from colaworld.planning.config import GoalsConfig
from colaworld.planning.goals import Goals, hash_of
from colaworld.planning.goals_file import GoalsFile
from colaworld.planning.tasks import SceneTask
from colaworld.runs.planning import make_goals

SIZE = (16, 16)


@pytest.fixture(scope="module")
def made() -> GoalsFile:
    return make_goals("scene", SIZE, GoalsConfig(episodes=3, seed=5, goal_offset=2))


@pytest.fixture
def kept(made, tmp_path) -> Path:
    made.save(tmp_path / "goals.safetensors")
    return tmp_path / "goals.safetensors"


def test_who_plays_an_episode_moves_nobody_elses() -> None:
    goals = Goals(SceneTask(height=16, width=16), (1, 2))
    first = goals.begin(1)
    first.task.step(2)
    again = goals.begin(1)
    assert again.task is not first.task
    np.testing.assert_array_equal(again.task.frame(), again.frame)
    assert (first.task.frame() != first.frame).any()


def test_what_is_read_is_what_was_written_and_equal_seeds_make_equal_bytes(made, kept) -> None:
    read = GoalsFile.load(kept)
    assert read.hash == made.hash and read.frame_size == SIZE and read.env == "scene"
    assert (read.said, read.is_of) == ({"goal_offset": 2}, {"goal_offset": 2, "block": 1})
    np.testing.assert_array_equal(read.goals, made.goals)
    again = make_goals("scene", SIZE, GoalsConfig(episodes=3, seed=5, goal_offset=2))
    again.save(kept.with_name("again"))
    assert kept.with_name("again").read_bytes() == kept.read_bytes()
    other = make_goals("scene", SIZE, GoalsConfig(episodes=3, seed=6, goal_offset=2))
    assert other.hash != made.hash


def test_what_does_not_fit_is_said(made, kept) -> None:
    def refused(env: str, config: GoalsConfig, size: tuple[int, int] | None) -> str:
        with pytest.raises(ConfigError) as told:
            made.check(kept, env, config, size)
        return str(told.value)

    made.check(kept, "scene", GoalsConfig(episodes=2, goal_offset=2, block=1), SIZE)
    assert "it is of scene, and pusht is to be played" in refused("pusht", GoalsConfig(), SIZE)
    assert "frames are 16x16 px (height x width), expected 32x32" in refused(
        "scene", GoalsConfig(), (32, 32)
    )
    assert refused("scene", GoalsConfig(goal_offset=3), SIZE).startswith("--goal-offset 3: --goals")
    assert "--episodes 4: --goals" in refused("scene", GoalsConfig(episodes=4), SIZE)


def test_frames_that_look_otherwise_here_are_refused(made, kept) -> None:
    goals = Goals(SceneTask(height=16, width=16, goal_offset=2), made.seeds.tolist())
    made.compare(kept, goals)
    changed = made.goals.copy()
    changed[1, 0, 0, 0] ^= 1
    with pytest.raises(ConfigError, match=rf"seed {made.seeds[1]} looks otherwise here"):
        replace(made, goals=changed).compare(kept, goals)


def test_a_damaged_file_is_refused(made, kept) -> None:
    with pytest.raises(FileError, match="expected a file of `colaworld goals`, found none"):
        GoalsFile.load(kept.with_name("none"))
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(FileError, match="do not match the recorded hash"):
        GoalsFile.load(kept)
    kept.write_bytes(b"{}")
    with pytest.raises(FileError, match="no file of `colaworld goals`"):
        GoalsFile.load(kept)


@pytest.mark.parametrize(
    "changed",
    [
        {"said": {"goal_offset": 2, "height": 16}},
        {"said": [2]},
        {"is_of": None},
        {"env": 3},
        {"seeds": np.array([1.0, 2.0, 3.0])},
        {"seeds": np.array([1, 2, -3])},
        {"seeds": np.array([[1, 2, 3]])},
        {"first": np.zeros((3, 16, 16, 1), np.uint8)},
        {"goals": np.zeros((2, 16, 16, 3), np.uint8)},
        {"seeds": np.zeros(0, np.int64)},
    ],
    ids=lambda changed: "-".join(f"{key}-{value!r:.20}" for key, value in changed.items()),
)
def test_a_file_with_other_parts_than_are_written_is_refused(made, kept, changed) -> None:
    other = replace(made, **changed)
    replace(other, hash=hash_of(other.seeds, other.first, other.goals)).save(kept)
    with pytest.raises(FileError, match=r"no file of `colaworld goals` \(its seeds, frames or set"):
        GoalsFile.load(kept)
