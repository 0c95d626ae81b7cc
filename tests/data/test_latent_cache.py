"""The latent cache: equal to encoding on the fly, resumable, shared by ranks, never of other data."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from colaworld.data import latent_cache, latent_writer
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.latent_cache import LatentCache
from colaworld.data.latent_writer import Written, write_latents
from colaworld.data.loader import ClipLoader

LENGTHS = [12, 15, 9, 14, 11, 3]  # the last is shorter than a clip


def per_frame(frames: torch.Tensor) -> torch.Tensor:
    """A tokenizer without temporal stride: [n, T, 3, 20, 24] -> [n, 4, T, 5, 6]."""
    x = F.avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, frames.shape[:2])
    return torch.cat([x, x.mean(2, keepdim=True).sqrt()], dim=2).transpose(1, 2) * 3 - 1


def per_clip(frames: torch.Tensor) -> torch.Tensor:
    """One with a stride of 2: latent k is of frames 2 k - 1 and 2 k, and of the first."""
    x = per_frame(frames)
    later = x[:, :, 1:].unflatten(2, (-1, 2)).mean(3)
    return torch.cat([x[:, :, :1], later], dim=2) + x[:, :, :1] / 7


@pytest.fixture
def config(tmp_path, scene_set) -> DataConfig:
    path = scene_set(tmp_path / "set", LENGTHS)
    return DataConfig(path=path, frames_per_clip=5, split="all", workers=0)


def _write(root, config, encode=per_frame, stride=1, **options) -> Written:
    options = {"tokenizer": "toy 1", "shard_mb": 0.005, "batch_size": 4, **options}
    return write_latents(root, ClipSet(config), encode, temporal_stride=stride, **options)


def _pixels(batch) -> torch.Tensor:
    return batch.frames.float().div_(255)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("encode", "stride"), [(per_frame, 1), (per_clip, 2)])
def test_a_loader_gives_what_encoding_on_the_fly_gives(config, tmp_path, encode, stride, dtype):
    done = _write(tmp_path / "cache", config, encode, stride, dtype=dtype)
    assert done.complete and done.shards > 3 and done.left_out == 0
    cache = LatentCache.open(tmp_path / "cache", ClipSet(config), tokenizer="toy 1")
    assert len(cache) == done.entries == (61 if stride == 1 else 41)
    loader = ClipLoader(config, batch_size=4, seed=0, latents=cache)
    plain = ClipLoader(config, batch_size=4, seed=0)
    for _ in range(15):  # more than an epoch of 41 clips
        batch, bare = next(loader), next(plain)
        assert torch.equal(batch.frames, bare.frames) and torch.equal(batch.start, bare.start)
        assert bare.latents is None
        assert torch.equal(batch.latents, encode(_pixels(batch)).to(getattr(torch, dtype)))
    error = (batch.latents.float() - encode(_pixels(batch))).abs() / encode(_pixels(batch)).abs()
    assert error.max() <= {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype]


@pytest.mark.parametrize(("stride", "fps"), [(2, None), (1, "half"), (1, "odd")])
def test_strided_and_resampled_clips(config, tmp_path, stride, fps) -> None:
    rate = ClipSet(config).episodes[0].fps
    rates = {None: None, "half": rate / 2, "odd": rate / 1.5}
    config = replace(config, stride=stride, fps=rates[fps], frames_per_clip=3)
    for encode, r in ((per_frame, 1), (per_clip, 2)):
        root = tmp_path / f"cache {r}"
        _write(root, config, encode, r)
        cache = LatentCache.open(root, ClipSet(config), tokenizer="toy 1")
        loader = ClipLoader(config, batch_size=6, seed=1, latents=cache)
        for _ in range(6):
            batch = next(loader)
            assert torch.equal(batch.latents, encode(_pixels(batch)))


def test_frames_serve_clips_of_any_length(config, tmp_path) -> None:
    _write(tmp_path, config)
    longer = replace(config, frames_per_clip=9)
    cache = LatentCache.open(tmp_path, ClipSet(longer), tokenizer="toy 1")
    batch = next(ClipLoader(longer, batch_size=4, seed=0, latents=cache))
    assert torch.equal(batch.latents, per_frame(_pixels(batch)))
    assert not cache.has(0, 4) and cache.has(0, 3)  # 12 frames
    with pytest.raises(KeyError, match="no latents of episode 0 from frame 4"):
        cache.clip(0, 4)


def test_shorter_clips_need_the_shorter_episodes(config, tmp_path) -> None:
    longer = replace(config, frames_per_clip=10)  # the episode of 9 frames is left out
    _write(tmp_path, longer)
    with pytest.raises(DataError, match="for clips of 10 frames and has no latents of 1 episodes"):
        LatentCache.open(tmp_path, ClipSet(config), tokenizer="toy 1")
    with pytest.raises(DataError, match="frames_per_clip 10, 5 was asked"):
        _write(tmp_path, config)
    assert LatentCache.open(
        tmp_path, ClipSet(replace(config, frames_per_clip=11)), tokenizer="toy 1"
    )


def test_shards_of_another_key_are_not_taken_over(config, tmp_path) -> None:
    _write(tmp_path, config)
    (tmp_path / "key.json").unlink()
    with pytest.raises(DataError, match=r"holds shards but no key\.json"):
        _write(tmp_path, config, lambda x: 2 * per_frame(x), tokenizer="toy 2")


def test_part_of_a_set_may_use_a_cache_of_all(config, tmp_path) -> None:
    _write(tmp_path, config)
    for split in ("train", "heldout"):
        part = replace(config, split=split, holdout=0.4)
        cache = LatentCache.open(tmp_path, ClipSet(part), tokenizer="toy 1")
        batch = next(ClipLoader(part, batch_size=4, seed=0, latents=cache))
        assert torch.equal(batch.latents, per_frame(_pixels(batch)))
    _write(tmp_path / "train", replace(config, split="train", holdout=0.4))
    with pytest.raises(DataError, match="split train -> heldout"):
        LatentCache.open(tmp_path / "train", ClipSet(part), tokenizer="toy 1")


def test_labels_leave_no_latent_out(config, tmp_path) -> None:
    """The key does not tell of them, and training without them would see a few episodes alone."""
    _write(tmp_path, replace(config, labels=10))
    cache = LatentCache.open(tmp_path, ClipSet(config), tokenizer="toy 1")
    every = ClipSet(config)
    assert {int(e) for e in cache._runs[:, 0]} == {p.episode for p in every.segments}


def test_every_other_clip(config, tmp_path) -> None:
    done = _write(tmp_path, config, per_clip, 2, every=3)
    cache = LatentCache.open(tmp_path, ClipSet(config), tokenizer="toy 1")
    assert done.entries == len(cache) == sum(-(-(n - 4) // 3) for n in LENGTHS[:5])
    loader = ClipLoader(config, batch_size=3, seed=0, latents=cache)
    for _ in range(10):
        batch = next(loader)
        assert (batch.start % 3 == 0).all()
        assert torch.equal(batch.latents, per_clip(_pixels(batch)))
    # Another order of clips than without a cache: a resumed run must not mix the two up.
    state = loader.state_dict()
    with pytest.raises(ValueError, match="latents=every 3, this loader has latents=None"):
        ClipLoader(config, batch_size=3, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="every: a tokenizer without temporal stride"):
        _write(tmp_path / "other", config, every=3)


def test_a_run_may_go_on_with_a_cache_of_all_clips(config, tmp_path) -> None:
    _write(tmp_path, config)
    cache = LatentCache.open(tmp_path, ClipSet(config), tokenizer="toy 1")
    plain = ClipLoader(config, batch_size=4, seed=0)
    next(plain)
    old = {k: v for k, v in plain.state_dict().items() if k != "latents"}  # of an earlier release
    expected = next(plain)
    loader = ClipLoader(config, batch_size=4, seed=0, latents=cache)
    loader.load_state_dict(old)
    assert torch.equal(next(loader).frames, expected.frames)


@pytest.mark.parametrize(("encode", "stride"), [(per_frame, 1), (per_clip, 2)])
def test_films_with_cuts_and_broken_pieces(tmp_path, film, encode, stride) -> None:
    film(tmp_path / "set" / "a.mp4", [0b0000000011] * 10 + [0b1111110011] * 10)
    film(tmp_path / "set" / "b.mp4", range(12))
    (tmp_path / "set" / "c.mp4").write_bytes(b"gone")
    config = DataConfig(
        path=tmp_path / "set", frames_per_clip=5, split="all", workers=1, max_broken_share=0.5
    )

    def cropped(frames):
        return encode(frames[..., :20, :24])

    done = _write(tmp_path / "cache", config, cropped, stride)
    assert done.left_out == (0 if stride == 1 else 4)  # starts 6..9 see both scenes
    cache = LatentCache.open(tmp_path / "cache", ClipSet(config), tokenizer="toy 1")
    loader = ClipLoader(config, batch_size=3, seed=0, latents=cache)
    for _ in range(12):
        batch = next(loader)
        assert torch.equal(batch.latents, cropped(_pixels(batch)))
    loader.close()


def test_latents_of_films_that_were_read_otherwise_are_refused(config, tmp_path, film) -> None:
    """Films that a release of before did not turn have the size that turned ones have."""
    film(tmp_path / "films" / "a.mp4", range(12))
    films = replace(config, path=tmp_path / "films")

    def cropped(frames):
        return per_frame(frames[..., :20, :24])

    for data, names_it in ((films, True), (config, False)):  # LeRobot's are never turned
        root = tmp_path / str(names_it)
        _write(root, data, cropped)
        header = json.loads((root / "key.json").read_text())
        assert ("reading" in header["key"]["data"]) == names_it
    header = json.loads((tmp_path / "True" / "key.json").read_text())
    del header["key"]["data"]["reading"], header["sha256"]
    (tmp_path / "True" / "key.json").write_text(json.dumps(header))
    for attempt in (
        lambda: LatentCache.open(tmp_path / "True", ClipSet(films), tokenizer="toy 1"),
        lambda: _write(tmp_path / "True", films, cropped),
    ):
        with pytest.raises(DataError, match=r"(?s)reading None -> 2: turned.*encode again"):
            attempt()


def test_pieces_of_long_films_join(config, tmp_path) -> None:
    """A small decoding cache cuts episodes into segments; what is stored does not show it."""
    small = replace(config, cache_mb=8 * 7 * 3 * 20 * 24 / 1e6)  # 7 frames in a segment
    assert len(ClipSet(small).segments) > 2 * len(ClipSet(config).segments)
    for encode, stride in ((per_frame, 1), (per_clip, 2)):
        _write(tmp_path / f"a{stride}", config, encode, stride, batch_size=1)
        _write(tmp_path / f"b{stride}", small, encode, stride, batch_size=3)
        assert _files(tmp_path / f"a{stride}") == _files(tmp_path / f"b{stride}")


def _files(root) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(root.iterdir())}


def test_two_ranks_write_what_one_writes(config, tmp_path) -> None:
    _write(tmp_path / "one", config)
    first = _write(tmp_path / "two", config, rank=0, world_size=2)
    assert not first.complete
    with pytest.raises(DataError, match=r"not complete \(\d of \d shards\).*goes on where"):
        LatentCache.open(tmp_path / "two", ClipSet(config), tokenizer="toy 1")
    second = _write(tmp_path / "two", config, rank=1, world_size=2)
    assert second.complete and first.shards + second.shards == len(_files(tmp_path / "one")) - 2
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_it_goes_on_where_it_stopped(config, tmp_path) -> None:
    _write(tmp_path / "whole", config)
    steps: list[tuple[int, int]] = []

    def stop(done, total):
        steps.append((done, total))
        if len(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "cache", config, progress=stop)
    seen = 0

    def counted(frames):
        nonlocal seen
        seen += len(frames)
        return per_frame(frames)

    # With another number of ranks, and another size of shards: that of the folder holds.
    _write(tmp_path / "cache", config, counted, rank=0, world_size=3, shard_mb=1.0)
    _write(tmp_path / "cache", config, counted, rank=1, world_size=3)
    _write(tmp_path / "cache", config, counted, rank=2, world_size=3)
    assert seen == 61 - steps[1][0] and steps[1][1] == 61
    assert _files(tmp_path / "cache") == _files(tmp_path / "whole")
    again = _write(tmp_path / "cache", config, counted, progress=lambda *_: None)
    assert again == Written(0, 0, 0, True)


def test_a_killed_process_leaves_only_whole_shards(config, tmp_path) -> None:
    """SIGKILL in the middle of writing a shard; then the rest is written."""
    program = f"""
        import os, signal
        from pathlib import Path
        import torch
        from colaworld.data import latent_writer
        from colaworld.data.clips import ClipSet, DataConfig

        calls = 0
        save = latent_writer.save_file
        def killed(tensors, path, **options):
            global calls
            calls += 1
            save(tensors, path, **options)
            if calls == 3:
                Path(path).write_bytes(Path(path).read_bytes()[:-100])
                os.kill(os.getpid(), signal.SIGKILL)
        latent_writer.save_file = killed
        config = DataConfig(path=Path({str(config.path)!r}), frames_per_clip=5, split="all", workers=0)
        def encode(frames):
            x = torch.nn.functional.avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, frames.shape[:2])
            x = torch.cat([x, x.mean(2, keepdim=True).sqrt()], dim=2).transpose(1, 2)
            return x * 3 - 1
        latent_writer.write_latents({str(tmp_path / "cache")!r}, ClipSet(config), encode,
            tokenizer="toy 1", temporal_stride=1, shard_mb=0.005, batch_size=4)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    shards = sorted(p.name for p in (tmp_path / "cache").glob("shard_*"))
    assert shards == ["shard_000000.safetensors", "shard_000001.safetensors"]
    with pytest.raises(DataError, match="not complete"):
        LatentCache.open(tmp_path / "cache", ClipSet(config), tokenizer="toy 1")
    _write(tmp_path / "cache", config)
    _write(tmp_path / "whole", config)
    assert _files(tmp_path / "cache") == _files(tmp_path / "whole")


