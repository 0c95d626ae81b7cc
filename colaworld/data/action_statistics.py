"""The action contract of a data set: computed from the recorded column, kept in a file beside it, read again.

    contract = contract_of(clips)                       # as a step of a clip holds its actions
    contract = measure(source)                          # as recorded, over all episodes
    write_contract(source, contract)                    # meta/colaworld_actions.json

Statistics are over every row of every episode, held out or not, as LeRobot's are: they belong to the set, and
do not move with a run's split. Memory is bounded: quantiles are exact up to `SAMPLE` rows, and beyond from so
many, drawn evenly. What a set says of its own statistics is checked against them (`told_wrongly`).
Not here: what two contracts have to do with each other (action_differences.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from colaworld import __version__
from colaworld.action_contract import ActionContract, Normaliser
from colaworld.action_differences import telling
from colaworld.config import from_dict, to_dict
from colaworld.contracts import ActionSpec
from colaworld.data.errors import DataError
from colaworld.data.index_cache import IndexCache
from colaworld.data.relative_actions import RelativeActions
from colaworld.data.sources.lerobot_statistics import Statistics
from colaworld.data.sources.source import Source, TellsActionFiles, TellsStatistics
from colaworld.data.video_file import file_stamp
from colaworld.files import FileError, check_seal, read_json, seal, write_atomically

if TYPE_CHECKING:
    from colaworld.data.clips import ClipSet

SAMPLE = 100_000  # rows that quantiles are taken from
NAME = "colaworld_actions.json"
STATED = ("names", "units", "mode", "frame")  # of a spec, that a person may have to say
Scaling = Literal["mean_std", "min_max", "quantile", "none"]


def contract_of(clips: ClipSet) -> ActionContract:
    """What the actions of a set's clips are: those of the file beside the set, else as measured, once for
    as long as no file changes; with a stride, all that lie in a step. Raises DataError where there are
    none, or the file is not of this set."""
    clips.require_actions()
    recorded = read_contract(clips.source)
    if clips.config.actions == "relative":
        recorded = _relative(_measured(clips.acting), recorded)
    elif recorded is None:
        recorded = _measured(clips.source)
    return recorded.every(clips.stride(clips.segments[0].episode))


def measure(
    source: Source,
    *,
    spec: ActionSpec | None = None,
    scaling: Scaling = "mean_std",
    progress: Callable[[int, int, str], None] | None = None,
) -> ActionContract:
    """The contract of the recorded actions, over all episodes.

    `spec`: what is known of them, in place of what the source says. `scaling` is the kind of the
    normaliser; classes have none. Raises DataError where there are no actions, or an episode's do not fit.
    """
    spec = spec or source.action_spec
    if spec is None or source.action_spec is None:
        raise DataError(source.describe().no_actions)
    discrete = spec.kind == "discrete"
    counts = np.zeros(spec.size if discrete else 0, np.int64)
    total: Statistics | None = None
    sample = _Sample()
    for number, episode in enumerate(source.episodes, 1):
        values = source.actions(episode.index)
        assert values is not None, "a source with a spec has actions"
        if isinstance(source, RelativeActions) and len(values) > 1:
            values = values[1:]  # no way leads to the first place
        if discrete:
            counts += np.bincount(values, minlength=spec.size)
        else:
            part = Statistics.of(values)
            total = part if total is None else total.merged(part)
            sample.add(values)
        if progress is not None:
            progress(number, len(source.episodes), "episodes")
    if total is None:
        normaliser = Normaliser(count=int(counts.sum()), counts=tuple(counts.tolist()))
    else:
        q01, q99 = np.quantile(sample.rows(), (0.01, 0.99), axis=0)
        std = np.sqrt(total.m2 / total.count)
        columns = (total.mean, std, total.low, total.high, q01, q99)
        normaliser = Normaliser(scaling, total.count, *(tuple(c.tolist()) for c in columns))
    return ActionContract.of(spec, rate=rate_of(source), normaliser=normaliser)


def _measured(source: Source) -> ActionContract:
    """`measure`, from the index cache where neither the files of the actions nor what is known of them
    changed; a source that does not tell its files is measured each time."""
    if source.action_spec is None or not isinstance(source, TellsActionFiles):
        return measure(source)
    ways = ["ways"] if isinstance(source, RelativeActions) else []
    said = json.dumps([to_dict(source.action_spec), SAMPLE, *ways], sort_keys=True)

    def stamp() -> tuple[int, ...]:
        digest = hashlib.blake2b(digest_size=7)  # a whole number that JSON holds exactly
        for path in source.action_files():
            digest.update(f"{path} {file_stamp(path)}\n".encode())
        for episode in source.episodes:
            digest.update(f"{episode.name} {episode.frames}\n".encode())
        return (int.from_bytes(digest.digest(), "little"),)

    index = IndexCache(contract_file(source.path))
    kept = index.get(
        f"actions {hashlib.sha256(said.encode()).hexdigest()}",
        stamp,
        lambda: to_dict(measure(source)),
    )
    index.save(whole=False)
    return replace(from_dict(ActionContract, kept, where=f"{index.path}"), rate=rate_of(source))


def _relative(measured: ActionContract, written: ActionContract | None) -> ActionContract:
    """What was measured of relative actions, with the names, units and frame that were written of the places."""
    if written is None:
        return measured
    if written.mode == "relative":
        raise DataError(
            f"column {written.column!r}: data.actions: relative is for places, and its contract says that they are "
            "relative as they are; leave it out"
        )
    return replace(measured, names=written.names, units=written.units, frame=written.frame)


class _Sample:
    """Rows drawn evenly from a stream: those of the `SAMPLE` lowest of random numbers, one for each."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._kept: list[np.ndarray] = []  # [n, 1 + A]: number, row
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        numbers = self._random.random(len(rows))
        self._kept.append(np.column_stack([numbers, rows]))
        self._count += len(rows)
        if self._count > 2 * SAMPLE:
            self._cut()

    def _cut(self) -> None:
        kept = np.concatenate(self._kept)
        if len(kept) > SAMPLE:
            kept = kept[np.argpartition(kept[:, 0], SAMPLE)[:SAMPLE]]
        self._kept, self._count = [kept], len(kept)

    def rows(self) -> np.ndarray:
        self._cut()
        return self._kept[0][:, 1:]


