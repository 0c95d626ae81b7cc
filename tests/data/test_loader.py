"""The loader's promises: order by seed alone, exact resume, disjoint ranks, every clip once."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from colaworld.data.clips import ClipSet, Decoded
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.loader import ClipLoader
from colaworld.data.once import _rounds, iterate_once
from colaworld.data.windows import segments
from colaworld.runs.evaluation import _longest_horizon


@pytest.fixture(scope="module")
def config(tmp_path_factory, scene_set) -> DataConfig:
    path = scene_set(tmp_path_factory.mktemp("six") / "set", [12, 15, 9, 14, 11, 3])
    # The last is too short.
    return DataConfig(path=path, frames_per_clip=4, split="all", workers=0)


def _ids(batch) -> list[tuple[int, int]]:
    return list(zip(batch.episode.tolist(), batch.start.tolist(), strict=True))


def _take(loader: ClipLoader, batches: int) -> list[tuple[int, int]]:
    taken = [pair for _ in range(batches) for pair in _ids(next(loader))]
    loader.close()
    return taken


def _all_clips(lengths=(12, 15, 9, 14, 11)) -> set[tuple[int, int]]:
    return {(e, s) for e, n in enumerate(lengths) for s in range(n - 3)}


def test_an_epoch_holds_every_clip_once_in_a_new_order_each_time(config) -> None:
    total = len(_all_clips())
    loader = ClipLoader(config, batch_size=1, seed=0)
    first, second = _take(loader, total), _take(loader, total)
    assert set(first) == set(second) == _all_clips() and len(loader) == total
    assert first != second
    assert first != sorted(first)


def test_frames_are_those_of_the_named_clip(config) -> None:
    loader = ClipLoader(config, batch_size=5, seed=1, with_actions=True)
    for _ in range(3):
        batch = next(loader)
        assert batch.frames.shape == (5, 4, 3, 20, 24) and batch.frames.dtype == torch.uint8
        for b, (episode, start) in enumerate(_ids(batch)):
            frames = loader.clips.source.read(episode, range(start, start + 4))
            np.testing.assert_array_equal(batch.frames[b].permute(0, 2, 3, 1).numpy(), frames)
            actions = loader.clips.source.actions(episode)[start : start + 3]
            np.testing.assert_array_equal(batch.actions[b].numpy(), actions)


def test_a_batch_knows_the_rate_of_its_clips(config) -> None:
    loader = ClipLoader(replace(config, stride=2), batch_size=3, seed=1)
    rate = loader.clips.source.episodes[0].fps / 2
    assert next(loader).fps.tolist() == [rate] * 3
    assert next(loader).to("meta").fps.shape == (3,)
    assert next(iterate_once(config, batch_size=2, split="all")).fps.tolist() == [2 * rate] * 2


def test_the_seed_decides_and_threads_do_not(config) -> None:
    a = _take(ClipLoader(config, batch_size=4, seed=5), 30)
    assert a == _take(ClipLoader(replace(config, workers=3), batch_size=4, seed=5), 30)
    assert a != _take(ClipLoader(config, batch_size=4, seed=6), 30)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("before", [1, 7, 13, 40])  # 40 batches of 4: in the fourth epoch
def test_resume_gives_the_next_clip(config, workers, window, before) -> None:
    config = replace(config, workers=workers, shuffle_window=window)
    loader = ClipLoader(config, batch_size=4, seed=0)
    for _ in range(before):
        next(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    expected = [next(loader) for _ in range(20)]
    other = ClipLoader(config, batch_size=4, seed=0)
    next(other)  # whatever it did before
    other.load_state_dict(state)
    for batch in expected:
        again = next(other)
        assert _ids(again) == _ids(batch) and torch.equal(again.frames, batch.frames)
    loader.close()
    other.close()


def test_a_state_of_another_order_is_refused(config) -> None:
    state = ClipLoader(config, batch_size=4, seed=0).state_dict()
    with pytest.raises(ValueError, match="resume with the same"):
        ClipLoader(config, batch_size=4, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="clips=46, this loader has clips=41"):
        other = ClipLoader(replace(config, frames_per_clip=5), batch_size=4, seed=0)
        other.load_state_dict(state)


@pytest.mark.parametrize(
    "more, sha256",  # of the order before there were streams
    [
        ({}, "005dadaf387a374d"),
        ({"cache_mb": 3 * 20 * 24 * 60 / 1e6}, "2164883ed1e947e7"),
        ({"shuffle_window": 2}, "20a7a52c035e2ca4"),
    ],
)
def test_one_stream_is_the_order_of_earlier_versions(config, more, sha256) -> None:
    config = replace(config, streams=1, **more)
    loader = ClipLoader(config, batch_size=4, seed=7)
    taken = _take(loader, 40)
    assert hashlib.sha256(json.dumps(taken).encode()).hexdigest()[:16] == sha256
    old = {"epoch": 3, "position": 22, "seed": 7, "rank": 0, "world_size": 1}
    old |= {"clips": 46, "latents": None}
    other = ClipLoader(replace(config, streams=None), batch_size=4, seed=7)
    other.load_state_dict(old)
    assert other.streams == 1 and _take(other, 5) == _take(loader, 5)
    with pytest.raises(ValueError, match="earlier version with 2 processes"):
        other.load_state_dict({**old, "world_size": 2})


def _updates(config, world_size: int, batch_size: int, updates: int, states=None) -> tuple:
    """The clips of updates of 8 by slot, all ranks together; and their states behind them."""
    loaders = [
        ClipLoader(config, batch_size=batch_size, seed=3, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    for loader in loaders if states is not None else ():
        loader.load_state_dict(states)
    taken = []
    for _ in range(updates * 8 // batch_size):
        rows = [_ids(next(loader)) for loader in loaders]
        taken += [row for of_ranks in zip(*rows, strict=True) for row in of_ranks]
    merged = ClipLoader.merge_states([loader.state_dict() for loader in loaders])
    for loader in loaders:
        loader.close()
    return taken, json.loads(json.dumps(merged))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"workers": 2},
        {"streams": 4, "cache_mb": 3 * 20 * 24 * 60 / 1e6},
        {"streams": 4, "shuffle_window": 2},
    ],
)
def test_the_clips_do_not_depend_on_the_processes(config, more) -> None:
    config = replace(config, **more)
    whole, end = _updates(config, 1, 8, 12)
    assert end["streams"] == 4 and end["slots"] == 96  # five segments fill four streams
    assert _updates(config, 2, 8, 12) == (whole, end)
    assert _updates(config, 4, 8, 12) == (whole, end)
    assert _updates(replace(config, streams=4), 2, 2, 12) == (whole, end)  # fewer than streams
    first, state = _updates(config, 2, 8, 5)
    for world_size, batch_size in ((1, 8), (4, 8), (2, 2), (1, 1)):  # the state has its streams
        again, behind = _updates(config, world_size, batch_size, 7, state)
        assert first + again == whole and behind == end


def test_resume_where_the_slots_so_far_are_no_multiple_of_the_processes(config) -> None:
    """A run of one process begins its codes from clips that three do not share evenly."""
    config = replace(config, streams=3)
    alone = ClipLoader(config, batch_size=4, seed=3)
    next(alone)
    state = alone.merge_states([alone.state_dict()])
    wanted = _take(alone, 3)
    ranks = [ClipLoader(config, batch_size=6, seed=3, rank=r, world_size=3) for r in range(3)]
    for rank in ranks:
        rank.load_state_dict(state)
    taken = [[_ids(next(rank)) for rank in ranks] for _ in range(2)]
    assert [own[row] for batch in taken for row in range(2) for own in batch] == wanted
    again = ClipLoader(config, batch_size=1, seed=3)
    again.load_state_dict(again.merge_states([rank.state_dict() for rank in ranks]))
    assert _take(again, 4) == _take(alone, 1)


def test_an_epoch_of_all_streams_holds_every_clip_once(config) -> None:
    loader = ClipLoader(replace(config, streams=4), batch_size=4, seed=0)
    mine: dict[str, set] = {str(k): set() for k in range(4)}
    for _ in range(40):
        before, ids = loader.state_dict()["at"], _ids(next(loader))
        for k, pair in enumerate(ids):
            if loader.state_dict()["at"][str(k)][0] == 0:
                assert before[str(k)][0] == 0 and pair not in mine[str(k)]
                mine[str(k)].add(pair)
    assert sum(map(len, mine.values())) == 46 and set.union(*mine.values()) == _all_clips()


def test_processes_that_cannot_share_the_streams_are_told_which_can(config) -> None:
    with pytest.raises(ValueError, match=r"batch of 8 clips .* multiple of 3, or start 1 or 2 pro"):
        ClipLoader(config, batch_size=8, seed=0, world_size=3)
    with pytest.raises(ValueError, match=r"4 streams, which 8 .*start 1, 2 or 4 processes"):
        ClipLoader(config, batch_size=8, seed=0, world_size=8)
    with pytest.raises(DataError, match="5 episodes cannot fill 6 streams"):
        ClipLoader(replace(config, streams=6), batch_size=6, seed=0)
    state = ClipLoader(config, batch_size=4, seed=0).state_dict()
    loader = ClipLoader(replace(config, streams=5), batch_size=5, seed=0, world_size=5)
    with pytest.raises(ValueError, match=r"4 streams, which 5 .*start 1, 2 or 4 processes"):
        loader.load_state_dict(state)


def test_states_that_do_not_belong_together_are_not_merged(config) -> None:
    ranks = [ClipLoader(config, batch_size=4, seed=0, rank=r, world_size=2) for r in range(2)]
    states = [loader.state_dict() for loader in ranks]
    with pytest.raises(ValueError, match=r"of 1 ranks lack 2 of 4 streams \(first: 1\)"):
        ClipLoader.merge_states(states[:1])
    with pytest.raises(ValueError, match=r"lacks stream 1 of rank 1"):
        ranks[1].load_state_dict(states[0])
    next(ranks[1])
    with pytest.raises(ValueError, match="slots=0 and slots=4"):
        ClipLoader.merge_states([states[0], ranks[1].state_dict()])


def test_memory_is_bounded_and_nothing_is_lost(config) -> None:
    small = replace(config, cache_mb=3 * 20 * 24 * 60 / 1e6, workers=2)  # 60 frames in all
    loader = ClipLoader(small, batch_size=4, seed=0)
    seen = set()
    for _ in range(40):
        seen |= set(_ids(next(loader)))
        assert loader.clips._cache.bytes <= small.cache_mb * 1e6
    loader.close()
    assert seen == _all_clips()


def test_clips_over_a_cut_are_passed_over(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", [0b0000000011] * 10 + [0b1111110011] * 10)
    config = DataConfig(path=tmp_path, frames_per_clip=4, split="all", workers=0)
    loader = ClipLoader(config, batch_size=3, seed=0)
    starts = {s for _, s in _take(loader, 20)}
    assert starts == {*range(7), *range(10, 17)}
    with pytest.raises(DataError, match=r"no clip of 12 frames without a scene cut"):
        next(ClipLoader(replace(config, frames_per_clip=12), batch_size=3, seed=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_files_stop_the_training(tmp_path, film, workers) -> None:
    for i in range(3):
        film(tmp_path / f"{i}.mp4", range(8))
    config = DataConfig(path=tmp_path, frames_per_clip=4, split="all", workers=workers)
    loader = ClipLoader(config, batch_size=8, seed=0)
    (tmp_path / "1.mp4").write_bytes(b"gone")
    for _ in range(2):  # and it stays an error
        with pytest.raises(DataError, match=r"1 of 3 (.|\n)*1\.mp4"):
            for _ in range(4):
                next(loader)
    loader.close()


def test_a_read_that_never_returns_is_named(tmp_path, film, monkeypatch) -> None:
    for i in range(4):
        film(tmp_path / f"{i}.mp4", range(8))
    config = DataConfig(path=tmp_path, frames_per_clip=4, split="all", workers=2, timeout=0.3)
    loader, free = ClipLoader(config, batch_size=4, seed=0), threading.Event()
    read = loader.clips.source.stream

    def hanging(episode, first, stop):
        if episode == 2:
            free.wait()
        return read(episode, first, stop)

    monkeypatch.setattr(loader.clips.source, "stream", hanging)
    before = loader.state_dict()
    for _ in range(2):  # and it stays an error
        with pytest.raises(DataError, match=r"2\.mp4: 2\.mp4, frames 0\.\.7: still not read after"):
            for _ in range(20):
                next(loader)
    threads = [t for t in threading.enumerate() if t.name.startswith(("decode-", "clips"))]
    assert len(threads) >= 3 and all(t.daemon for t in threads)  # the process can end
    assert loader.clips.longest_read()[0] > 0.3
    free.set()
    loader.close()
    loader.load_state_dict(before)
    assert {e for e, _ in _take(loader, 5)} == {0, 1, 2, 3}  # once it reads again
    assert loader.clips.longest_read() == (0.0, "")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_film_that_breaks_on_the_way_is_named_and_left_out(
    tmp_path, film, workers, caplog
) -> None:
    for i in range(4):
        film(tmp_path / f"{i}.mp4", range(8))
    config = DataConfig(
        path=tmp_path, frames_per_clip=4, split="all", workers=workers, max_broken_share=0.3
    )
    loader = ClipLoader(config, batch_size=4, seed=0)
    (tmp_path / "1.mp4").write_bytes(b"gone")
    taken = _take(loader, 20)
    assert len(taken) == 80 and {e for e, _ in taken} == {0, 2, 3}
    (broken,) = loader.clips.broken.values()
    assert broken.path.name == "1.mp4"
    assert sum("1.mp4" in r.message and "skipped" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_film_takes_its_own_clips_from_each_process_and_no_other(
    tmp_path, film, workers
) -> None:
    """It breaks behind the start; nobody waits for those of whom it took more."""
    for i in range(8):
        film(tmp_path / f"{i}.mp4", range(12))
    config = DataConfig(path=tmp_path, frames_per_clip=4, split="all", workers=workers)
    config = replace(config, max_broken_share=0.2, streams=8)

    def opened() -> list[ClipLoader]:
        return [ClipLoader(config, batch_size=8, seed=1, rank=r, world_size=2) for r in range(2)]

    whole = [_take(loader, 60) for loader in opened()]
    loaders = opened()
    (tmp_path / "5.mp4").write_bytes(b"gone")
    lost = 0
    for loader, clips in zip(loaders, whole, strict=True):
        left = [_ids(next(loader)) for _ in range(12)]
        broken = loader.clips.broken
        loader.close()
        for row in range(4):  # a stream each: row r of every batch
            before = [clips[4 * n + row] for n in range(60)]
            assert [ids[row] for ids in left] == [c for c in before if c[0] != 5][:12]
        if any(episode == 5 for episode, _ in clips[: 4 * 12]):
            lost += 1
            (reason,) = broken
            assert "5.mp4" in reason
    assert lost


def test_one_pass_without_overlap_all_episodes_first(config) -> None:
    batches = list(iterate_once(config, batch_size=4, split="all", with_actions=True))
    pairs = [pair for b in batches for pair in _ids(b)]
    assert pairs == [
        *[(e, 0) for e in range(5)],
        *[(e, 4) for e in range(5)],
        *[(0, 8), (1, 8), (3, 8)],
    ]
    assert [len(b) for b in batches] == [4, 4, 4, 1] and batches[0].actions.shape == (4, 3)
    limited = list(iterate_once(config, batch_size=4, split="all", limit=6))
    assert [pair for b in limited for pair in _ids(b)] == pairs[:6]


def test_one_pass_over_pieces_shares_no_frame(tmp_path, film) -> None:
    film(tmp_path / "a.mp4", range(100))
    config = DataConfig(
        path=tmp_path,
        frames_per_clip=4,
        scene_cut_threshold=0,
        cache_mb=8 * 10.5 * 3 * 32 * 80 / 1e6,
    )
    starts = [s for b in iterate_once(config, batch_size=8, split="all") for _, s in _ids(b)]
    frames = [s + i for s in starts for i in range(4)]
    assert len(frames) == len(set(frames)) and len(starts) >= 13 and max(frames) <= 99


@pytest.mark.parametrize("most", [100, 30, 9, 4, 1])
@pytest.mark.parametrize(
    ("frames", "cuts", "expected"),
    [
        (10, [], [0, 4]),
        (10, [3], [3]),
        (12, [5], [0, 5]),
        (8, [4], [0, 4]),
        (30, [9, 11, 24], [0, 4, 11, 15, 19, 24]),
        (3, [], []),
    ],
)
def test_clips_of_one_pass_do_not_depend_on_the_segments_that_are_decoded(
    frames, cuts, expected, most
) -> None:
    """Cases by hand, clips of 4 frames: packed from the left within each scene."""
    made = segments(7, frames, clip_span=4, most_frames=most)
    cut = np.array(cuts, np.int64)
    there = {p: cut[(cut > p.first) & (cut < p.stop)] - p.first for p in made}
    clips = SimpleNamespace(
        segments=made,
        span=lambda episode: 4,
        decoded=lambda p: Decoded(np.zeros((p.stop - p.first, 3, 1, 1), np.uint8), there[p]),
    )
    assert [start for _, start in _rounds(clips)] == expected


@pytest.mark.parametrize("frames", [1000, 60, 18, 10, 4])
def test_one_pass_and_its_horizon_do_not_depend_on_memory(tmp_path, scene_set, frames) -> None:
    path = scene_set(tmp_path / "set", [40, 50, 41])
    config = DataConfig(path=path, frames_per_clip=8, split="all")
    whole = [_ids(b) for b in iterate_once(config, batch_size=4, split="all")]
    clips = ClipSet(config)
    small = replace(config, cache_mb=8 * frames * 3 * clips.height * clips.width / 1e6)
    assert [_ids(b) for b in iterate_once(small, batch_size=4, split="all")] == whole
    assert _longest_horizon(ClipSet(small), 2) == _longest_horizon(clips, 2)


def test_held_out_episodes_are_never_trained_on(config) -> None:
    config = replace(config, split="train", holdout=0.4)
    trained = {e for e, _ in _take(ClipLoader(config, batch_size=4, seed=0), 30)}
    held = {e for b in iterate_once(config, batch_size=4) for e, _ in _ids(b)}
    assert trained and held and not trained & held


def test_actions_are_checked_at_the_call(tmp_path, scene_set) -> None:
    path = scene_set(tmp_path / "set", [9, 9], actions=False)
    config = DataConfig(path=path, frames_per_clip=4, split="all", workers=0)
    with pytest.raises(DataError, match="no action column"):
        iterate_once(config, batch_size=2, with_actions=True, split="all")
    with pytest.raises(DataError, match="no action column"):
        ClipLoader(config, batch_size=2, seed=0, with_actions=True)
    assert next(ClipLoader(config, batch_size=2, seed=0)).actions is None