def test_a_full_disk_is_said_and_survived(config, tmp_path, monkeypatch) -> None:
    save, calls = latent_writer.save_file, 0

    def full(tensors, path, **options):
        nonlocal calls
        calls += 1
        if calls == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, **options)

    monkeypatch.setattr(latent_writer, "save_file", full)
    with pytest.raises(
        DataError, match=r"shard_000002.*needs 0\.0 MB.*No space left.*run the same"
    ):
        _write(tmp_path / "cache", config)
    names = sorted(p.name for p in (tmp_path / "cache").iterdir())
    assert names == ["key.json", "shard_000000.safetensors", "shard_000001.safetensors"]
    _write(tmp_path / "cache", config)
    assert LatentCache.open(tmp_path / "cache", ClipSet(config), tokenizer="toy 1")


def test_a_stale_key_says_what_changed(config, tmp_path, scene_set) -> None:
    root = tmp_path / "cache"
    _write(root, config, per_clip, 2)
    hashes = json.loads((root / "key.json").read_text())["hashes"]
    other_size = replace(config, height=10, width=12)
    other_clips = replace(config, frames_per_clip=3)
    cases = [
        (
            other_size,
            "toy 1",
            f"transform changed (hash {hashes['transform']} -> ",
            "height 20 -> 10",
        ),
        (other_clips, "toy 1", f"data changed (hash {hashes['data']} -> ", "'frames_per_clip': 3"),
        (config, "toy 2", f"tokenizer changed (hash {hashes['tokenizer']} -> ", "toy 1 -> toy 2"),
    ]
    for changed, tokenizer, *told in cases:
        with pytest.raises(DataError) as error:
            LatentCache.open(root, ClipSet(changed), tokenizer=tokenizer)
        for text in told:
            assert text in str(error.value)
        assert str(error.value).count("changed (hash") == 1, "it names parts that did not change"
    with pytest.raises(DataError, match=r"tokenizer changed(.|\n)*encode again into another"):
        _write(root, config, per_clip, 2, tokenizer="toy 2")
    with pytest.raises(DataError, match="stored with dtype 'float32', 'float16' was asked"):
        _write(root, config, per_clip, 2, dtype="float16")
    with pytest.raises(DataError, match="stored with layout 'clip', 'frame' was asked"):
        _write(root, config)
    # The same names and lengths, but other files.
    scene_set(config.path, LENGTHS[1:], overwrite=True)
    with pytest.raises(DataError, match=r"data changed(.|\n)*episodes 6 -> 5"):
        LatentCache.open(root, ClipSet(config), tokenizer="toy 1")


