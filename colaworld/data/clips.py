"""A data set as clips: which episodes, which segments, and the frames of a segment at their resolution.

Not here: the choice of episodes (split.py), the order of clips, batches or threads (loader.py).
`ClipSet` is the same for training and evaluation; it counts what it leaves out and why.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from statistics import mode

import numpy as np
import torch

from colaworld.contracts import ActionSpec
from colaworld.data import cuts, transforms, windows
from colaworld.data.cache import ByteCache
from colaworld.data.config import DataConfig, check_there
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.relative_actions import RelativeActions
from colaworld.data.sources import open_source
from colaworld.data.sources.source import (
    BrokenFile,
    EpisodeInfo,
    Source,
    tell_once,
    without_actions,
)
from colaworld.data.split import labelled, select_split

log = logging.getLogger(__name__)
_BLOCK = 32  # frames decoded at full size at a time


@dataclass(frozen=True)
class Decoded:
    """The frames of a segment, ready for slicing."""

    frames: np.ndarray  # [n, 3, H, W] uint8
    cuts: np.ndarray  # [c] int64: frames (within the segment) at which a new scene starts
    usable: bool = True


@dataclass(frozen=True)
class _Timing:
    """How an episode's clips walk through it."""

    length: int  # steps on its clock: frames, or frames at the asked rate
    stride: int  # steps between the frames of a clip
    resampled: bool