def rate_of(source: Source) -> float | None:
    """Actions a second; None where episodes differ by more than a hundredth."""
    rates = [episode.fps for episode in source.episodes]
    return float(np.median(rates)) if max(rates) <= 1.01 * min(rates) else None


def stated(spec: ActionSpec, said: Mapping[str, Any], *, who: str) -> ActionSpec:
    """`spec` with the names, units, mode and frame that `who` says besides. Raises DataError where the
    two contradict: one of them is to be corrected. Names that only number the columns give way."""
    for name in STATED:
        before, now = getattr(spec, name), said.get(name)
        if name == "names" and not telling(before):
            continue
        if now and before and now != before:
            raise DataError(
                f"column {spec.column!r}: {name}: the data set says {before!r}, {who} says {now!r}; "
                "make the two agree"
            )
    try:
        return replace(spec, **{name: said[name] for name in STATED if said.get(name)})
    except ValueError as error:
        raise DataError(f"column {spec.column!r}: {who}: {error}") from None


# -- the file ------------------------------------------------------------------------------------


def contract_file(path: Path) -> Path:
    """Where the contracts of a set lie: in its meta/, else in its folder, else beside its file."""
    if path.is_file():
        return path.with_name(f"{path.name}.{NAME}")
    return path / "meta" / NAME if (path / "meta").is_dir() else path / NAME


def stored_contract(source: Source) -> ActionContract | None:
    """What was written of the source's column, whether or not it still fits. Raises DataError on a file
    that is not as it was written."""
    entry = _entries(source.path).get(_column(source))
    if entry is None:
        return None
    return from_dict(ActionContract, entry["contract"], where=f"{contract_file(source.path)}")


def read_contract(source: Source) -> ActionContract | None:
    """What was written of the source's column, at the rate that the source has now; None: nothing was.

    Raises DataError where the set has changed since, in its extent or in the rows of its first, middle or
    last episode, or says other things of its actions.
    """
    contract, file = stored_contract(source), contract_file(source.path)
    if contract is None or source.action_spec is None:
        return None
    entry, again = (
        _entries(source.path)[contract.column],
        f"colaworld data stats {source.path} --write",
    )
    before, now = entry["set"], _extent(source)
    lost = before["readable"] != now["readable"]  # a film that cannot be read any more
    if before["episodes"] != now["episodes"] or (not lost and before["frames"] != now["frames"]):
        raise DataError(
            f"{file}: describes {_told(entry['set'])}, the set has {_told(now)}; write it again: {again}"
        )
    spec = source.action_spec
    if (contract.kind, contract.size) != (spec.kind, spec.size):
        raise DataError(
            f"{file}: column {spec.column!r}: {contract.kind}, {contract.size}; the set has "
            f"{spec.kind}, {spec.size}; write it again: {again}"
        )
    stated(spec, {name: getattr(contract, name) for name in STATED}, who=str(file))
    told, found = entry.get("rows", {}), _rows(source, set(entry.get("rows", ())))
    if changed := [name for name, digest in found.items() if told[name] != digest]:
        raise DataError(
            f"{file}: column {spec.column!r}: the rows of {changed[0]} are not those it was measured from; "
            f"write it again: {again}"
        )
    return replace(contract, rate=rate_of(source))


