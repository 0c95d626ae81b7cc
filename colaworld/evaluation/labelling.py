"""The latent actions of a whole episode, a row per recorded frame, in bounded memory.

    frames   0 1 2 3 4 5 6 7 8 9        window 4, stride 1, a cut before frame 6
    row 4        2 3 4 5                what the model sees: the row's two frames and their past
    row 5                               leads over the cut: not valid
    row 7              6 7 8            no past beyond the scene, as in training
    row 9                               leads nowhere: not valid

What a row holds is what `World.infer_actions` gives of the frames of its scene at the model's rate. A
model's window is a batch row of its own, so rows do not depend on how an episode is read. Not here:
sets of episodes, files (runs/label.py).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import LatentActions
from colaworld.data import cuts
from colaworld.data.clips import ClipSet
from colaworld.data.episode_stream import episode_stream
from colaworld.data.errors import BrokenFileError
from colaworld.data.transitions import Transitions, transitions

Infer = Callable[[Tensor], LatentActions]  # uint8 frames [B, T, 3, H, W], T <= window
_READ = 64  # frames read at a time


@dataclass(frozen=True)
class EpisodeActions:
    """Of an episode of n frames. Rows that are not valid repeat the one before, else the next valid
    one, else hold zeros."""

    codes: np.ndarray | None  # [n, N] int64 entries of the codebook; None: there is none
    vectors: np.ndarray  # [n, N * d] float32
    valid: np.ndarray  # [n] bool


def label_episode(
    clips: ClipSet,
    episode: int,
    infer: Infer,
    *,
    window: int,
    size: tuple[int, int, bool],
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    step: Callable[[int], None] = lambda rows: None,
) -> EpisodeActions:
    """The latent actions of an episode at the size, crop and rate of `clips`.

    Args:
        clips: a set; its `scene_cut_threshold` says what a cut is.
        episode: its index within the source.
        infer: frames to actions, as `World.infer_actions`.
        window: frames the model sees at once (`model.config.window`).
        size: N and d of an action, and whether it has entries of a codebook.
        batch_size: windows given to `infer` at once, which may change how sums are rounded; what
            else is in an episode decides which, and nothing outside it.
        device: where frames go.
        step: called before each batch with the first of its rows; may raise.

    Raises:
        BrokenFileError: frames cannot be decoded, or are all of one value.
    """
    frames = clips.source.episodes[episode].frames
    tokens, dim, discrete = size
    codes = np.zeros((frames, tokens), np.int64) if discrete else None
    vectors = np.zeros((frames, tokens * dim), np.float32)
    valid = np.zeros(frames, bool)
    for rows, seen in _batches(clips, episode, window, batch_size):
        step(rows[0])
        found = infer(seen.to(device))
        vectors[rows] = found.codes[:, -1].float().flatten(1).cpu().numpy()
        if codes is not None:
            assert found.indices is not None
            codes[rows] = found.indices[:, -1].cpu().numpy()
        valid[rows] = True
    held = repeated(valid)
    if held is not None:
        vectors, codes = vectors[held], None if codes is None else codes[held]
    return EpisodeActions(codes, vectors, valid)


def repeated(valid: np.ndarray) -> np.ndarray | None:
    """For each row the valid one it shows: itself, the one before, or the first. None: there is none."""
    if not valid.any():
        return None
    last = np.maximum.accumulate(np.where(valid, np.arange(len(valid)), -1))
    return np.where(last < 0, int(valid.argmax()), last)


def _batches(
    clips: ClipSet, episode: int, window: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """(rows, the frames [B, T, 3, H, W] seen for each); all windows of a batch are of one length."""
    moves = transitions(clips, episode)
    rows: list[int] = []
    seen: list[Tensor] = []
    for row, frames in _windows(clips, episode, moves, window):
        if rows and (len(rows) == batch_size or len(frames) != len(seen[0])):
            yield rows, torch.stack(seen)
            rows, seen = [], []
        rows.append(row)
        seen.append(frames)
    if rows:
        yield rows, torch.stack(seen)


def _windows(
    clips: ClipSet, episode: int, moves: Transitions, window: int
) -> Iterator[tuple[int, Tensor]]:
    """(row, the frames [T, 3, H, W] seen for it) of every row that is an action, in order."""
    ahead = moves.ahead
    held: dict[int, Tensor] = {}  # frames that rows to come may see
    row = 0
    film = _Cuts(clips.config.scene_cut_threshold, len(ahead))
    for block in episode_stream(clips, window=_READ, overlap=1, episodes=[episode], recorded=True):
        film.add(block.frames.numpy(), block.repeats)
        new = zip(block.index.tolist(), block.frames, strict=True)
        held |= dict(list(new)[block.repeats :])
        while row < len(ahead) and max(row, ahead[row]) < film.known:
            after = bisect.bisect_right(film.cuts, row)
            first = film.cuts[after - 1] if after else 0
            leads = int(ahead[row])
            if leads >= 0 and bisect.bisect_right(film.cuts, leads) == after:
                wanted = moves.window(row, window, first=first)
                yield row, torch.stack([held[i] for i in wanted])
            row += 1
        oldest = moves.oldest(min(row, len(ahead) - 1), window)
        held = {i: frame for i, frame in held.items() if i >= oldest}
    found = f"{clips.source.episodes[episode].path}: {clips.source.episodes[episode].name}"
    if film.seen != len(ahead):
        raise BrokenFileError(f"{found}: {len(ahead)} frames wanted, {film.seen} found")
    if film.low == film.high:
        raise BrokenFileError(
            f"{found}: nothing but the value {film.low} (a renderer or camera that failed?)"
        )


class _Cuts:
    """Scene cuts of a film as it is read; the same as of the whole film."""

    def __init__(self, threshold: float, frames: int) -> None:
        self._threshold, self._frames = threshold, frames
        self._changes = np.zeros((frames, 2), np.float32)
        self.cuts: list[int] = []  # ascending
        self.seen = 0  # frames
        self.known = 0  # frames of which it is known whether a scene begins there
        self.low, self.high = 255, 0

    def add(self, frames: np.ndarray, repeats: int) -> None:
        """The next frames [n, 3, H, W]; the first `repeats` (0 or 1) were there before."""
        until = self.seen + len(frames) - repeats
        self.low = min(self.low, int(frames.min()))
        self.high = max(self.high, int(frames.max()))
        if self._threshold > 0:
            self._changes[self.seen : until] = cuts.frame_changes(frames)[repeats:]
        self.seen = until
        known = until if until == self._frames else max(self.known, until - cuts.REACH)
        begin = max(0, self.known - cuts.REACH - 1)
        found = begin + cuts.find_cuts(self._changes[begin:until], threshold=self._threshold)
        self.cuts += [int(cut) for cut in found if self.known <= cut < known]
        self.known = known
