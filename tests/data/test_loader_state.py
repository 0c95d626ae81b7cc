"""A loader takes up a state of another cut, or refuses it and goes on as before."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from colaworld.data.config import DataConfig
from colaworld.data.loader import ClipLoader

LENGTHS = [60, 70, 50, 66]


def _ids(batch) -> list[tuple[int, int]]:
    return list(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))


@pytest.fixture(scope="module")
def films(tmp_path_factory, scene_set) -> DataConfig:
    """Four films of which other numbers of streams hold other segments."""
    path = scene_set(tmp_path_factory.mktemp("long") / "set", LENGTHS)
    size = 3 * 20 * 24
    return DataConfig(
        path=path, frames_per_clip=4, split="all", workers=0, cache_mb=400 * size / 1e6
    )


def _states(config) -> dict[int, dict]:
    """By streams: the state behind a batch."""
    states = {}
    for streams in (2, 4, 16):
        loader = ClipLoader(replace(config, streams=streams), batch_size=16, seed=0)
        next(loader)
        states[streams] = loader.state_dict()
    return states


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith(("decode-", "clips"))}


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_are_those_of_the_named_clip_whatever_streams_came_before(films, workers) -> None:
    states = _states(films)
    loader = ClipLoader(replace(films, workers=workers, streams=16), batch_size=16, seed=0)
    whole = [loader.clips.source.read(e, range(n)) for e, n in enumerate(LENGTHS)]
    most = set()
    for streams in (16, 4, 2, 16, 2):
        loader.load_state_dict(states[streams])
        most.add(max(s.stop - s.first for s in loader.clips.segments))
        for _ in range(3):
            batch = next(loader)
            for b, (episode, start) in enumerate(_ids(batch)):
                frames = whole[episode][start : start + 4]
                np.testing.assert_array_equal(batch.frames[b].permute(0, 2, 3, 1).numpy(), frames)
    loader.close()
    assert len(most) == 2  # they were cut otherwise


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "change, error",
    [
        ({"seed": 1}, "seed=1, this loader has seed=0"),
        ({"clips": 5}, "clips=5, this loader has clips="),
        ({"streams": 1000}, "cannot fill 1000 streams"),
        ({"at": {"0": [0, 1]}}, "lacks stream 1 of rank 0"),
        ({"at": {str(k): "?" for k in range(16)}}, "place of stream 0 .* got '\\?'"),
    ],
)
def test_a_refused_state_changes_nothing(films, workers, change, error) -> None:
    config, others = replace(films, workers=workers, streams=4), _threads()
    loader, alone = (ClipLoader(config, batch_size=4, seed=0) for _ in range(2))
    other = _states(films)[16]
    for _ in range(2):
        next(loader), next(alone)
    before = loader.state_dict(), loader.clips.segments, loader.streams
    running = _threads() - others
    with pytest.raises(ValueError, match=error):
        loader.load_state_dict({**other, **change})
    assert (loader.state_dict(), loader.clips.segments, loader.streams) == before
    assert running <= _threads() and bool(running) == bool(workers)
    for again in range(2):
        for _ in range(8):
            batch, wanted = next(loader), next(alone)
            assert _ids(batch) == _ids(wanted) and torch.equal(batch.frames, wanted.frames)
        assert loader.state_dict() == alone.state_dict()
        if not again:
            loader.close()  # and from there with new threads
    loader.close()
    alone.close()


def test_no_thread_runs_while_the_films_are_cut_anew(films, monkeypatch) -> None:
    state, others = _states(films)[16], _threads()
    loader = ClipLoader(replace(films, workers=2, streams=4), batch_size=4, seed=0)
    next(loader)
    cut, seen = loader.clips.cut, []
    monkeypatch.setattr(
        loader.clips, "cut", lambda s: (seen.append((s, _threads() - others)), cut(s))
    )
    assert len(_threads() - others) == 3
    loader.load_state_dict(state)
    assert seen == [(16, set())]
