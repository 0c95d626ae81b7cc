"""Look through a data set: what is in it, what is wrong with it, what a person should know of it
(`warnings_of`, also said when a training starts), and a sheet of its frames.

Not here: printing (cli/data.py). One segment of film is in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.data import cuts
from colaworld.data.config import DataConfig
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.labels import ESTIMATE, PROVENANCE, read_labels, whose
from colaworld.data.sources import open_source
from colaworld.data.sources.source import BrokenFile, EpisodeInfo, Source
from colaworld.files import printable

_BLOCK = 256  # frames looked at together; the comparison carries on from the last one


@dataclass(frozen=True)
class ActionSummary:
    """One row per class (discrete: `count`) or per dimension (continuous: the range)."""

    spec: ActionSpec
    low: list[float]
    high: list[float]
    mean: list[float]
    count: list[int]


@dataclass
class Inspection:
    """What was found. `cuts`: (episode name, frame). Episodes beyond `looked_at` were not decoded."""

    path: Path
    kind: str
    episodes: int
    frames: int
    seconds: float
    fps: Counter[float] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width)
    lengths: tuple[int, int, int] = (0, 0, 0)  # shortest, median, longest
    cameras: list[str] = field(default_factory=list)
    actions: list[ActionSummary] = field(default_factory=list)
    action_problems: list[str] = field(default_factory=list)
    labels: str = ""  # of the latent actions it has, in words; none: ""
    looked_at: int = 0
    cuts: list[tuple[str, int]] = field(default_factory=list)
    broken: list[BrokenFile] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    thumbnails: list[np.ndarray] = field(default_factory=list)  # [columns, H, W, 3] per row
    shown: list[str] = field(default_factory=list)  # name of each row


def inspect(
    config: DataConfig, *, most_episodes: int = 200, rows: int = 8, columns: int = 10
) -> Inspection:
    """Look at a data set; the pictures of at most `most_episodes`, spread evenly over it.

    `rows` x `columns` frames are kept for the contact sheet. Raises DataError only where the set
    cannot be opened at all.
    """
    if config.path is None:
        raise DataError("no data set was named")
    source = _open(config, config.source, config.action_column)
    lengths = sorted(e.frames for e in source.episodes)
    made = Inspection(
        path=Path(config.path),
        kind=source.kind,
        episodes=len(source.episodes),
        frames=sum(lengths),
        seconds=sum(e.frames / e.fps for e in source.episodes),
        fps=Counter(round(e.fps, 3) for e in source.episodes),
        sizes=Counter((e.height, e.width) for e in source.episodes),
        lengths=(lengths[0], lengths[len(lengths) // 2], lengths[-1]),
        cameras=list(source.describe().cameras),
        broken=list(source.broken),
        warnings=warnings_of(source, config),
    )
    total = len(source.episodes)
    count = min(total, most_episodes)
    looked = sorted({i * total // count for i in range(count)})
    shown = {looked[i * len(looked) // rows] for i in range(min(rows, len(looked)))}
    if len(looked) < rows:
        shown = set(looked)
    for index in looked:
        _look(source, source.episodes[index], config, made, columns if index in shown else 0)
    made.looked_at = len(looked)
    made.labels = _labels(made)
    for column in _action_columns(source, config.action_column):
        _summarise_actions(config, source.kind, column, looked, made)
    return made


def _labels(made: Inspection) -> str:
    """Whose latent actions `colaworld label` wrote into a set, and how many; what cannot be read is warned of."""
    if not (made.path / PROVENANCE).is_file():
        return ""
    try:
        said = read_labels(made.path)
        model, counts = said["model"], said["counts"]
        share = counts["valid"] / max(1, counts["frames"])
        labelled = said["episodes"]["labelled"]
        real = " and estimated real ones" if ESTIMATE in said["columns"] else ""
    except (DataError, LookupError, TypeError) as error:
        made.warnings.append(f"latent actions cannot be told: {error}")
        return ""
    return (
        f"of model {model['hash'][:16]} ({whose(said)}){real}, in {labelled} episodes; {share:.1%} "
        "of their rows valid"
    )


def _open(config: DataConfig, kind: str, column: str | None) -> Source:
    assert config.path is not None
    return open_source(
        config.path,
        kind=kind,
        camera=config.camera,
        action_column=column,
        recorded_fps=config.recorded_fps,
    )


def warnings_of(source: Source, config: DataConfig) -> list[str]:
    """What a person should know of a set that can be read, a line each: what its videos are like,
    what of its folder was passed over, and rates that make the steps of clips unequal."""
    about = source.describe()
    lines = list(about.warnings)
    if config.fps is not None:
        return lines
    if about.uneven:
        lines.append(
            f"{len(about.uneven)} of {len(source.episodes)} videos have an uneven frame rate (first: "
            f"{about.uneven[0]}): equal steps in frames are unequal times; set fps (--data.fps N)"
        )
    rates = Counter(float(f"{e.fps:.3g}") for e in source.episodes)
    if max(rates) > 1.02 * min(rates):
        listed = ", ".join(f"{rate:g} ({count})" for rate, count in sorted(rates.items())[:8])
        lines.append(
            f"frame rates differ: {listed}{', ...' if len(rates) > 8 else ''}: a step of a clip is not "
            "the same time in all of them; set fps (--data.fps N)"
        )
    return lines


def _look(
    source: Source, episode: EpisodeInfo, config: DataConfig, made: Inspection, columns: int
) -> None:
    """Cuts, faults and, if `columns`, thumbnails of one episode.

    Training reads from anywhere: a frame of its middle and its last one are read alone as well, and must
    look as they did when the episode was read through.
    """
    wanted = {i * (episode.frames - 1) // max(1, columns - 1) for i in range(columns)}
    kept: list[np.ndarray] = []
    again = {episode.frames // 2, episode.frames - 1}
    changes: list[np.ndarray] = []
    low, high = 255, 0
    try:
        for first, block in _blocks(source.stream(episode.index, 0, episode.frames)):
            frames = np.stack(block).transpose(0, 3, 1, 2)
            changes.append(cuts.frame_changes(frames)[0 if first == 0 else 1 :])
            low, high = min(low, int(frames.min())), max(high, int(frames.max()))
            start = first if first == 0 else first - 1  # a later block repeats the last frame
            kept += [f for i, f in enumerate(block, start) if i in wanted and i >= first]
            for i in again & set(range(first, start + len(block))):
                alone = source.read(episode.index, [i])[0].astype(np.int16)
                if np.abs(alone - block[i - start]).mean() > 2:  # of 255; damage is mended unalike
                    raise BrokenFileError(
                        f"{episode.path}: {episode.name}: frame {i} is another one when it is read alone"
                    )
    except BrokenFileError as error:
        made.broken.append(BrokenFile(episode.path, str(error)))
        return
    if low == high:
        made.constant.append(f"{episode.path}: {episode.name}: nothing but the value {low}")
    found = cuts.find_cuts(np.concatenate(changes), threshold=config.scene_cut_threshold)
    made.cuts += [(episode.name, int(t)) for t in found]
    if kept:
        made.thumbnails.append(np.stack(kept))
        made.shown.append(episode.name)


def _blocks(frames: Iterator[np.ndarray]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(index of the first new frame, frames); from the second block on led by the last frame."""
    block: list[np.ndarray] = []
    first = 0
    for index, frame in enumerate(frames):
        block.append(frame)
        if len(block) > _BLOCK:
            yield first, block
            block, first = [frame], index + 1
    if len(block) > 1 or first == 0:
        yield first, block