class ClipSet:
    """Opens a data set and answers for its clips. Raises DataError where none can be had."""

    def __init__(self, config: DataConfig) -> None:
        path = check_there(config.one_set().path)
        self.config = config
        self.source = open_source(
            path,
            kind=config.source,
            camera=config.camera,
            action_column=config.action_column,
            recorded_fps=config.recorded_fps,
        )
        relative = config.actions == "relative"
        self.acting: Source = RelativeActions(self.source) if relative else self.source
        self._begin = int(relative)  # steps of an episode before its first clip
        self.episodes: list[EpisodeInfo] = select_split(
            self.source.episodes, split=config.split, holdout=config.holdout, path=config.path
        )
        self.held_out = len(self.source.episodes) - len(self.episodes)
        self.unlabelled = len(self.episodes)  # episodes that data.labels leaves out
        self.labels: int | None = None  # recorded transitions in use, where data.labels limits them
        lengths: dict[int, int] = {}
        if config.labels is not None and config.split != "heldout":
            lengths = labelled(
                self.episodes, config.labels, seed=config.labels_seed, path=config.path
            )
            self.episodes = [e for e in self.episodes if e.index in lengths]
        self._check_sizes()
        self.height, self.width = self._size()
        self._timing = {e.index: self._time(e) for e in self.episodes}
        if lengths:
            self._shorten(lengths)
        self.unlabelled -= len(self.episodes)
        self.broken: dict[str, BrokenFile] = {b.reason: b for b in self.source.broken}
        self._lock = threading.Lock()
        self._reading: dict[int, tuple[float, str]] = {}  # by thread: since when, what
        self._cache: ByteCache[Decoded] = ByteCache(
            int(config.cache_mb * 1e6), lambda decoded: decoded.frames.nbytes
        )
        self._actions: dict[int, np.ndarray] = {}
        self._check_broken()
        for found in self.source.broken:  # not before: the error lists them, too
            lost = f" (episodes lost: {found.episodes})" if found.episodes > 1 else ""
            tell_once(logging.WARNING, f"skipped: {found.reason}{lost}")
        self._made: tuple[int, list[windows.Segment]] = 0, []  # by the most frames of a segment
        self.cut()
        self.too_short = [e for e in self.episodes if not self._holds_a_clip(e)]
        self._check_short()

    def cut(self, streams: int = 1) -> None:
        """Cut the episodes into `segments` of which each of `streams` streams can hold two at a time."""
        self.segments = self.segments_for(streams)
        self.count = sum(segment.starts for segment in self.segments)  # clips, before cuts

    def segments_for(self, streams: int) -> list[windows.Segment]:
        """The `segments` that `cut(streams)` would make. Changes none."""
        held = int(self.config.cache_mb * 1e6 / max(8, 2 * streams))
        most = max(1, held // (3 * self.height * self.width))
        if most != self._made[0]:
            made = [
                windows.segments(
                    n, self.length(n), clip_span=self.span(n), most_frames=most, begin=self._begin
                )
                for n in (episode.index for episode in self.episodes)
            ]
            self._made = most, list(chain.from_iterable(made))
        return self._made[1]

    def _holds_a_clip(self, episode: EpisodeInfo) -> bool:
        return self.length(episode.index) >= self._begin + self.span(episode.index)

    def _shorten(self, lengths: dict[int, int]) -> None:
        """Let each episode end behind so many recorded frames; what is too short for a clip goes."""
        for episode in self.episodes:
            timing, most = self._timing[episode.index], lengths[episode.index]
            if timing.resampled and most < episode.frames:
                raise DataError(
                    f"{self.config.path}: data.labels counts recorded frames, those of {episode.name} "
                    "are resampled in time; use a data.fps that divides the recorded rate"
                )
            if not timing.resampled:
                self._timing[episode.index] = replace(timing, length=most)
        self.episodes = [e for e in self.episodes if self._holds_a_clip(e)]
        self.labels = sum(lengths[e.index] - 1 for e in self.episodes)
        if not self.episodes:
            raise DataError(
                f"{self.config.path}: data.labels: {self.config.labels} recorded transitions hold no "
                f"clip of {self.config.frames_per_clip} frames; ask for more"
            )

    @property
    def action_spec(self) -> ActionSpec | None:
        """What `actions` of a clip hold: the column's spec; one entry per step of a stride."""
        spec = self.acting.action_spec
        return spec and spec.every(self._timing[self.segments[0].episode].stride)

    def span(self, episode: int) -> int:
        """Steps on an episode's clock from a clip's first frame to its last, both counted."""
        return windows.span(self.config.frames_per_clip, self._timing[episode].stride)

    def stride(self, episode: int) -> int:
        """Steps on an episode's clock from one frame of a clip to the next."""
        return self._timing[episode].stride

    def fps(self, episode: int) -> float:
        """Frames per second of an episode's clips; where frames are uneven, on average."""
        timing = self._timing[episode]
        if timing.resampled and self.config.fps is not None:
            return self.config.fps
        return self.source.episodes[episode].fps / timing.stride

    @property
    def usual_fps(self) -> float:
        """That of most segments."""
        return mode(self.fps(segment.episode) for segment in self.segments)

    def segment_bytes(self, segment: windows.Segment) -> int:
        return 3 * self.height * self.width * (segment.stop - segment.first)

    def decoded(self, segment: windows.Segment) -> Decoded:
        """The frames of a segment, from the cache if they are there. Thread-safe.

        A broken segment is counted and comes back as not usable; DataError when there are too many.
        """
        return self._cache.get(segment, lambda: self._decode(segment))

    def is_decoded(self, segment: windows.Segment) -> bool:
        """Whether the frames of a segment are in memory."""
        return segment in self._cache

    def clip(self, decoded: Decoded, segment: windows.Segment, start: int, out: np.ndarray) -> bool:
        """Copy the clip at `start` (on the episode's clock) into out [T, 3, H, W].

        False, and nothing copied, if it crosses a scene cut or the segment is broken. Raises ValueError
        where `decoded`, the frames of the segment, does not hold the clip.
        """
        if not decoded.usable:
            return False
        stride, first = self._timing[segment.episode].stride, start - segment.first
        reach = windows.span(self.config.frames_per_clip, stride)
        if first < 0 or first + reach > len(decoded.frames):
            raise ValueError(
                f"{self.source.episodes[segment.episode].path}: the clip at {start} is not among the "
                f"{len(decoded.frames)} decoded frames of segment {segment.first}..{segment.stop - 1}"
            )
        if len(decoded.cuts) and windows.crosses(first, reach, decoded.cuts):
            return False
        out[:] = decoded.frames[first : first + reach : stride]
        return True

    def frame_index(self, episode: int, start: int) -> int:
        """The frame within the episode that a start on its clock stands for."""
        if not self._timing[episode].resampled:
            return start
        return int(self._resampled(episode, start, start + 1)[0])

    def matched_actions(self) -> ActionSpec | None:
        """`action_spec` where each transition of a clip has recorded actions; else None, with a warning
        where there are some that fit no transition."""
        spec = self.source.action_spec
        if spec is None:
            return None
        if (why := self._all_unmatched(spec)) is not None:
            log.warning("recorded actions are left out: %s", why)
            return None
        return self.action_spec

    def _all_unmatched(self, spec: ActionSpec) -> str | None:
        """Why the actions of some episode do not fit its clips."""
        if (lacking := without_actions(self.source, self.episodes)) is not None:
            return (
                f"{lacking.path}: {lacking.name} has no column {spec.column!r}, which other episodes have; leave "
                "such episodes out of the set, or give them the column"
            )
        told = (self._unmatched(spec, self._timing[e.index]) for e in self.episodes)
        return next((why for why in told if why is not None), None)

    def _unmatched(self, spec: ActionSpec, timing: _Timing) -> str | None:
        """Why the actions of an episode do not fit its clips."""
        if timing.resampled and not self.source.uniform_fps:
            return (
                f"{self.config.path}: actions in column {spec.column!r} belong to frames as "
                f"recorded; films of this kind are resampled by the times of their frames, so under an fps "
                "no action leads from one frame of a clip to the next; use stride (--data.stride N "
                "--data.fps None)"
            )
        if timing.resampled:
            return (
                f"{self.config.path}: actions in column {spec.column!r} belong to frames as "
                f"recorded; an fps of {self.config.fps} does not divide the recorded rate, so no "
                "action leads from one frame of a clip to the next; use stride or such an fps"
            )
        usual = self._timing[self.segments[0].episode].stride
        if spec.kind == "continuous" and timing.stride != usual:
            return (
                f"{self.config.path}: under an fps of {self.config.fps} episodes of different recorded rates have "
                f"{usual} and {timing.stride} actions of column {spec.column!r} between two frames of a "
                "clip; use stride, or a set of each rate"
            )
        if spec.kind == "discrete" and timing.stride != 1:
            return (
                f"{self.config.path}: {timing.stride} actions of column {spec.column!r} lie "
                "between two frames of a clip, and classes cannot be merged; use stride 1"
            )
        return None

    def clip_actions(self, episode: int, start: int) -> np.ndarray:
        """[T-1] int64 or [T-1, A] float32 for the clip at `start`: entry t leads to frame t + 1.

        With a stride s, a continuous entry holds the s actions in between, one after another.
        Raises DataError where there are none that match the frames.
        """
        spec, timing = self.source.action_spec, self._timing[episode]
        if spec is None:
            raise self._no_actions()
        if (why := self._unmatched(spec, timing)) is not None:
            raise DataError(why)
        with self._lock:
            values = self._actions.get(episode)
        if values is None:
            with self._timed(f"actions of {self.source.episodes[episode].name}"):
                values = self.acting.actions(episode)
            assert values is not None
            with self._lock:
                if len(self._actions) >= 4096:  # episodes; a few MB
                    self._actions.clear()
                self._actions[episode] = values
        steps = self.config.frames_per_clip - 1
        part = values[start : start + steps * timing.stride]
        return part if spec.kind == "discrete" else part.reshape(steps, timing.stride * spec.size)

    def require_actions(self) -> None:
        """Raises DataError, naming file and column, if clips cannot come with actions."""
        if self.source.action_spec is None:
            raise self._no_actions()
        if (why := self._all_unmatched(self.source.action_spec)) is not None:
            raise DataError(why)
        self.clip_actions(self.segments[0].episode, self.segments[0].first)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        thread = threading.get_ident()
        self._reading[thread] = time.monotonic(), what
        try:
            yield
        finally:
            del self._reading[thread]

    def longest_read(self) -> tuple[float, str]:
        """Seconds that the longest of the reads under way has taken, and what it reads; 0.0: none."""
        under_way = sorted(self._reading.copy().values())
        return (time.monotonic() - under_way[0][0], under_way[0][1]) if under_way else (0.0, "")

    def _no_actions(self) -> DataError:
        return DataError(self.source.describe().no_actions)

    def _decode(self, segment: windows.Segment) -> Decoded:
        info = self.source.episodes[segment.episode]
        try:
            what = f"{info.path}: {info.name}, frames {segment.first}..{segment.stop - 1}"
            with self._timed(what):
                frames = self._read(info, segment)
            if (value := frames.min()) == frames.max():
                raise BrokenFileError(
                    f"{what}: nothing but the value {value} (a renderer or camera that failed?)"
                )
        except BrokenFileError as error:
            self.leave_out(segment.episode, str(error))
            return Decoded(np.zeros((0, 3, 1, 1), np.uint8), np.zeros(0, np.int64), usable=False)
        threshold = self.config.scene_cut_threshold
        changes = cuts.frame_changes(frames) if threshold > 0 else np.zeros((0, 2), np.float32)
        return Decoded(frames, cuts.find_cuts(changes, threshold=threshold))

    def leave_out(self, episode: int, reason: str) -> None:
        """Count an episode as broken. Raises DataError where that makes too many."""
        info = self.source.episodes[episode]
        with self._lock:
            self.broken.setdefault(f"{info.path}#{info.name}", BrokenFile(info.path, reason))
        self._check_broken()
        log.warning("skipped: %s", reason)

    def _read(self, info: EpisodeInfo, segment: windows.Segment) -> np.ndarray:
        made = np.empty((segment.stop - segment.first, 3, self.height, self.width), np.uint8)
        done = 0
        for _, block in self.stream(info.index, segment.first, segment.stop):
            made[done : done + len(block)] = block
            done += len(block)
        return made

    def length(self, episode: int) -> int:
        """Steps on an episode's clock: its frames, or its frames at the asked rate."""
        return self._timing[episode].length

    def resampled(self, episode: int) -> bool:
        """Whether an episode's clock ticks at the asked rate, which its frames' own does not give."""
        return self._timing[episode].resampled

    def stream(
        self, episode: int, first: int, stop: int, *, recorded: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Steps first..stop-1 of an episode's clock, in blocks, in one pass and bounded memory.

        Each block: index [n] int64 of its frames within the episode, and frames
        [n, 3, height, width] uint8. With `recorded`, steps are its frames, whatever rate is asked.
        Raises BrokenFileError where they cannot be decoded, or the source gives fewer than it says.
        """
        if self._timing[episode].resampled and not recorded:
            wanted = self._resampled(episode, first, stop)
        else:
            wanted = np.arange(first, stop)
        block: list[np.ndarray] = []
        place = done = 0
        frames = self.source.stream(episode, int(wanted[0]), int(wanted[-1]) + 1)
        for at, frame in enumerate(frames, int(wanted[0])):
            while place < len(wanted) and wanted[place] == at:
                block.append(frame)
                place += 1
            if len(block) >= _BLOCK or (block and place == len(wanted)):
                yield wanted[done:place], self._fit(block)
                block, done = [], place
        if place < len(wanted):
            info = self.source.episodes[episode]
            raise BrokenFileError(
                f"{info.path}: {info.name}: expected frames up to {wanted[-1]}, the source gave none "
                f"from {wanted[place]} on"
            )

    def _fit(self, block: list[np.ndarray]) -> np.ndarray:
        """Frames [H, W, 3] -> [n, 3, height, width], cropped and resized."""
        frames = np.stack(block)
        top, left, h, w = transforms.crop_box(
            self.config.crop,
            height=frames.shape[1],
            width=frames.shape[2],
            target_height=self.config.height,
            target_width=self.config.width,
        )
        part = torch.from_numpy(frames[:, top : top + h, left : left + w]).permute(0, 3, 1, 2)
        return transforms.resize(part, self.height, self.width).numpy()

    def _resampled(self, episode: int, first: int, stop: int) -> np.ndarray:
        """Recorded frames at the times first/fps .. (stop-1)/fps: the last one begun by then."""
        assert self.config.fps is not None
        times = self.source.times(episode)
        at = np.arange(first, stop) / self.config.fps
        return np.clip(np.searchsorted(times, at + 1e-4, "right") - 1, 0, len(times) - 1)

    def _time(self, episode: EpisodeInfo) -> _Timing:
        fps = self.config.fps
        if fps is None:
            return _Timing(episode.frames, self.config.stride, False)
        ratio = episode.fps / fps
        if ratio < 0.99:
            raise DataError(
                f"{episode.path}: recorded at {episode.fps:g} frames/s, fewer than the asked "
                f"{fps:g}; lower fps to {episode.fps:g}"
            )
        whole = round(ratio)
        if self.source.uniform_fps and abs(ratio - whole) < 1e-3 * whole:
            return _Timing(episode.frames, whole, False)
        return _Timing(int((episode.frames - 1) / episode.fps * fps + 1e-6) + 1, 1, True)

    def _check_sizes(self) -> None:
        sizes: dict[tuple[int, int], EpisodeInfo] = {}
        for episode in self.episodes:
            sizes.setdefault((episode.height, episode.width), episode)
        crop = self.config.crop
        if self.config.height is None and not isinstance(crop, tuple) and len(sizes) > 1:
            shown = ", ".join(f"{h}x{w} ({e.name})" for (h, w), e in list(sizes.items())[:6])
            raise DataError(
                f"{self.config.path}: frames of {len(sizes)} sizes: {shown}; set height and width "
                "of the data (--data.height H --data.width W)"
            )
        for (height, width), episode in sizes.items():
            try:
                transforms.crop_box(
                    crop,
                    height=height,
                    width=width,
                    target_height=self.config.height,
                    target_width=self.config.width,
                )
            except ValueError as error:
                raise DataError(f"{episode.path}: {error}") from error

    def _size(self) -> tuple[int, int]:
        if self.config.height is not None and self.config.width is not None:
            return self.config.height, self.config.width
        if isinstance(self.config.crop, tuple):
            return self.config.crop[2], self.config.crop[3]
        return self.episodes[0].height, self.episodes[0].width

    def _check_broken(self) -> None:
        total = len(self.source.episodes) + sum(b.episodes for b in self.source.broken)
        with self._lock:
            broken = list(self.broken.values())
        lost = sum(b.episodes for b in broken)
        if lost > self.config.max_broken_share * total:
            listed = "\n".join(f"  {b.reason}" for b in broken[:20])
            raise DataError(
                f"{self.config.path}: {lost} of {total} files or episodes are broken, more "
                f"than max_broken_share = {self.config.max_broken_share:g} (raise it with "
                f"--data.max-broken-share to go on without them):\n{listed}"
            )

    def _check_short(self) -> None:
        if self.too_short:
            log.warning(
                "%s: %d of %d episodes are shorter than a clip and left out (first: %s)",
                self.config.path,
                len(self.too_short),
                len(self.episodes),
                self.too_short[0].name,
            )
        if self.segments:
            return
        longest = max(self.episodes, key=lambda e: self._timing[e.index].length)
        timing = self._timing[longest.index]
        raise DataError(
            f"{self.config.path}: every episode is shorter than a clip: the longest, "
            f"{longest.name}, has {timing.length} frames, a clip of {self.config.frames_per_clip} "
            f"frames with stride {timing.stride} needs {self._begin + self.span(longest.index)}"
            f"{', with one before it for data.actions relative' * self._begin}; lower frames_per_clip or stride"
        )
