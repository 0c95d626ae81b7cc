"""Clips in batches: an endless shuffled stream that resumes exactly.

Not here: what a clip is (clips.py, windows.py), which follows which (order.py), a batch (batches.py), one pass for
evaluation (once.py), how frames are read (sources/, video_reader.py).

A batch of all processes holds the next slots of the run: row i on rank r of W is slot i * W + r of it. A
slot's clip is the next one of its stream that crosses no cut. So the clips of a batch do not depend on
W, and threads only fetch ahead of the order. In a mixture of several sets each has its streams, and
seed and slot say which set is asked. `state_dict()` is two numbers for each stream, and resuming decodes
nothing that lies before.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from colaworld.contracts import ActionSpec, ClipBatch
from colaworld.data.batches import BatchBuilder, LatentSource, Positions
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.fetcher import Fetcher
from colaworld.data.order import StreamOrder


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
        streams = config.streams or self._most_streams()
        self._use(streams, self._orders_of(streams))
        self._slots = 0  # handed out by all processes
        self._at: Positions = {k: dict.fromkeys(self.sets, (0, 0)) for k in self._own(streams, 0)}
        self._builder: BatchBuilder | None = None
        self._fetcher: Fetcher | None = None
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
            self._builder = BatchBuilder(self, self._slots, self._at)
            if self.config.workers:
                self._fetcher = Fetcher(self._builder, self.config)
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
        streams cannot be shared by this many processes. The loader then goes on as if nothing was asked.
        """
        state = _converted(state)
        now = self.state_dict()
        for name in ("seed", "clips", "latents", "shares"):
            if state.get(name) != now.get(name):
                raise ValueError(
                    f"ClipLoader: the state was taken with {name}={state.get(name)}, this loader "
                    f"has {name}={now.get(name)}; resume with the same data and seed"
                )
        streams, slots = int(state["streams"]), int(state["slots"])
        orders = self.orders if streams == self.streams else self._orders_of(streams)
        at = {k: self._places(state["at"], k) for k in self._own(streams, slots)}
        self.close()  # before the change: threads see one cut and its orders
        self._use(streams, orders)
        self._slots, self._at = slots, at

    def _places(self, at: Mapping[str, Any], stream: int) -> dict[str, tuple[int, int]]:
        """Epoch and position of a stream in each set, out of the `at` of a state."""
        if str(stream) not in at:
            raise ValueError(
                f"ClipLoader: the state lacks stream {stream} of rank {self.rank}; merge_states "
                "joins those of all ranks"
            )
        found = at[str(stream)]
        try:
            places = found if self.config.mixture else {"data": found}
            made = {name: (int(e), int(p)) for name, (e, p) in places.items()}
        except (AttributeError, TypeError, ValueError):
            made = {}
        if made.keys() != self.sets.keys():
            raise ValueError(
                f"ClipLoader: the place of stream {stream} in the state should be [epoch, position]"
                f"{' of each set' if self.config.mixture else ''}, got {found!r}"
            )
        return made

    def _own(self, streams: int, slots: int) -> range:
        """Those of `streams` that this rank reads behind `slots` of the run, which another number of
        processes may have handed out."""
        return range((self.rank + slots) % self.world_size, streams, self.world_size)

    def close(self) -> None:
        """Stop the threads. The loader can go on afterwards, from where it was."""
        if self._fetcher is not None:
            self._fetcher.stop()
        self._fetcher = self._builder = None

    def _most_streams(self) -> int:
        for streams in range(self.batch_size, 1, -1):
            if self.batch_size % streams == 0:
                found = [len(clips.segments_for(streams)) for clips in self.sets.values()]
                if min(found) >= streams:
                    return streams
        return 1

    def _use(self, streams: int, orders: dict[str, StreamOrder]) -> None:
        """Cut the sets for that many streams, read in these orders."""
        self.streams, self.orders = streams, orders
        for clips in self.sets.values():
            clips.cut(streams)

    def _orders_of(self, streams: int) -> dict[str, StreamOrder]:
        """The order of each set's clips in that many streams. Changes nothing; raises ValueError where
        they cannot be had."""
        if streams % self.world_size:
            raise ValueError(
                f"the order of clips has {streams} streams, which {self.world_size} processes "
                "cannot share evenly; start "
                f"{_choice(n for n in range(1, streams + 1) if streams % n == 0)} processes, or, in a "
                f"new run, set data.streams to a multiple of {self.world_size}"
            )
        orders: dict[str, StreamOrder] = {}
        for name, clips in self.sets.items():
            segments = clips.segments_for(streams)
            if len(segments) < streams:
                raise DataError(
                    f"{clips.config.path}: {len(segments)} episodes cannot fill {streams} streams; "
                    "lower data.streams (and the number of processes), or use more episodes"
                )
            orders[name] = StreamOrder(
                starts=np.array([p.starts for p in segments], np.int64),
                sizes=np.array([clips.segment_bytes(p) for p in segments], np.int64),
                streams=streams,
                seed=self.seed,
                capacity=clips.config.cache_mb * 1e6,
                window=self.config.shuffle_window,
                salt=(zlib.crc32(name.encode()),) if self.config.mixture else (),
            )
        return orders


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
