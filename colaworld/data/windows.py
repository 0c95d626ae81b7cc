"""Which clips an episode holds: index arithmetic only, no frames and no files.

    T = 4, stride = 2:   x.x.x.x        a clip spans (T - 1) * stride + 1 = 7 frames
    cut before frame c:  clips with first < c <= last cross it and are left out

Long episodes are handled in segments, the unit of decoding and caching. Neighbouring segments overlap
by span - 1 frames, so that each start belongs to exactly one segment and no clip is lost:

    episode   0 ........................................ n
    segment 0   [starts------][+span-1]
    segment 1                 [starts------][+span-1]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """Frames first..stop-1 of an episode; `starts` clips begin in it, at first, first + 1, ..."""

    episode: int
    first: int
    stop: int
    starts: int


def span(frames_per_clip: int, stride: int) -> int:
    """How many consecutive frames a clip reaches over."""
    return (frames_per_clip - 1) * stride + 1


def segments(
    episode: int, frames: int, *, clip_span: int, most_frames: int, begin: int = 0
) -> list[Segment]:
    """Cut an episode of `frames` frames into segments of at most `most_frames` (but one clip) each.

    The first clip starts at `begin`. Empty if what is behind it is shorter than a clip.
    """
    most_starts = max(1, most_frames - clip_span + 1)
    total = frames - clip_span + 1
    made = []
    for first in range(begin, max(begin, total), most_starts):
        starts = min(most_starts, total - first)
        made.append(Segment(episode, first, first + starts + clip_span - 1, starts))
    return made


def crosses(start: int, clip_span: int, cuts: np.ndarray) -> bool:
    """Whether a clip that begins at `start` holds frames of two scenes."""
    return bool(
        np.searchsorted(cuts, start, "right")
        != np.searchsorted(cuts, start + clip_span - 1, "right")
    )