def test_what_does_not_change_a_latent_does_not_make_it_stale(config, tmp_path) -> None:
    """Another place, a camera named instead of meant, other threads, memory or seeds."""
    _write(tmp_path / "cache", config)
    moved = config.path.rename(tmp_path / "moved")
    named = replace(config, path=moved, camera="observation.images.main", workers=2, cache_mb=1.0)
    (tmp_path / "cache").rename(tmp_path / "there")
    cache = LatentCache.open(tmp_path / "there", ClipSet(named), tokenizer="toy 1")
    loader = ClipLoader(named, batch_size=4, seed=0)
    loader.latents = cache
    batch = next(loader)
    loader.close()
    assert torch.equal(batch.latents, per_frame(_pixels(batch)))


@pytest.mark.parametrize("harm", ["truncated", "gone", "header"])
def test_a_damaged_shard_is_named_and_repaired(config, tmp_path, harm) -> None:
    _write(tmp_path / "cache", config)
    _write(tmp_path / "whole", config)
    path = tmp_path / "cache" / "shard_000001.safetensors"
    if harm == "gone":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(
        DataError, match=r"shard_000001\.safetensors: damaged.*only what is missing"
    ):
        cache = LatentCache.open(tmp_path / "cache", ClipSet(config), tokenizer="toy 1")
        for start in range(8):  # a header of the right length is noticed when it is read
            cache.clip(1, start)
    done = _write(tmp_path / "cache", config)
    assert done.shards == 1
    assert _files(tmp_path / "cache") == _files(tmp_path / "whole")


