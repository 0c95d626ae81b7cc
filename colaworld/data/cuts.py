"""Scene cuts: where a film jumps. No clip may cross one. Not here: what a clip is (windows.py).

A cut before frame t needs both of:

    pixels   the mean absolute difference d[t] = |frame t - frame t-1| stands out from its
             neighbourhood:   d[t] > threshold * median(d around t, without t) + FLOOR
    colours  the colour histogram changes by more than COLOURS

The median, because motion comes in bursts and a second cut nearby must not hide the first. The
histogram, because a game that scrolls by a whole cell after standing still jumps in every pixel
while showing the same things; a cut between two shots with equal colours is missed for it.
"""

from __future__ import annotations

import numpy as np

REACH = 12  # differences looked at on either side: about a second of film
FLOOR = 12.0  # of 255; smaller jumps are motion or noise, whatever stands around them
COLOURS = 0.4  # of 2 = no level in common; one of 7 rows scrolling in reaches 2/7 at most
# Eight soft levels per channel, [256, 8]: a value belongs to its two nearest levels in part, so that
# a slow change of light moves little (hard levels all flip at once when it crosses an edge).
_LEVELS = np.clip(1 - np.abs(np.arange(256)[:, None] / 255 * 7 - np.arange(8)), 0, None)


def frame_changes(frames: np.ndarray) -> np.ndarray:
    """uint8 [n, 3, H, W] -> float32 [n, 2]: (d[t], histogram distance) to the frame before.

    Row 0 is 0. Frames are thinned to about 64 x 64 points. Histograms have 8 soft levels; the
    distance is the sum of absolute differences of shares, 0 (equal) to 2 (nothing in common),
    averaged over the channels.
    """
    step = max(1, min(frames.shape[-2:]) // 64)
    small = frames[..., ::step, ::step]
    points = small.shape[-1] * small.shape[-2]
    made = np.zeros((len(frames), 2), np.float32)
    before = None
    for t, frame in enumerate(small):  # one at a time: no wide copy of the whole film
        counts = [np.bincount(channel.ravel(), minlength=256) for channel in frame]
        colours = np.stack(counts) @ _LEVELS / points
        if before is not None:
            made[t, 0] = np.abs(frame.astype(np.int16) - before[0]).mean()
            made[t, 1] = np.abs(colours - before[1]).sum(1).mean()
        before = frame, colours
    return made


def find_cuts(changes: np.ndarray, *, threshold: float) -> np.ndarray:
    """Indices t such that a new scene starts at frame t, ascending int64. threshold <= 0: none.

    `changes` is what `frame_changes` returns, [n, 2].
    """
    if threshold <= 0 or len(changes) < 2:
        return np.zeros(0, np.int64)
    d, cuts = changes[:, 0], []
    for t in np.nonzero((d > FLOOR) & (changes[:, 1] > COLOURS))[0]:
        around = np.r_[d[max(1, t - REACH) : t], d[t + 1 : t + 1 + REACH]]
        usual = float(np.median(around)) if len(around) else 0.0
        if d[t] > threshold * usual + FLOOR:
            cuts.append(int(t))
    return np.asarray(cuts, np.int64)
