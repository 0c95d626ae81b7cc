"""One pass over clips that share no frame, for evaluation: always in the same order, as many episodes as it can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from colaworld.contracts import ClipBatch
from colaworld.data.batches import Chosen, batch_of
from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.windows import Segment


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
            yield batch_of(frames, chosen, with_actions)
            given += len(chosen)
            frames, chosen = np.empty((batch_size, *shape), np.uint8), []
    if chosen:
        yield batch_of(frames[: len(chosen)], chosen, with_actions)


def _rounds(clips: ClipSet) -> Iterator[tuple[Segment, int]]:
    """Round k: the k-th disjoint clip of every episode."""
    of: dict[int, list[Segment]] = {}
    for segment in clips.segments:  # in order
        of.setdefault(segment.episode, []).append(segment)
    left = [_disjoint(clips, segments) for _, segments in sorted(of.items())]
    while left:
        on = []
        for walk in left:
            if (clip := next(walk, None)) is not None:
                yield clip
                on.append(walk)
        left = on


def _disjoint(clips: ClipSet, segments: Sequence[Segment]) -> Iterator[tuple[Segment, int]]:
    """Clips of an episode that share no frame, packed from the left within each scene. Given its cuts they do not depend
    on the segments that it is decoded in; a broken segment gives none."""
    reach, start = clips.span(segments[0].episode), segments[0].first
    for segment in segments:
        while start < segment.first + segment.starts:
            decoded = clips.decoded(segment)
            if not decoded.usable:
                start = segment.first + segment.starts
                break
            cuts = segment.first + decoded.cuts
            inside = cuts[(cuts > start) & (cuts < start + reach)]
            if len(inside):
                start = int(inside[0])
            else:
                yield segment, start
                start += reach