def test_a_damaged_index_or_key_is_named(config, tmp_path) -> None:
    _write(tmp_path, config)
    index, key = tmp_path / "index.parquet", tmp_path / "key.json"
    whole = index.read_bytes()
    index.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"index\.parquet: damaged"):
        LatentCache.open(tmp_path, ClipSet(config), tokenizer="toy 1")
    index.write_bytes(whole)
    key.write_text(key.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(DataError, match=r"key\.json: not the key.*format 99, this release reads 1"):
        LatentCache.open(tmp_path, ClipSet(config), tokenizer="toy 1")
    with pytest.raises(DataError, match="no latent cache there"):
        LatentCache.open(tmp_path / "none", ClipSet(config), tokenizer="toy 1")
    key.write_text(key.read_text().replace('"format": 99', '"format": 1').replace("shape", "form"))
    with pytest.raises(DataError, match=r"key\.json: not the key.*'shape'"):
        _write(tmp_path, config)
    key.unlink()
    with pytest.raises(DataError, match=r"holds shards but no key\.json"):
        _write(tmp_path, config, tokenizer="toy 2")


def test_only_the_same_split_goes_on(config, tmp_path) -> None:
    """One shard holds all: a train split in its place would pass for the whole set."""
    _write(tmp_path, config, shard_mb=1)
    for name in ("index.parquet", "shard_000000.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"data\.split 'all', 'train' was asked"):
        _write(tmp_path, replace(config, split="train", holdout=0.4), shard_mb=1)
    assert _write(tmp_path, config, shard_mb=1).complete


def test_values_that_do_not_fit_the_dtype_are_refused(config, tmp_path) -> None:
    def large(frames):
        return per_frame(frames) * 1e6

    with pytest.raises(
        DataError, match=r"episode 000000 from frame 0.*not finite as torch.float16"
    ):
        _write(tmp_path, config, large, dtype="float16")
    _write(tmp_path, config, large, dtype="bfloat16")


def test_reading_from_many_threads(config, tmp_path) -> None:
    _write(tmp_path, config)
    clips = ClipSet(config)
    cache = LatentCache.open(tmp_path, clips, tokenizer="toy 1")
    places = [(p.episode, s) for p in clips.segments for s in range(p.starts)] * 8
    alone = {
        place: LatentCache.open(tmp_path, clips, tokenizer="toy 1").clip(*place)
        for place in set(places)
    }
    with ThreadPoolExecutor(8) as pool:
        for place, made in zip(places, pool.map(lambda p: cache.clip(*p), places), strict=True):
            assert torch.equal(made, alone[place])


def test_hashing_a_shard_keeps_no_other_waiting(config, tmp_path, monkeypatch) -> None:
    """And one that several want at once is hashed once."""
    _write(tmp_path / "cache", config)
    cache = LatentCache.open(tmp_path / "cache", ClipSet(config), tokenizer="toy 1")
    opened, begun, go = [], threading.Event(), threading.Event()
    check = latent_cache.check_shard

    def slow(path, key, *, verify):
        opened.append(path.name)
        if path.name == "shard_000000.safetensors":
            begun.set()
            assert go.wait(60)
        return check(path, key, verify=verify)

    monkeypatch.setattr(latent_cache, "check_shard", slow)
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(cache._map, 0) for _ in range(2)]
        try:
            assert begun.wait(60)
            assert len(pool.submit(cache._map, 1).result(timeout=60)) > 0
        finally:
            go.set()
        assert first[0].result() is first[1].result()
    assert sorted(opened) == ["shard_000000.safetensors", "shard_000001.safetensors"]


def test_bad_arguments_are_named(config, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"dtype: expected one of float32.*got 'int8'"):
        _write(tmp_path, config, dtype="int8")
    with pytest.raises(ValueError, match=r"0 <= rank < world_size.*rank=2"):
        _write(tmp_path, config, rank=2)
    for size in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"shard_mb > 0.*shard_mb=(0|nan|inf)"):
            _write(tmp_path, config, shard_mb=size)
    with pytest.raises(ValueError, match=r"encode: expected latents \[\d, C, 1, h, w\]"):
        _write(tmp_path, config, lambda frames: frames.flatten(1))