def write_contract(source: Source, contract: ActionContract) -> Path:
    """Write the contract beside the set, whole or not at all; other columns' stay. Returns the file."""
    file = contract_file(source.path)
    ends = {source.episodes[n].name for n in (0, len(source.episodes) // 2, -1)}
    entry = {
        "contract": to_dict(contract),
        "hash": contract.hash,
        "set": _extent(source),
        "rows": _rows(source, ends),
    }
    columns = {**_entries(source.path), contract.column: entry}
    content = seal({"colaworld": __version__, "columns": columns})
    try:
        write_atomically(file, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error}") from error
    return file


def _entries(path: Path) -> dict[str, Any]:
    file = contract_file(path)
    if not file.exists():
        return {}
    try:
        held = read_json(file)
        whole = isinstance(held, dict) and check_seal(file, held)
    except FileError as error:
        raise DataError(f"{error}; delete it, and write it again: colaworld data stats") from None
    if not whole:
        raise DataError(f"{file}: is no file that colaworld data stats wrote; move it away")
    return held["columns"]


def _column(source: Source) -> str:
    return source.action_spec.column if source.action_spec else ""


def _extent(source: Source) -> dict[str, int]:
    """What changes where episodes are added, cut or lost."""
    return {
        "episodes": len(source.episodes) + sum(broken.episodes for broken in source.broken),
        "readable": len(source.episodes),
        "frames": sum(episode.frames for episode in source.episodes),
    }


def _rows(source: Source, names: Set[str]) -> dict[str, str]:
    """A hash of the actions of these episodes, of those that are there: a set whose numbers were changed,
    or a file that was copied from another set, is known by three of them without reading all."""
    made = {}
    for episode in source.episodes:
        if episode.name in names:
            values = np.ascontiguousarray(source.actions(episode.index))
            made[episode.name] = hashlib.sha256(values.tobytes()).hexdigest()
    return made


def _told(extent: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in extent.items())


# -- what the set says itself --------------------------------------------------------------------


def told_wrongly(source: Source, contract: ActionContract) -> tuple[list[str], list[str]]:
    """What a set's own statistics (LeRobot's meta/stats.json) have wrong, and what is only to be known.

    Wrong: count, min, max, mean or std differ from those of the rows by more than rounding. Quantiles
    are noted alone: LeRobot averages those of its episodes, which are not the quantiles of all rows.
    """
    told = source.told_statistics() if isinstance(source, TellsStatistics) else None
    if told is None:
        return [], []
    where, statistics = told
    if source.broken:
        return [], [
            f"{where}: not compared, since {len(source.broken)} films are missing or broken"
        ]
    found = _numbers(contract)
    wrong, notes = [], []
    if (count := statistics.get("count")) is not None and count != [contract.normaliser.count]:
        wrong.append(f"{where}: count: says {count}, the rows are {contract.normaliser.count}")
    span, std = found["max"] - found["min"], found["std"]
    rounding = 1e-6 * np.maximum(np.abs(found["min"]), np.abs(found["max"]))
    for name, allowed in (
        ("min", 1e-4 * span),
        ("max", 1e-4 * span),
        ("mean", 0.01 * std),
        ("std", 0.01 * std),
        ("q01", 0.05 * span),
        ("q99", 0.05 * span),
    ):
        if name not in statistics or name not in found:
            continue
        said = np.asarray(statistics[name], np.float64)
        if said.shape != found[name].shape:
            wrong.append(
                f"{where}: {name}: says {len(said)} numbers, there are {len(span)} channels"
            )
            continue
        off = ~(np.abs(said - found[name]) <= allowed + rounding)
        for at in np.flatnonzero(off):
            names = contract.names if contract.kind == "continuous" else ()
            of = names[at] if names else f"channel {at}"
            line = (
                f"{where}: {name} of {of}: says {said[at]:.6g}, the rows have {found[name][at]:.6g}"
            )
            (notes if name.startswith("q") else wrong).append(line)
    return wrong, notes


def _numbers(contract: ActionContract) -> dict[str, np.ndarray]:
    """The statistics by LeRobot's names; of classes those of their numbers."""
    n = contract.normaliser
    if contract.kind == "continuous":
        by_name = {
            "min": n.low,
            "max": n.high,
            "mean": n.mean,
            "std": n.std,
            "q01": n.q01,
            "q99": n.q99,
        }
        return {name: np.asarray(values) for name, values in by_name.items()}
    share = np.asarray(n.counts) / n.count
    classes = np.arange(contract.size)
    seen = np.flatnonzero(n.counts)
    mean = float(share @ classes)
    std = math.sqrt(share @ (classes - mean) ** 2)
    by_name = {"min": seen[0], "max": seen[-1], "mean": mean, "std": std}
    return {name: np.asarray([value], np.float64) for name, value in by_name.items()}