def _action_columns(source: Source, asked: str | None) -> list[str]:
    """The asked column and every other one whose name begins with action."""
    columns = source.describe().columns
    named = [column for column in columns if column.startswith("action")]
    return list(dict.fromkeys(([asked] if asked in columns else []) + named))


def _summarise_actions(
    config: DataConfig, kind: str, column: str, episodes: list[int], made: Inspection
) -> None:
    """Ranges (or counts) of one column over the episodes looked at, and what is wrong with it."""
    assert config.path is not None
    low = high = total = None
    rows = 0
    try:
        source = _open(config, kind, column)
        spec = source.action_spec
        if spec is None:
            return
        counts = np.zeros(spec.size, np.int64)
        for index in episodes:
            values = source.actions(index)
            assert values is not None
            if spec.kind == "discrete":
                counts += np.bincount(values, minlength=spec.size)
            else:
                v = values.astype(np.float64)
                low = v.min(0) if low is None else np.minimum(low, v.min(0))
                high = v.max(0) if high is None else np.maximum(high, v.max(0))
                total = v.sum(0) if total is None else total + v.sum(0)
            rows += len(values)
    except DataError as error:
        made.action_problems.append(str(error))
        return
    nothing: list[float] = []
    made.actions.append(
        ActionSummary(
            spec,
            nothing if low is None else low.tolist(),
            nothing if high is None else high.tolist(),
            nothing if total is None else (total / rows).tolist(),
            counts.tolist() if spec.kind == "discrete" else [],
        )
    )


def contact_sheet(found: Inspection, path: Path, *, least_side: int = 96) -> Path:
    """A PNG with one row of frames per episode, evenly spaced in time, its name above it. Small frames
    are enlarged by whole factors without smoothing, so that their pixels can be seen."""
    from PIL import Image, ImageDraw

    if not found.thumbnails:
        raise DataError(f"{found.path}: no frame could be decoded, so there is no contact sheet")
    gap, head = 4, 14  # head: the line that names a row
    lines = []
    height = min(240, max(least_side, min(row.shape[1] for row in found.thumbnails)))
    for row, name in zip(found.thumbnails, found.shown, strict=True):
        factor = max(1, round(height / row.shape[1]))
        if row.shape[1] > height:
            size = (max(1, row.shape[2] * height // row.shape[1]), height)
            frames = [Image.fromarray(f).resize(size, Image.Resampling.BICUBIC) for f in row]
        else:
            size = (row.shape[2] * factor, row.shape[1] * factor)
            frames = [Image.fromarray(f).resize(size, Image.Resampling.NEAREST) for f in row]
        line = Image.new("RGB", (len(frames) * (size[0] + gap) - gap, head + size[1]), "white")
        # Of the characters that every build of Pillow can draw.
        text = printable(name).encode("ascii", "backslashreplace").decode()
        ImageDraw.Draw(line).text((0, 0), text, fill="black")
        for i, frame in enumerate(frames):
            line.paste(frame, (i * (size[0] + gap), head))
        lines.append(line)
    sheet = Image.new(
        "RGB",
        (max(x.width for x in lines) + 2 * gap, sum(x.height + gap for x in lines) + gap),
        "white",
    )
    top = gap
    for line in lines:
        sheet.paste(line, (gap, top))
        top += line.height + gap
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path
