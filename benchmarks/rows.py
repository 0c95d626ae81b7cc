"""Result rows: their fields, files, and the comparison with rows of another day.

Not here: measuring them (run.py) or showing them (table.py, plots.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from colaworld.files import write_atomically

Row = dict[str, Any]
# What was called; who did it (eager, compile, sdpa:<backend>, cpu, triton, cuda, default, a package); the
# name of the shape and what it stood for; fwd or fwd_bwd; times; every input and output once, over p50
# (null where it was not worked out); memory that one call adds (null where the system does not tell).
FIELDS = ("op", "impl", "shape", "sizes", "dtype", "mode", "p20_ms", "p50_ms", "p80_ms")
FIELDS += ("gb_s", "peak_mb", "threads", "device", "versions", "commit", "date")
_KEY = ("op", "impl", "shape", "dtype", "mode", "threads")
Explanation = Literal["faster", "slower", "noise"]


class RowsError(ValueError):
    """A file of rows cannot be read or written: names the file, what is wrong and what to do."""


def key(row: Row) -> tuple[Any, ...]:
    """What makes two rows the same measurement. Sizes count: a name may change its meaning."""
    return (*(row[name] for name in _KEY), json.dumps(row["sizes"], sort_keys=True))


def read(path: Path) -> list[Row]:
    """The rows of a file. RowsError where it is not one."""
    try:
        rows = json.loads(path.read_text())
    except FileNotFoundError:
        raise RowsError(f"{path}: no such file; --json FILE writes one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RowsError(f"{path}: cannot be read as rows: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RowsError(f"{path}: expected a list of rows as --json writes it")
    for number, row in enumerate(rows, 1):
        where, wrote = f"{path}: row {number}", "expected rows that `colaworld bench --json` wrote"
        if missing := [name for name in FIELDS if name not in row]:
            raise RowsError(f"{where} has no {', '.join(missing)}; {wrote}")
        times = [row[name] for name in ("p20_ms", "p50_ms", "p80_ms")]
        if not all(isinstance(t, (int, float)) and t > 0 for t in times):
            raise RowsError(f"{where}: expected times above 0, got {times}")
        if not isinstance(row["sizes"], dict):
            raise RowsError(f"{where}: expected sizes by name, got {row['sizes']!r}")
    return rows


def check_writable(path: Path) -> None:
    """RowsError where a file cannot be written there. Asked before hours of timing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        path.open("a").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise RowsError(f"{path}: cannot be written: {error}; choose another file") from None


def write(path: Path, rows: Sequence[Row]) -> Path:
    """One row per line, so that a change shows as a changed line; whole or not at all."""
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        raise RowsError(f"{path}: cannot be written: {error}; choose another file") from None
    return path


class Change(NamedTuple):
    """One row beside the same row of another run."""

    row: Row
    old: Row
    ratio: float  # new p50 / old p50: below 1 is faster
    verdict: Explanation  # noise: the stretches from p20 to p80 overlap


class Comparison(NamedTuple):
    """All rows beside those of another run."""

    changes: tuple[Change, ...]
    added: tuple[Row, ...]  # without a counterpart
    gone: tuple[Row, ...]  # the other run's without one
    devices: tuple[str, ...]  # more than one: ratios say more about machines than about code


def compare(new: Iterable[Row], old: Iterable[Row]) -> Comparison:
    """Row by row. Beyond noise is a change whose p20..p80 does not touch the old one's."""
    before: Mapping[tuple[Any, ...], Row] = {key(row): row for row in old}
    changes, added, met, devices = [], [], set(), {row["device"] for row in before.values()}
    for row in new:
        devices.add(row["device"])
        other = before.get(key(row))
        if other is None:
            added.append(row)
            continue
        met.add(key(row))
        faster, slower = row["p80_ms"] < other["p20_ms"], row["p20_ms"] > other["p80_ms"]
        verdict: Explanation = "faster" if faster else "slower" if slower else "noise"
        changes.append(Change(row, other, row["p50_ms"] / other["p50_ms"], verdict))
    gone = tuple(row for k, row in before.items() if k not in met)
    return Comparison(tuple(changes), tuple(added), gone, tuple(sorted(devices)))
