"""From which frame to which an action leads, where actions are slower than the film.

    stride 3      row t leads from frame t to t + 3; before it the model saw t - 3, t - 6, ...
    5 frames/s    row t leads to the frame that is shown 1/5 s later; before it 1/5 s, 2/5 s, ... back

Every recorded frame has a row, also those that clips of this rate pass over. Index arithmetic only.
Not here: which rate is asked for (config.py), cuts (cuts.py), clips (windows.py).
"""

from __future__ import annotations

import numpy as np

from colaworld.data.clips import ClipSet

_EARLY = 1e-4  # seconds that a frame may come after the time it is asked for, as in clips.py


class Transitions:
    """Of an episode of `frames` frames: by `stride` in frames, or by `times` [frames] in seconds and
    the `fps` of actions."""

    def __init__(
        self,
        frames: int,
        *,
        stride: int = 1,
        times: np.ndarray | None = None,
        fps: float | None = None,
    ) -> None:
        self.frames = frames
        self._stride, self._times, self._fps = stride, times, fps
        if times is None or fps is None:
            ahead = np.arange(frames) + stride
            self.ahead = np.where(ahead < frames, ahead, -1)
        else:
            later = times + 1 / fps
            self.ahead = np.where(later <= times[-1] + _EARLY, self._shown(later), -1)
        """[frames] int64: where the action of each row leads; -1: the episode has ended by then."""

    def window(self, row: int, length: int, *, first: int = 0) -> list[int]:
        """The frames a model of `length` frames sees for a row, `ahead[row]` last: 2 to `length` of
        them, none before frame `first`."""
        back = np.arange(length - 2, -1, -1)
        if self._times is None or self._fps is None:
            seen = row - back * self._stride
            seen = seen[seen >= first]
        else:
            asked = self._times[row] - back / self._fps
            seen = self._shown(asked[asked >= self._times[first] - _EARLY])
        return [*seen.tolist(), int(self.ahead[row])]

    def oldest(self, row: int, length: int) -> int:
        """The first frame that `window` may give for this row or any after it."""
        back = length - 2
        if self._times is None or self._fps is None:
            return max(0, row - back * self._stride)
        return int(self._shown(self._times[row : row + 1] - back / self._fps)[0])

    def _shown(self, seconds: np.ndarray) -> np.ndarray:
        """The last frame begun by each time."""
        assert self._times is not None
        found = np.searchsorted(self._times, seconds + _EARLY, "right") - 1
        return np.clip(found, 0, self.frames - 1)


def transitions(clips: ClipSet, episode: int) -> Transitions:
    """Those of an episode at the rate of a set's clips."""
    frames = clips.source.episodes[episode].frames
    if not clips.resampled(episode):
        return Transitions(frames, stride=clips.stride(episode))
    return Transitions(frames, times=clips.source.times(episode), fps=clips.config.fps)
