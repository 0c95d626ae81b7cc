"""Which clips are cut from which videos, and how recorded ones are compressed. Imports no torch.

Not here: cutting (clips.py), compressing (video_writer.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from colaworld.config import (
    Checked,
    ConfigError,
    Count,
    Natural,
    Positive,
    Range,
    Seed,
    Share,
    Size,
    Weight,
)
from colaworld.data.errors import DataError


@dataclass(frozen=True)
class MixtureSource(Checked, at="data.mixture."):
    """One data set of a mixture. What is left out is as the mixture's other data settings say."""

    path: Path
    """The data set: a folder, as `data.path`."""
    weight: Positive = 1.0
    """Its share of the clips, relative to the weights of the others."""
    source: str = "auto"
    """How to read it, as `data.source`."""
    camera: str | None = None
    """Of several views, the one to use."""
    stride: Count | None = None
    """Every stride-th frame, in place of data.stride and data.fps."""
    fps: Positive | None = None
    """Frames per second of a clip, in place of data.stride and data.fps."""
    recorded_fps: Positive | None = None
    """Frames per second of files that do not say it."""
    split: Literal["train", "heldout", "all"] | None = None
    """Which share of its episodes to use."""


@dataclass(frozen=True)
class DataConfig(Checked, at="data."):
    """Which clips are cut from which videos."""

    path: Path | None = None
    """The data set: a LeRobot folder, any folder of video files, of tars that hold them
    (WebDataset), or of HDF5 files (robomimic, LIBERO). docs/data-formats.md has all."""
    mixture: dict[str, MixtureSource] = field(default_factory=dict)
    """In place of `path`: several data sets by name, each with a weight."""
    source: str = "auto"
    """How to read it: lerobot, hdf5, webdataset, video_folder, or a source of your own. auto: the
    first that recognises it."""
    camera: str | None = None
    """Of several views, the one to use. LeRobot: a video feature, or the last part of its name (default:
    the first); HDF5: a name in obs; WebDataset: what stands before .mp4."""
    frames_per_clip: Count = 8
    """Frames in a clip."""
    stride: Count = 1
    """Every stride-th frame. Leave at 1 when fps is set."""
    fps: Positive | None = None
    """Frames per second of a clip, from the frames' own times. Default: as recorded."""
    height: Size | None = None
    """Pixels. Default: as recorded, if all files agree."""
    width: Size | None = None
    """Pixels. Default: as recorded, if all files agree."""
    crop: Literal["none", "center"] | tuple[Natural, Natural, Count, Count] = "center"
    """Before resizing. center: the largest centred box of shape height:width; none: the whole
    frame, stretched; or a box in pixels as shown: top left height width."""
    scene_cut_threshold: Weight = 3.0
    """How many times the usual frame difference a scene cut is. No clip crosses a cut. 0: off."""
    max_broken_share: Share = 0.05
    """Share of files that may be unreadable (each is named and skipped) before it is an error."""
    holdout: Share = 0.1
    """Share of episodes kept for evaluation, drawn by a hash of their names."""
    split: Literal["train", "heldout", "all"] = "train"
    """Which share to use."""
    labels: Count | None = None
    """Use so many recorded transitions of the training share alone: whole episodes in an order of their
    own, the last one cut. Fewer are a part of more. None: all."""
    labels_seed: Seed = 0
    """Which transitions those are."""
    recorded_fps: Positive | None = None
    """HDF5: frames per second as recorded, where the files do not say (or say it wrong)."""
    action_column: str | None = "action"
    """Column of the real actions: read by evaluation, and by phases whose objective asks for them."""
    actions: Literal["as_recorded", "relative"] = "as_recorded"
    """relative: recorded places (mode absolute, or not said), told from the place before; clips begin with the
    second frame of an episode, since the first has none before it."""
    unlike_actions: Literal["refuse", "warn"] = "refuse"
    """Recorded actions whose numbers are unlike those that the run learned from: another scale, place or
    order of columns. warn takes them. Stated facts that contradict are refused in any case."""
    streams: Annotated[int, Range(ge=1, le=65_536)] | None = None
    """Streams that the clips come from in turn. The number of processes must divide it. Default: the
    largest divisor of the batch that the episodes can fill."""
    shuffle_window: Natural = 0
    """Clips are mixed among this many segments (episodes, or parts of long ones) at a time. 0: as
    many as half the cache holds, or all if all fit."""
    cache_mb: Positive = 1024.0
    """Bound on decoded frames kept in memory, in each process. A set that fits is decoded once."""
    workers: Annotated[int, Range(ge=0, le=1024)] = 1
    """Threads that decode ahead. 0: decode when asked. The order of clips is the same."""
    timeout: Annotated[float, Range(gt=0, le=86_400)] = 300.0
    """Seconds that one segment of a film may take to be read; then training stops with an error that
    names it. Not watched with workers 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is not None and self.stride != 1:
            raise ConfigError(
                f"data.fps: expected stride 1 beside it, got fps={self.fps}, stride={self.stride}; "
                "set one of the two"
            )
        if (self.height is None) != (self.width is None):
            raise ConfigError(
                f"data: set both height and width or neither, got {self.height} and {self.width}"
            )
        if self.path is not None and self.mixture:
            raise ConfigError(
                f"data.path: expected none beside data.mixture ({', '.join(self.mixture)}), got "
                f"{self.path}; name one set or several"
            )

    def sets(self) -> dict[str, DataConfig]:
        """The data sets by name, each as if it stood alone; one that does stand alone is "data"."""
        if not self.mixture:
            return {"data": self}
        made = {}
        for name, part in self.mixture.items():
            rate = {"stride": self.stride, "fps": self.fps}
            if part.stride is not None or part.fps is not None:
                rate = {"stride": part.stride or 1, "fps": part.fps}
            try:
                made[name] = replace(
                    self,
                    path=part.path,
                    mixture={},
                    source=part.source,
                    camera=part.camera,
                    recorded_fps=part.recorded_fps or self.recorded_fps,
                    split=part.split or self.split,
                    cache_mb=self.cache_mb / len(self.mixture),
                    **rate,
                )
            except ConfigError as error:
                raise ConfigError(f"data.mixture.{name}: {error}") from None
        return made

    def shares(self) -> dict[str, float]:
        """Which share of the clips comes from each of `sets`; the sum is 1."""
        total = sum(part.weight for part in self.mixture.values())
        return {name: part.weight / total for name, part in self.mixture.items()} or {"data": 1.0}

    def one_set(self, named: Path | None = None) -> DataConfig:
        """The data of one set: that of a mixture with this name or path, or another one at this path.

        Raises DataError where there are several and none is named.
        """
        sets = self.sets()
        if named is None:
            if self.mixture:
                raise DataError(
                    f"these are {len(sets)} data sets, one is needed: name one with --data: "
                    f"{', '.join(sets)}"
                )
            return self
        for name, data in sets.items() if self.mixture else ():
            if str(named) == name or (data.path and named.resolve() == data.path.resolve()):
                return data
        return replace(self, path=named, mixture={})


@dataclass(frozen=True)
class EncodingConfig(Checked, at="encoding."):
    """How frames are compressed (H.264)."""

    pixel_format: Literal["yuv420p", "yuv444p"] = "yuv444p"
    """yuv420p halves the resolution of colour: every player shows it, but it blurs 4-px cells.
    yuv444p keeps it; ffmpeg, PyAV and Chromium decode it, some hardware players do not."""
    crf: Annotated[int, Range(ge=0, le=51)] = 10
    """Constant rate factor, 0 (best) to 51. 10 is visually lossless for small pixel art."""
    preset: str = "medium"
    """x264 preset: slower ones give smaller files at the same quality."""
    keyframe_every: Count = 2
    """Frames from one key frame to the next."""


def check_sets(data: DataConfig) -> None:
    """Raises DataError, by name in a mixture, where no data set is named or one is not there."""
    for name, one in data.sets().items():
        try:
            check_there(one.path)
        except DataError as error:
            raise DataError(f"data.mixture.{name}: {error}" if data.mixture else error) from None


def check_apart(out: Path, data: DataConfig) -> None:
    """ConfigError where what is written to `out` would lie in a data set's folder."""
    for one in data.sets().values():
        if one.path is None:
            continue
        here, there = out.resolve(), one.path.resolve()
        if here == there or there in here.parents:
            where = "is" if here == there else "is within"
            raise ConfigError(
                f"--out {out}: {where} the data set {one.path}; choose a folder beside it"
            )


def check_there(path: Path | None) -> Path:
    """The path of a data set. Raises DataError where none is named or nothing is there."""
    if path is None:
        raise DataError("no data set was named; pass its folder as --data PATH")
    if not path.exists():
        raise DataError(f"{path}: no such folder or file")
    return path
