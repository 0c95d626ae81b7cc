"""Clips in batches: an endless shuffled stream that resumes exactly, and one pass for evaluation.

Not here: what a clip is (clips.py, windows.py) or how frames are read (sources/, video_reader.py).

The order is a function of (seed, epoch, position) alone; threads only fetch ahead of it:

    epoch      all segments of this rank in a random order, cut into blocks that fit the cache
    block      all clips of its segments (every start once) in a random order
    position   how many clips of the epoch were looked at; those that cross a cut are passed over

So `state_dict()` is two numbers, and resuming decodes nothing that lies before.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ActionSpec, ClipBatch
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.windows import Segment, disjoint_starts

log = logging.getLogger(__name__)
_BATCHES_AHEAD = 3  # finished batches that wait for the training step


class LatentSource(Protocol):
    """Latents of clips, by episode and start on its clock; latent_cache.py has them on disk."""

    @property
    def order(self) -> str | None:
        """What the order of clips depends on, since some are not there; None: all are."""
        ...

    def has(self, episode: int, start: int) -> bool:
        """Whether there are latents of the clip. Those without are passed over."""
        ...

    def clip(self, episode: int, start: int) -> Tensor:
        """[C, T', h, w]."""
        ...


@dataclass(frozen=True)
class ShuffleBlock:
    segments: list[Segment]
    first: int  # clips of the epoch before this block
    size: int  # clips in it


class ClipLoader:
    """Endless iterator of ClipBatch, the same for the same (config, batch_size, seed, rank).

    Ranks read disjoint segments. `with_actions` adds real actions; DataError if
    there are none. `latents`, of this loader's `clips`, fills each batch's latents; it may be set
    until the first batch is asked for. `close()` stops the threads (they are daemons, so a process can end without it).
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        with_actions: bool = False,
        latents: LatentSource | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "ClipLoader: expected batch_size >= 1 and 0 <= rank < world_size, got "
                f"batch_size={batch_size}, rank={rank}, world_size={world_size}"
            )
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.rank, self.world_size, self.with_actions = rank, world_size, with_actions
        self.latents = latents
        self.clips = ClipSet(config)
        if len(self.clips.segments) < world_size:
            raise DataError(
                f"{config.path}: {len(self.clips.segments)} episodes cannot be shared by "
                f"{world_size} ranks; use fewer processes or more episodes"
            )
        if with_actions:
            self.clips.require_actions()
        self._epoch = self._position = 0
        self._plan: tuple[int, list[ShuffleBlock]] | None = None  # of one epoch
        self._order: tuple[tuple[int, int], np.ndarray] | None = None  # of one block
        self._fetcher: _Fetcher | None = None

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(3, height, width) of every frame."""
        return 3, self.clips.height, self.clips.width

    @property
    def action_spec(self) -> ActionSpec | None:
        return self.clips.action_spec

    def __len__(self) -> int:
        """Clips in an epoch of this rank's share, on average, before cuts."""
        return sum(p.starts for p in self.clips.segments) // self.world_size

    def __iter__(self) -> ClipLoader:
        return self

    def __next__(self) -> ClipBatch:
        if self.config.workers == 0:
            batch, self._epoch, self._position = self._build(self._epoch, self._position)
            return batch
        if self._fetcher is None:
            self._fetcher = _Fetcher(self, self._epoch, self._position)
        batch, self._epoch, self._position = self._fetcher.next()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins: a few plain values, ready for JSON."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
            "clips": sum(p.starts for p in self.clips.segments),
            "latents": None if self.latents is None else self.latents.order,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch that was handed out when `state` was taken.

        Raises ValueError if the order would not be the same: another seed, sharding or data set.
        """
        now = self.state_dict()
        for name in ("seed", "rank", "world_size", "clips", "latents"):
            if state.get(name) != now[name]:
                raise ValueError(
                    f"ClipLoader: the state was taken with {name}={state.get(name)}, this loader "
                    f"has {name}={now[name]}; resume with the same data, seed and processes"
                )
        self.close()
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def close(self) -> None:
        """Stop the threads. The loader can go on afterwards, from where it was."""
        if self._fetcher is not None:
            self._fetcher.stop()
            self._fetcher = None

    def _blocks(self, epoch: int) -> list[ShuffleBlock]:
        if self._plan is not None and self._plan[0] == epoch:
            return self._plan[1]
        segments = self.clips.segments
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(segments))
        mine = [segments[i] for i in order[self.rank :: self.world_size]]
        capacity = self.config.cache_mb * 1e6
        everything = sum(self.clips.segment_bytes(p) for p in mine)
        budget = capacity if everything <= capacity else capacity / 2  # room to fetch the next one
        blocks: list[ShuffleBlock] = []
        current: list[Segment] = []
        held = first = 0
        for segment in mine:
            size = self.clips.segment_bytes(segment)
            window = self.config.shuffle_window
            if current and (len(current) >= window if window else held + size > budget):
                blocks.append(ShuffleBlock(current, first, sum(p.starts for p in current)))
                first += blocks[-1].size
                current, held = [], 0
            current.append(segment)
            held += size
        blocks.append(ShuffleBlock(current, first, sum(p.starts for p in current)))
        self._plan = epoch, blocks
        return blocks

    def _block_order(self, epoch: int, number: int, block: ShuffleBlock) -> np.ndarray:
        if self._order is None or self._order[0] != (epoch, number):
            rng = np.random.default_rng([self.seed, 2, epoch, self.rank, number])
            self._order = (epoch, number), rng.permutation(block.size)
        return self._order[1]

    def _walk(self, epoch: int, position: int) -> Iterator[tuple[int, int, Segment, int]]:
        """(epoch, position after it, segment, start) from a position on, without end."""
        while True:
            for number, block in enumerate(self._blocks(epoch)):
                if position >= block.first + block.size:
                    continue
                order = self._block_order(epoch, number, block)
                edges = np.cumsum([0] + [p.starts for p in block.segments])
                owners = np.searchsorted(edges, order[position - block.first :], "right") - 1
                for owner, clip in zip(owners, order[position - block.first :], strict=True):
                    segment = block.segments[owner]
                    position += 1
                    yield epoch, position, segment, segment.first + int(clip - edges[owner])
            epoch, position = epoch + 1, 0

    def _build(
        self, epoch: int, position: int, walk: Iterator[Any] | None = None
    ) -> tuple[ClipBatch, int, int]:
        """The batch that begins at a position, and the position after it."""
        clips, size = self.clips, self.batch_size
        frames = np.empty((size, self.config.frames_per_clip, *self.frame_shape), np.uint8)
        chosen: list[tuple[Segment, int]] = []
        passed = 0
        for step in walk or self._walk(epoch, position):
            epoch, position, segment, start = step
            stored = self.latents is None or self.latents.has(segment.episode, start)
            if stored and clips.clip(clips.decoded(segment), segment, start, frames[len(chosen)]):
                chosen.append((segment, start))
                passed = 0
                if len(chosen) == size:
                    break
            else:
                passed += 1
                if passed > len(self) + self.batch_size:
                    raise DataError(
                        f"{self.config.path}: no clip of {self.config.frames_per_clip} frames "
                        "without a scene cut was found in a whole pass; lower frames_per_clip or "
                        "stride, or set scene_cut_threshold to 0"
                        + ("" if self.latents is None else f"; or {self.latents} has none of them")
                    )
        return _batch(clips, frames, chosen, self.with_actions, self.latents), epoch, position


def _batch(
    clips: ClipSet,
    frames: np.ndarray,
    chosen: list[tuple[Segment, int]],
    with_actions: bool,
    latents: LatentSource | None = None,
) -> ClipBatch:
    actions = None
    if with_actions:
        actions = torch.from_numpy(np.stack([clips.clip_actions(p.episode, s) for p, s in chosen]))
    return ClipBatch(
        frames=torch.from_numpy(frames),
        episode=torch.tensor([p.episode for p, _ in chosen], dtype=torch.int64),
        start=torch.tensor([clips.frame_index(p.episode, s) for p, s in chosen], dtype=torch.int64),
        actions=actions,
        latents=None
        if latents is None
        else torch.stack([latents.clip(p.episode, s) for p, s in chosen]),
        fps=torch.tensor([clips.fps(p.episode) for p, _ in chosen]),
    )


class _Fetcher:
    """One thread that builds batches in order, and a pool that decodes what they will need."""

    def __init__(self, loader: ClipLoader, epoch: int, position: int) -> None:
        self._stop = threading.Event()
        self._ready: queue.Queue[Any] = queue.Queue(_BATCHES_AHEAD)
        self._pool = ThreadPoolExecutor(loader.config.workers, thread_name_prefix="decode")
        self._thread = threading.Thread(
            target=self._run, args=(loader, epoch, position), name="clips", daemon=True
        )
        self._thread.start()

    def _run(self, loader: ClipLoader, epoch: int, position: int) -> None:
        walk = self._look_ahead(loader, epoch, position)
        try:
            while not self._stop.is_set():
                made = loader._build(epoch, position, walk)
                _, epoch, position = made
                self._put(made)
        except BaseException as error:  # handed to whoever asks for the next batch
            self._put(error)

    def _look_ahead(
        self, loader: ClipLoader, epoch: int, position: int
    ) -> Iterator[tuple[int, int, Segment, int]]:
        """The walk, with the segments of the next clips decoded in the background."""
        from collections import deque

        walk = loader._walk(epoch, position)
        ahead: deque[tuple[int, int, Segment, int]] = deque()
        reach = 2 * loader.batch_size
        for step in walk:
            ahead.append(step)
            if not self._stop.is_set():
                segment = step[2]
                if (segment.episode, segment.first) not in loader.clips._cache:
                    self._pool.submit(_decode_quietly, loader.clips, segment)
            if len(ahead) > reach:
                yield ahead.popleft()

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def next(self) -> tuple[ClipBatch, int, int]:
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # and again for whoever asks once more
            raise item
        return item

    def stop(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._thread.join()


def _decode_quietly(clips: ClipSet, segment: Segment) -> None:
    """Fill the cache. An error is left for the batch that needs the segment: it decodes it again."""
    try:
        clips.decoded(segment)
    except DataError as error:
        log.debug("while decoding ahead: %s", error)


def iterate_once(
    config: DataConfig,
    *,
    batch_size: int,
    limit: int | None = None,
    with_actions: bool = False,
    split: Literal["train", "heldout", "all"] = "heldout",
) -> Iterator[ClipBatch]:
    """Clips that share no frame, once each, always in the same order; for evaluation.

    The first clip of every episode, then the second of every one, and so on, so that a `limit`
    (in clips) still sees as many episodes as it can. The last batch may be smaller.
    Raises DataError at the call, not at the first batch, where a set or its actions cannot be used.
    """
    clips = ClipSet(replace(config, split=split))
    if with_actions:
        clips.require_actions()
    return _iterate(clips, batch_size, limit, with_actions)


def _iterate(
    clips: ClipSet, batch_size: int, limit: int | None, with_actions: bool
) -> Iterator[ClipBatch]:
    shape = (clips.config.frames_per_clip, 3, clips.height, clips.width)
    chosen: list[tuple[Segment, int]] = []
    frames = np.empty((batch_size, *shape), np.uint8)
    given = 0
    for segment, start in _rounds(clips):
        if limit is not None and given + len(chosen) >= limit:
            break
        if clips.clip(clips.decoded(segment), segment, start, frames[len(chosen)]):
            chosen.append((segment, start))
        if len(chosen) == batch_size:
            yield _batch(clips, frames, chosen, with_actions)
            given += len(chosen)
            frames, chosen = np.empty((batch_size, *shape), np.uint8), []
    if chosen:
        yield _batch(clips, frames[: len(chosen)], chosen, with_actions)


def _rounds(clips: ClipSet) -> Iterator[tuple[Segment, int]]:
    """Round k: the k-th disjoint clip of every segment, first segments of all episodes first."""
    segments = sorted(clips.segments, key=lambda p: (p.first, p.episode))
    last = {p.episode: p.first for p in clips.segments}  # segments come in order
    starts: dict[Segment, list[int]] = {}
    number = 0
    while segments:
        left = []
        for segment in segments:
            if segment not in starts:
                decoded = clips.decoded(segment)
                own = segment.stop - segment.first
                if segment.first != last[segment.episode]:
                    own = segment.starts  # what follows belongs to the next segment
                reach, cuts = clips.span(segment.episode), decoded.cuts[decoded.cuts < own]
                starts[segment] = disjoint_starts(own, reach, cuts) if decoded.usable else []
            if number < len(starts[segment]):
                yield segment, segment.first + starts[segment][number]
            if number + 1 < len(starts[segment]):
                left.append(segment)
        segments, number = left, number + 1
