"""Batches of an endless stream, one after another: which clip each slot holds, and the clip.

Not here: where a stream is resumed and how it is cut (loader.py), threads (fetcher.py), which clip follows which (order.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import ClipBatch
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.errors import DataError
from colaworld.data.order import Place, StreamOrder
from colaworld.data.windows import Segment

Positions = dict[int, dict[str, tuple[int, int]]]  # stream -> set -> epoch and position


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


class Dealt(Protocol):
    """What batches are made from: sets with the order of their clips, and the rows that are this process's. A `ClipLoader`."""

    config: DataConfig
    sets: dict[str, ClipSet]
    first_episode: dict[str, int]
    orders: dict[str, StreamOrder]
    latents: LatentSource | None
    with_actions: bool
    batch_size: int
    streams: int
    seed: int
    rank: int
    world_size: int

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(3, H, W)."""
        ...


class Chosen(NamedTuple):
    """A clip of a batch."""

    clips: ClipSet
    segment: Segment
    start: int
    first_episode: int = 0  # of its set, among those of all sets


def batch_of(
    frames: np.ndarray,
    chosen: list[Chosen],
    with_actions: bool,
    latents: LatentSource | None = None,
) -> ClipBatch:
    """Clips as a batch. frames: uint8 [B, T, 3, H, W]."""
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


class BatchBuilder:
    """Builds a loader's batches one after another, from a slot and positions on."""

    def __init__(self, loader: Dealt, slots: int, at: Positions) -> None:
        self.loader, self.slots = loader, slots
        self.fetch: Callable[[ClipSet, Segment], None] | None = None  # decodes what will be needed
        self._rows = loader.batch_size // loader.world_size
        self._at = {(k, name): place for k, of in at.items() for name, place in of.items()}
        self._walks = {
            (k, name): loader.orders[name].walk(k, *place) for (k, name), place in self._at.items()
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
        return batch_of(frames, chosen, loader.with_actions, loader.latents), self.slots, at

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
