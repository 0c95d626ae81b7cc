"""The order of clips: streams of one random order of segments, each with its own blocks and position.

    slot       the clips of a run are numbered; slot s belongs to stream s mod S
    epoch      all segments in a random order; stream k owns every S-th of them, from the k-th on
    block      some of a stream's segments, as many as its share of the cache holds; all clips of them
               (every start once) in a random order
    position   how many clips of the stream's epoch were looked at

Everything follows from (seed, S, stream, epoch, position), whatever process reads a stream. Not here:
frames, or clips that cannot be had and are passed over (loader.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """A clip, and where its stream stands behind it."""

    epoch: int
    position: int
    segment: int  # its number within the set
    clip: int  # its number within the segment


class StreamOrder:
    """The order of each stream of a set.

    Args:
        starts: [n] int64, clips that begin in each segment.
        sizes: [n] int64, bytes of each segment when it is decoded.
        streams: S, at most n.
        seed: decides.
        capacity: bytes that all streams together may hold.
        salt: tells several sets of one run apart.
        window: segments whose clips are mixed, over all streams. 0: as many as half of `capacity`
            holds (the other half is for what is fetched ahead), or all if all fit.
    """

    def __init__(
        self,
        *,
        starts: np.ndarray,
        sizes: np.ndarray,
        streams: int,
        seed: int,
        capacity: float,
        window: int = 0,
        salt: Sequence[int] = (),
    ) -> None:
        self.starts, self.sizes, self.streams = starts, sizes, streams
        self._seed, self._salt = seed, salt
        self._window = -(-window // streams)
        self._budget = np.inf if sizes.sum() <= capacity else capacity / 2 / streams
        self._epoch: tuple[int, np.ndarray] | None = None  # the latest

    def walk(self, stream: int, epoch: int = 0, position: int = 0) -> Iterator[Place]:
        """The clips of a stream from a position on, without end."""
        while True:
            mine = self._segments(epoch)[stream :: self.streams]
            first = 0  # clips of the epoch before this block
            for number, block in enumerate(self._blocks(mine)):
                edges = np.concatenate([[0], np.cumsum(self.starts[block])])
                size = int(edges[-1])
                if position < first + size:
                    rng = np.random.default_rng([self._seed, 2, epoch, stream, number, *self._salt])
                    left = rng.permutation(size)[position - first :]
                    owners = np.searchsorted(edges, left, "right") - 1
                    for segment, clip in zip(block[owners], left - edges[owners], strict=True):
                        position += 1
                        yield Place(epoch, position, int(segment), int(clip))
                first += size
            epoch, position = epoch + 1, 0

    def _segments(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self._seed, 1, epoch, *self._salt])
            self._epoch = epoch, rng.permutation(len(self.starts))
        return self._epoch[1]

    def _blocks(self, segments: np.ndarray) -> Iterator[np.ndarray]:
        """Cut a stream's segments into blocks, each of one segment or of as many as may be held."""
        ends, at = np.cumsum(self.sizes[segments]), 0
        while at < len(segments):
            if self._window:
                stop = at + self._window
            else:
                held = ends[at - 1] if at else 0
                stop = max(at + 1, int(np.searchsorted(ends, held + self._budget, "right")))
            yield segments[at:stop]
            at = stop
