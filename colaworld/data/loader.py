"""Clips in batches: an endless shuffled stream that resumes exactly, and one pass for evaluation.

Not here: what a clip is (clips.py, windows.py), which follows which (order.py), how frames are read
(sources/, video_reader.py).

A batch of all processes holds the next slots of the run: row i on rank r of W is slot i * W + r of it. A
slot's clip is the next one of its stream that crosses no cut. So the clips of a batch do not depend on
W, and threads only fetch ahead of the order. In a mixture of several sets each has its streams, and
seed and slot say which set is asked. `state_dict()` is two numbers for each stream, and resuming decodes
nothing that lies before.
"""

from __future__ import annotations

import logging
import queue
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ActionSpec, ClipBatch
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.order import Place, StreamOrder
from colaworld.data.windows import Segment, disjoint_starts

log = logging.getLogger(__name__)
Positions = dict[int, dict[str, tuple[int, int]]]  # stream -> set -> epoch and position
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


class ClipLoader:
    """Endless iterator of ClipBatch, this process's rows of the batches of all.

    The clips of a batch are the same for the same (config, seed, streams), whatever `batch_size` and
    `world_size` deal them out. `with_actions` adds real actions; DataError if there are none.
    `latents`, of this loader's `clips`, fills each batch's latents; it may be set until the first batch
    is asked for. `close()` stops the threads (they are daemons, so a process can end without it).

    `sets` are the data sets by name; an episode number of a batch counts through all of them, each
    beginning at its `first_episode`.

    Args:
        config: the data; its `streams`, None: the largest divisor of batch_size that the segments of
            the set can fill.
        batch_size: clips of a batch, over all processes.
        seed: decides the order.
        rank: of this process; it reads every world_size-th stream, in a new run from stream `rank` on.
        world_size: how many processes there are; divides batch_size and the number of streams.
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
        if batch_size % world_size:
            raise ValueError(
                f"a batch of {batch_size} clips (training.batch_size) cannot be shared evenly by "
                f"{world_size} processes; set it to a multiple of {world_size}, or start "
                f"{_choice(n for n in range(1, world_size) if batch_size % n == 0)} processes"
            )
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.rank, self.world_size, self.with_actions = rank, world_size, with_actions
        self.latents = latents
        self.sets = _opened(config)
        if latents is not None and len(self.sets) > 1:
            raise ValueError("ClipLoader: latents are of one data set, these are several")
        episodes = [len(clips.source.episodes) for clips in self.sets.values()]
        self.first_episode = dict(zip(self.sets, accumulate([0, *episodes]), strict=False))
        self._use_streams(config.streams or self._most_streams())
        self._slots = 0  # handed out by all processes
        self._at: Positions = {k: dict.fromkeys(self.sets, (0, 0)) for k in self._own(0)}
        self._builder: _Builder | None = None
        self._fetcher: _Fetcher | None = None
        if with_actions:
            for clips in self.sets.values():
                clips.require_actions()
            _check_alike(self.sets, "actions", lambda clips: clips.action_spec)

    @property
    def clips(self) -> ClipSet:
        """The set, or the first of several."""
        return next(iter(self.sets.values()))

    @property
    def usual_fps(self) -> float:
        """Frames per second of most clips."""
        shares = self.config.shares()
        return self.sets[max(shares, key=lambda name: shares[name])].usual_fps

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(3, height, width) of every frame."""
        return 3, self.clips.height, self.clips.width

    @property
    def action_spec(self) -> ActionSpec | None:
        return self.clips.action_spec

    def __len__(self) -> int:
        """Clips in an epoch of this rank's share, on average, before cuts."""
        return sum(clips.count for clips in self.sets.values()) // self.world_size

    def __iter__(self) -> ClipLoader:
        return self

    def __next__(self) -> ClipBatch:
        if self._builder is None:
            self._builder = _Builder(self, self._slots, self._at)
            if self.config.workers:
                self._fetcher = _Fetcher(self._builder, self.config)
        made = self._builder.build() if self._fetcher is None else self._fetcher.next()
        batch, self._slots, self._at = made
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins: a few plain values, ready for JSON. `at` has the epoch and
        position of the streams of this rank, in a mixture by the name of the set; `merge_states` joins
        those of all ranks."""
        clips: Any = {name: one.count for name, one in self.sets.items()}
        places: Any = {
            str(k): {name: list(place) for name, place in at.items()} for k, at in self._at.items()
        }
        shares = None
        if self.config.mixture:
            shares = self.config.shares()
        else:
            (clips,) = clips.values()
            places = {k: at["data"] for k, at in places.items()}
        return {
            "seed": self.seed,
            "clips": clips,
            "latents": None if self.latents is None else self.latents.order,
            **({} if shares is None else {"shares": shares}),
            "streams": self.streams,
            "slots": self._slots,
            "at": places,
        }

    @staticmethod
    def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One state out of those of all ranks, which any number of processes can load that divides
        its streams. ValueError where they do not belong together or some are missing."""
        states = [_converted(state) for state in states]
        merged: dict[str, Any] = {**states[0], "at": {}}
        for state in states:
            for name, value in state.items():
                if name != "at" and value != merged.get(name):
                    raise ValueError(
                        f"ClipLoader: the states of two ranks have {name}={merged.get(name)} and "
                        f"{name}={value}; they are not of one moment of one run"
                    )
            merged["at"] |= state["at"]
        if missing := {str(k) for k in range(merged["streams"])} - merged["at"].keys():
            raise ValueError(
                f"ClipLoader: the states of {len(states)} ranks lack {len(missing)} of "
                f"{merged['streams']} streams (first: {min(missing, key=int)}); merge those of all"
            )
        return merged

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last batch that was handed out when `state` was taken. The number of streams
        is that of the state.

        Raises ValueError if the order would not be the same: another seed or data set; or if the
        streams cannot be shared by this many processes.
        """
        state = _converted(state)
        if state["streams"] != self.streams:
            self._use_streams(state["streams"])
        now = self.state_dict()
        for name in ("seed", "clips", "latents", "shares"):
            if state.get(name) != now.get(name):
                raise ValueError(
                    f"ClipLoader: the state was taken with {name}={state.get(name)}, this loader "
                    f"has {name}={now.get(name)}; resume with the same data and seed"
                )
        slots = int(state["slots"])
        own = self._own(slots)
        if missing := [stream for stream in own if str(stream) not in state["at"]]:
            raise ValueError(
                f"ClipLoader: the state lacks stream {missing[0]} of rank {self.rank}; merge_states "
                "joins those of all ranks"
            )
        self.close()
        self._slots = slots
        self._at = {}
        for k in own:
            at = state["at"][str(k)]
            places = at if self.config.mixture else {"data": at}
            self._at[k] = {name: (int(e), int(p)) for name, (e, p) in places.items()}

    def _own(self, slots: int) -> range:
        """Streams that this rank reads behind `slots` of the run, which another number of processes may
        have handed out."""
        return range((self.rank + slots) % self.world_size, self.streams, self.world_size)

    def close(self) -> None:
        """Stop the threads. The loader can go on afterwards, from where it was."""
        if self._fetcher is not None:
            self._fetcher.stop()
        self._fetcher = self._builder = None

    def _most_streams(self) -> int:
        for streams in range(self.batch_size, 1, -1):
            if self.batch_size % streams == 0:
                for clips in self.sets.values():
                    clips.cut(streams)
                if all(len(clips.segments) >= streams for clips in self.sets.values()):
                    return streams
        return 1

    def _use_streams(self, streams: int) -> None:
        """Cut the set for that many streams. Raises ValueError where they cannot be had."""
        if streams % self.world_size:
            raise ValueError(
                f"the order of clips has {streams} streams, which {self.world_size} processes "
                "cannot share evenly; start "
                f"{_choice(n for n in range(1, streams + 1) if streams % n == 0)} processes, or, in a "
                f"new run, set data.streams to a multiple of {self.world_size}"
            )
        self.streams = streams
        self._orders: dict[str, StreamOrder] = {}
        for name, clips in self.sets.items():
            clips.cut(streams)
            segments = clips.segments
            if len(segments) < streams:
                raise DataError(
                    f"{clips.config.path}: {len(segments)} episodes cannot fill {streams} streams; "
                    "lower data.streams (and the number of processes), or use more episodes"
                )
            self._orders[name] = StreamOrder(
                starts=np.array([p.starts for p in segments], np.int64),
                sizes=np.array([clips.segment_bytes(p) for p in segments], np.int64),
                streams=streams,
                seed=self.seed,
                capacity=clips.config.cache_mb * 1e6,
                window=self.config.shuffle_window,
                salt=(zlib.crc32(name.encode()),) if self.config.mixture else (),
            )


def _opened(config: DataConfig) -> dict[str, ClipSet]:
    """The sets of a configuration by name. Raises DataError that names the one that cannot be used."""
    sets = {}
    for name, data in config.sets().items():
        try:
            sets[name] = ClipSet(data)
        except DataError as error:
            raise DataError(f"data.mixture.{name}: {error}" if config.mixture else error) from error
    _check_alike(sets, "frames (height, width)", lambda clips: (clips.height, clips.width))
    return sets


def _check_alike(sets: Mapping[str, ClipSet], what: str, of: Callable[[ClipSet], Any]) -> None:
    """DataError where two sets of a mixture cannot be in one batch."""
    (first, wanted), *others = ((name, of(clips)) for name, clips in sets.items())
    for name, found in others:
        if found != wanted:
            raise DataError(
                f"data.mixture.{name}: {what} are {found}, those of data.mixture.{first} {wanted}; "
                "they must be the same (data.height and data.width set the size of frames)"
            )


def _choice(numbers: Iterable[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def _converted(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as it is written today. Those of before had one stream for each rank."""
    if "streams" in state:
        return dict(state)
    kept = {name: state[name] for name in ("seed", "clips", "latents")}
    if state["world_size"] > 1:
        raise ValueError(
            f"ClipLoader: the state was saved by an earlier version with {state['world_size']} "
            "processes, whose order of clips there is no more; resume it with that version"
        )
    return {**kept, "streams": 1, "slots": 0, "at": {"0": [state["epoch"], state["position"]]}}


