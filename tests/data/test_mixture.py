"""Several data sets in one run: who is asked when, what a state holds, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from colaworld.config import ConfigError, from_dict, to_dict
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig, MixtureSource
from colaworld.data.errors import DataError
from colaworld.data.loader import ClipLoader
from colaworld.data.mixture import named_data, read_mixture, shares_told


@pytest.fixture(scope="module")
def paths(tmp_path_factory, scene_set) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixed")
    return {
        "people": scene_set(root / "people", [12, 15, 9, 14, 11]),
        "robots": scene_set(root / "robots", [10, 13, 12, 20]),
    }


@pytest.fixture
def config(paths) -> DataConfig:
    mixture = {
        "people": MixtureSource(paths["people"], weight=3),
        "robots": MixtureSource(paths["robots"], weight=1, stride=2),
    }
    return DataConfig(mixture=mixture, frames_per_clip=4, split="all", workers=0)


def _take(loader: ClipLoader, batches: int) -> list[tuple[int, int]]:
    made = [next(loader) for _ in range(batches)]
    loader.close()
    return [p for b in made for p in zip(b.episode.tolist(), b.start.tolist(), strict=True)]


def _ranks(config, world_size, batch_size, clips, state=None):
    loaders = [
        ClipLoader(config, batch_size=batch_size, seed=3, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    taken = []
    for loader in loaders if state is not None else ():
        loader.load_state_dict(state)
    for _ in range(clips // batch_size):
        rows = [_take(loader, 1) for loader in loaders]
        taken += [row for of_ranks in zip(*rows, strict=True) for row in of_ranks]
    merged = ClipLoader.merge_states([loader.state_dict() for loader in loaders])
    return taken, json.loads(json.dumps(merged))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_set_gives_its_share_and_resumes_on_other_processes(config, workers) -> None:
    config = replace(config, workers=workers)
    whole, end = _ranks(config, 1, 4, 400)
    of_robots = [episode >= 5 for episode, _ in whole]
    assert 0.2 < np.mean(of_robots) < 0.3  # a quarter; three deviations are 0.065
    assert {e for e, _ in whole} == set(range(9)) and end["streams"] == 4
    assert end["clips"] == {"people": 46, "robots": 4 + 7 + 6 + 14}
    first, state = _ranks(config, 2, 8, 160)
    assert (
        state["at"].keys() == {"0", "1", "2", "3"}
        and state["at"]["0"].keys() == config.mixture.keys()
    )
    again, behind = _ranks(config, 4, 4, 240, state)
    assert first + again == whole and behind == end


def test_clips_are_those_of_their_set(config, paths) -> None:
    loader = ClipLoader(config, batch_size=8, seed=0, with_actions=False)
    assert loader.first_episode == {"people": 0, "robots": 5}
    sets = [ClipSet(DataConfig(path=path, split="all")) for path in paths.values()]
    seen = set()
    for _ in range(5):
        batch = next(loader)
        for b, (episode, start) in enumerate(
            zip(batch.episode.tolist(), batch.start.tolist(), strict=True)
        ):
            which = int(episode >= 5)
            seen.add(which)
            step = 1 + which
            frames = sets[which].source.read(
                episode - 5 * which, range(start, start + 4 * step, step)
            )
            np.testing.assert_array_equal(batch.frames[b].permute(0, 2, 3, 1).numpy(), frames)
            rate = sets[which].source.episodes[0].fps / step
            assert batch.fps[b] == torch.tensor(rate)
    assert seen == {0, 1} and loader.usual_fps == sets[0].usual_fps


def test_a_state_of_other_shares_or_sets_is_refused(config) -> None:
    state = ClipLoader(config, batch_size=4, seed=0).state_dict()
    weights = {name: replace(part, weight=1) for name, part in config.mixture.items()}
    with pytest.raises(ValueError, match="shares="):
        ClipLoader(replace(config, mixture=weights), batch_size=4, seed=0).load_state_dict(state)
    alone = config.sets()["people"]
    with pytest.raises(ValueError, match="this loader has clips=46"):
        ClipLoader(alone, batch_size=4, seed=0).load_state_dict(state)


def test_a_state_that_one_of_the_sets_cannot_fill_changes_no_other(config) -> None:
    config = replace(config, cache_mb=160 * 3 * 20 * 24 / 1e6, streams=4)
    state = ClipLoader(config, batch_size=4, seed=0).state_dict()
    loader, alone = (ClipLoader(config, batch_size=4, seed=0) for _ in range(2))
    next(loader), next(alone)
    before = [list(clips.segments) for clips in loader.sets.values()]
    with pytest.raises(DataError, match="cannot fill 40 streams"):
        loader.load_state_dict({**state, "streams": 40})
    assert [clips.segments for clips in loader.sets.values()] == before
    assert _take(loader, 20) == _take(alone, 20)


def test_a_set_that_does_not_fit_is_named(config, paths, tmp_path, film) -> None:
    def with_other(path: Path, **more) -> DataConfig:
        return replace(config, mixture={**config.mixture, "other": MixtureSource(path, **more)})

    with pytest.raises(DataError, match=r"data\.mixture\.other: .*/none: no such folder"):
        ClipLoader(with_other(tmp_path / "none"), batch_size=4, seed=0)
    film(tmp_path / "films" / "a.mp4", range(9))
    film(tmp_path / "films" / "b.mp4", range(9))
    with pytest.raises(DataError, match=r"mixture\.other: .*\(32, 80\), .*people \(20, 24\)"):
        ClipLoader(with_other(tmp_path / "films"), batch_size=4, seed=0)
    same = replace(with_other(tmp_path / "films"), height=20, width=24)
    with pytest.raises(DataError, match="2 episodes cannot fill 4 streams"):
        ClipLoader(replace(same, streams=4), batch_size=4, seed=0)
    assert ClipLoader(same, batch_size=4, seed=0).streams == 2
    with pytest.raises(DataError, match=r"robots: 2 actions .* lie between two frames"):
        ClipLoader(same, batch_size=4, seed=0, with_actions=True)


def test_what_a_configuration_says(config, paths) -> None:
    assert from_dict(DataConfig, to_dict(config)) == config
    assert config.shares() == {"people": 0.75, "robots": 0.25}
    assert DataConfig(path=paths["people"]).shares() == {"data": 1.0}
    assert config.one_set(Path("robots")) == config.one_set(paths["robots"])
    assert config.one_set(Path("robots")).stride == 2
    with pytest.raises(DataError, match=r"name one with --data: people, robots"):
        ClipSet(config)
    with pytest.raises(ConfigError, match=r"data\.path: expected none beside data\.mixture"):
        replace(config, path=paths["people"])
    rates = {"a": MixtureSource(Path("x"), fps=5, stride=2)}
    with pytest.raises(ConfigError, match=r"data\.mixture\.a: data\.fps: expected stride 1"):
        DataConfig(mixture=rates).sets()
    with pytest.raises(ConfigError, match=r"weight: expected > 0, got 0"):
        MixtureSource(paths["people"], weight=0)
    rate = replace(config, mixture={"a": MixtureSource(paths["people"], fps=2.0)}, stride=3)
    assert rate.sets()["a"].stride == 1 and rate.sets()["a"].fps == 2.0


def test_a_file_or_values_name_the_sets(tmp_path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(
        "mixture:\n  a: {path: films, weight: 3, fps: 2}\n  b: {path: /b, camera: top}\n"
    )
    expected = {
        "a": MixtureSource(tmp_path / "films", 3.0, fps=2.0),
        "b": MixtureSource(Path("/b"), camera="top"),
    }
    assert read_mixture(file) == expected
    assert named_data([str(file)]) == DataConfig(mixture=expected)
    assert named_data(["a=x/y:0.3", "b=z"]).mixture == {
        "a": MixtureSource(Path("x/y"), 0.3),
        "b": MixtureSource(Path("z")),
    }
    assert named_data(["folder"]) == DataConfig(path=Path("folder")) and named_data([]) is None
    odd = tmp_path / "day=1"
    odd.mkdir()
    assert named_data([str(odd)]).path == odd


@pytest.mark.parametrize(
    "text, says",
    [
        ("a: {path: x}", r"mix\.yaml: unknown key 'a'"),
        ("mixture: {}", r"mix\.yaml: expected data sets by name under `mixture`"),
        ("mixture: {a: {weight: 1}}", r"mix\.yaml: mixture\.a: expected a path, got none"),
        ("mixture: {a: {path: x, weight: -1}}", r"mixture\.a\.weight: expected > 0, got -1"),
        ("mixture: {2: {path: x}}", r"mixture: expected names that are text, got 2; quote it"),
        ("mixture: {a: {path: x, speed: 1}}", r"unknown key 'mixture\.a\.speed'"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path, text, says) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_mixture(file)


def test_values_that_are_wrong_are_told() -> None:
    for values, says in (
        (["a", "b"], "expected one folder, one YAML file, or NAME=PATH:WEIGHT"),
        (["a=x:1", "a=y:1"], "the name 'a' is given twice"),
        (["a=x:much", "b=y"], "expected a number behind the last colon"),
        (["a=x:", "b=y"], "--data a=x:: expected a number behind the last colon"),
        (["a=x:0", "b=y"], "--data a=x:0: .*weight: expected > 0"),
    ):
        with pytest.raises(ConfigError, match=says):
            named_data(values)


def test_the_shares_are_told(config) -> None:
    loader = ClipLoader(config, batch_size=4, seed=0)
    assert shares_told(loader, 8) == [
        "people: 75.0% of the clips (it has 46 of 5 episodes), 130 epochs in 1000 updates of 8 clips; "
        "its episodes are 0 to 4",
        "robots: 25.0% of the clips (it has 31 of 4 episodes), 64.5 epochs in 1000 updates of 8 clips; "
        "its episodes are 5 to 8",
    ]
