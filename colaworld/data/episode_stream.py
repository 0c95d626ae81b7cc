"""Whole episodes in order: every frame, every transition, in bounded memory. For labelling.

    window 5, overlap 2     0 1 2 3 4
                                  3 4 5 6 7
                                        6 7 8         the last may be shorter

Each frame is new in exactly one window, and so is each transition t -> t + 1, the one that leads to
it. Unlike the loader's clips, these cross scene cuts and take in episodes shorter than a clip.
Not here: labels, or writing them (sources/lerobot_columns.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from colaworld.data.clips import ClipSet
from colaworld.data.sources.source import Source


@dataclass(frozen=True)
class EpisodeWindow:
    """Consecutive frames of one episode; n is at most the window asked for."""

    episode: int  # its index within the source
    first: int  # place of the first frame within the episode, in steps of the stream
    repeats: int  # frames at its front that end the window before; 0 in the first
    frames: Tensor  # [n, 3, H, W] uint8
    index: Tensor  # [n] int64: index of each frame within the episode, as recorded


def episode_stream(
    data: ClipSet | Source,
    *,
    window: int = 64,
    overlap: int = 1,
    episodes: Iterable[int] | None = None,
    recorded: bool = False,
) -> Iterator[EpisodeWindow]:
    """All frames of all episodes, one after another, each episode decoded in one pass.

    Args:
        data: a `ClipSet` gives frames at its size, crop and rate (`fps`; not its `stride`: to follow
            transitions over s frames, ask for an overlap of s), a `Source` frames as recorded.
        window: frames held at a time.
        overlap: frames that a window repeats from the one before. 1: each transition lies in one
            window; more: a model sees that much of the past again.
        episodes: indices into the source, in the order wanted. None: all; a `ClipSet` has those of
            its split.
        recorded: every frame of a `ClipSet` as recorded in time, at its size and crop, whatever
            `fps` it asks for.

    Raises:
        ValueError: a wrong window or overlap, or an episode that is not there.
        BrokenFileError: a frame cannot be decoded. To leave such an episode out, catch it and ask
            for the remaining `episodes`.
    """
    if not 1 <= overlap < window:
        raise ValueError(
            f"episode_stream: expected 1 <= overlap < window, got overlap={overlap}, window={window}"
        )
    known = [e.index for e in data.episodes]
    wanted = known if episodes is None else list(episodes)
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"episode_stream: no episodes {unknown[:5]} in this set (or its split)")
    return _windows(data, window, overlap, wanted, recorded)


def _windows(
    data: ClipSet | Source, window: int, overlap: int, episodes: Iterable[int], recorded: bool
) -> Iterator[EpisodeWindow]:
    for episode in episodes:
        first = repeats = 0
        held: list[tuple[int, np.ndarray]] = []
        for step in _steps(data, episode, recorded):
            held.append(step)
            if len(held) == window:
                yield _window(episode, first, repeats, held)
                first, repeats, held = first + window - overlap, overlap, held[-overlap:]
        if len(held) > repeats:
            yield _window(episode, first, repeats, held)


def _steps(
    data: ClipSet | Source, episode: int, recorded: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """(index within the episode, frame [3, H, W]) of every frame."""
    if isinstance(data, ClipSet):
        length = data.source.episodes[episode].frames if recorded else data.length(episode)
        for index, frames in data.stream(episode, 0, length, recorded=recorded):
            yield from zip(index.tolist(), frames, strict=True)
    else:
        for index, frame in enumerate(data.stream(episode, 0, data.episodes[episode].frames)):
            yield index, frame.transpose(2, 0, 1)


def _window(
    episode: int, first: int, repeats: int, held: list[tuple[int, np.ndarray]]
) -> EpisodeWindow:
    frames = torch.from_numpy(np.stack([frame for _, frame in held]))
    return EpisodeWindow(
        episode, first, repeats, frames, torch.tensor([index for index, _ in held])
    )