class _Builder:
    """Builds a loader's batches one after another, from a slot and positions on."""

    def __init__(self, loader: ClipLoader, slots: int, at: Positions) -> None:
        self.loader, self.slots = loader, slots
        self.fetch: Callable[[ClipSet, Segment], None] | None = None  # decodes what will be needed
        self._rows = loader.batch_size // loader.world_size
        self._at = {(k, name): place for k, of in at.items() for name, place in of.items()}
        self._walks = {
            (k, name): loader._orders[name].walk(k, *place) for (k, name), place in self._at.items()
        }
        self._ahead: dict[tuple[int, str], deque[Place]] = {key: deque() for key in self._at}
        self._reach = -(-2 * self._rows // len(at))  # clips ahead in each stream
        self._drawn: tuple[int, np.ndarray] | None = None  # which set a slot asks, of the latest

    def build(self) -> tuple[ClipBatch, int, Positions]:
        """The next batch, and the slot and the positions behind it."""
        loader = self.loader
        shape = self._rows, loader.config.frames_per_clip, *loader.frame_shape
        frames = np.empty(shape, np.uint8)
        chosen = []
        for row in range(self._rows):
            slot = self.slots + row * loader.world_size + loader.rank
            name = self._set_of(slot)
            clips, first = loader.sets[name], loader.first_episode[name]
            segment, start = self._fill(slot % loader.streams, name, frames[row])
            chosen.append(Chosen(clips, segment, start, first))
        self.slots += loader.batch_size
        at: Positions = {}
        for (k, name), place in self._at.items():
            at.setdefault(k, {})[name] = place
        return _batch(frames, chosen, loader.with_actions, loader.latents), self.slots, at

    def _set_of(self, slot: int) -> str:
        """The set that a slot asks, by seed and slot alone."""
        names = list(self.loader.sets)
        if len(names) == 1:
            return names[0]
        part, place = divmod(slot, 4096)
        if self._drawn is None or self._drawn[0] != part:
            edges = np.cumsum(list(self.loader.config.shares().values()))
            drawn = np.random.default_rng([self.loader.seed, 3, part]).random(4096)
            drawn = np.searchsorted(edges / edges[-1], drawn, "right")
            self._drawn = part, drawn
        return names[self._drawn[1][place]]

    def _fill(self, stream: int, name: str, out: np.ndarray) -> tuple[Segment, int]:
        """The next clip of a set's stream that can be had, into `out` [T, 3, H, W]."""
        clips, latents = self.loader.sets[name], self.loader.latents
        passed, n = 0, len(clips.segments)
        while True:
            place = self._next(stream, name)
            self._at[stream, name] = place.epoch, place.position
            segment = clips.segments[place.segment]
            start = segment.first + place.clip
            stored = latents is None or latents.has(segment.episode, start)
            if stored and clips.clip(clips.decoded(segment), segment, start, out):
                return segment, start
            passed += 1
            if passed > max(1, 32 * self.loader.streams / n) * clips.count:  # most of it, or all
                raise DataError(
                    f"{clips.config.path}: no clip of {clips.config.frames_per_clip} frames "
                    "without a scene cut was found in a whole pass; lower frames_per_clip or "
                    "stride, or set scene_cut_threshold to 0"
                    + ("" if latents is None else f"; or {latents} has none of them")
                )

    def _next(self, stream: int, name: str) -> Place:
        walk = self._walks[stream, name]
        if self.fetch is None:
            return next(walk)
        clips, ahead = self.loader.sets[name], self._ahead[stream, name]
        while len(ahead) <= self._reach:
            ahead.append(next(walk))
            self.fetch(clips, clips.segments[ahead[-1].segment])
        return ahead.popleft()


class Chosen(NamedTuple):
    """A clip of a batch."""

    clips: ClipSet
    segment: Segment
    start: int
    first_episode: int = 0  # of its set, among those of all sets


def _batch(
    frames: np.ndarray,
    chosen: list[Chosen],
    with_actions: bool,
    latents: LatentSource | None = None,
) -> ClipBatch:
    actions = None
    if with_actions:
        found = [c.clips.clip_actions(c.segment.episode, c.start) for c in chosen]
        actions = torch.from_numpy(np.stack(found))
    starts = [c.clips.frame_index(c.segment.episode, c.start) for c in chosen]
    episodes = [c.first_episode + c.segment.episode for c in chosen]
    return ClipBatch(
        frames=torch.from_numpy(frames),
        episode=torch.tensor(episodes, dtype=torch.int64),
        start=torch.tensor(starts, dtype=torch.int64),
        actions=actions,
        latents=None
        if latents is None
        else torch.stack([latents.clip(c.segment.episode, c.start) for c in chosen]),
        fps=torch.tensor([c.clips.fps(c.segment.episode) for c in chosen]),
    )


class _Fetcher:
    """One thread that builds batches in order, and some that decode what they will need.

    They are daemons: a read that never returns keeps neither the caller nor the process waiting.
    """

    def __init__(self, builder: _Builder, config: DataConfig) -> None:
        self._builder, self._timeout = builder, config.timeout
        self._stop = threading.Event()
        self._ready: queue.Queue[Any] = queue.Queue(_BATCHES_AHEAD)
        self._wanted: queue.SimpleQueue[tuple[ClipSet, Segment] | None] = queue.SimpleQueue()
        builder.fetch = self._fetch
        self._threads = [
            threading.Thread(target=self._decode, name=f"decode-{n}", daemon=True)
            for n in range(config.workers)
        ]
        self._threads.append(threading.Thread(target=self._run, name="clips", daemon=True))
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._put(self._builder.build())
        except BaseException as error:  # handed to whoever asks for the next batch
            self._put(error)

    def _fetch(self, clips: ClipSet, segment: Segment) -> None:
        if (segment.episode, segment.first) not in clips._cache:
            self._wanted.put((clips, segment))

    def _decode(self) -> None:
        while (job := self._wanted.get()) is not None and not self._stop.is_set():
            clips, segment = job
            try:
                clips.decoded(segment)
            except Exception as error:  # left for the batch that needs it: that decodes it again
                log.debug("while decoding ahead: %s", error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def next(self) -> Any:
        """The next batch and what is behind it. DataError that names a read that hangs."""
        while True:
            try:
                item = self._ready.get(timeout=min(1.0, self._timeout))
                break
            except queue.Empty:
                sets = self._builder.loader.sets.values()
                seconds, what = max(clips.longest_read() for clips in sets)
                if seconds > self._timeout:
                    raise DataError(
                        f"{what}: still not read after {seconds:.0f} s (data.timeout "
                        f"{self._timeout:g}); does the disk or network it lies on hang? Take it away, "
                        "or raise data.timeout, and resume"
                    ) from None
        if isinstance(item, BaseException):
            self._ready.put(item)  # and again for whoever asks once more
            raise item
        return item

    def stop(self) -> None:
        self._stop.set()
        for _ in self._threads:
            self._wanted.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)  # a read under way ends by itself, or never


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
    chosen: list[Chosen] = []
    frames = np.empty((batch_size, *shape), np.uint8)
    given = 0
    for segment, start in _rounds(clips):
        if limit is not None and given + len(chosen) >= limit:
            break
        if clips.clip(clips.decoded(segment), segment, start, frames[len(chosen)]):
            chosen.append(Chosen(clips, segment, start))
        if len(chosen) == batch_size:
            yield _batch(frames, chosen, with_actions)
            given += len(chosen)
            frames, chosen = np.empty((batch_size, *shape), np.uint8), []
    if chosen:
        yield _batch(frames[: len(chosen)], chosen, with_actions)


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
