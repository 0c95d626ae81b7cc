"""Which episodes of a set: those of a share, and those that hold so many recorded transitions.

Not here: their clips (clips.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from colaworld.data.errors import DataError
from colaworld.data.sources.source import EpisodeInfo


def select_split(
    episodes: Sequence[EpisodeInfo], *, split: str, holdout: float, path: Path | str
) -> list[EpisodeInfo]:
    """The episodes of one share. Held out are those whose names have the lowest hashes.

    So the choice depends on neither order nor seed, hardly moves when a set grows, and holds out
    at least one episode and leaves at least one.
    """
    if split == "all":
        return list(episodes)
    count = min(max(1, round(holdout * len(episodes))), len(episodes) - 1) if holdout > 0 else 0
    ranked = sorted(
        episodes, key=lambda e: hashlib.sha256(e.name.encode(errors="surrogateescape")).digest()
    )
    held = {e.index for e in ranked[:count]}
    if split == "heldout" and not held:
        raise DataError(
            f"{path}: nothing is held out ({len(episodes)} episodes, holdout = {holdout:g}); "
            "evaluation needs at least two episodes and holdout > 0, or split = all"
        )
    return [e for e in episodes if (e.index in held) == (split == "heldout")]


def labelled(
    episodes: Sequence[EpisodeInfo], labels: int, *, seed: int, path: Path | str | None
) -> dict[int, int]:
    """Recorded frames to use of each of some episodes, by index: `labels` transitions in all.

    Whole episodes in the order of a hash of seed and name, the last one cut, so that those of a
    smaller number are a part of those of a larger one. Raises DataError where there are fewer.
    """
    there = sum(e.frames - 1 for e in episodes)
    if labels > there:
        raise DataError(
            f"{path}: data.labels: expected at most the {there} recorded transitions of its "
            f"{len(episodes)} training episodes, got {labels}"
        )

    def place(episode: EpisodeInfo) -> bytes:
        name = f"{seed}/{episode.name}".encode(errors="surrogateescape")
        return hashlib.sha256(name).digest()

    kept: dict[int, int] = {}
    for episode in sorted(episodes, key=place):
        if not labels:
            break
        taken = min(labels, episode.frames - 1)
        if taken:
            kept[episode.index] = taken + 1
        labels -= taken
    return kept
