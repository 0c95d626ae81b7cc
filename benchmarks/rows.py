"""Result rows: their fields, their files, the folder of a GPU run, and the comparison with another day's.

In the folder of a GPU run, rows and notes are appended line by line, so that a process that is killed
leaves what it had. Needs no torch. Not here: measuring (run.py) or showing (table.py, plots.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from colaworld.files import write_atomically

Row = dict[str, Any]
# What was called; who did it (eager, compile, sdpa:<backend>, cpu, triton, cuda, default, a package); the
# name of the shape and what it stood for; fwd or fwd_bwd; times; every input and output once, over p50
# (null where it was not worked out); memory that one call adds (null where the system does not tell).
FIELDS = ("op", "impl", "shape", "sizes", "dtype", "mode", "p20_ms", "p50_ms", "p80_ms")
FIELDS += ("gb_s", "peak_mb", "threads", "device", "versions", "commit", "date")
ROWS, NOTES = "rows.jsonl", "notes.jsonl"  # of the folder of a GPU run
_KEY = ("op", "impl", "shape", "dtype", "mode", "threads")
_SOURCES = ("colaworld", "kernels", "csrc", "benchmarks")
_SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh")
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


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Within the block an error of the system is a RowsError about `path`."""
    try:
        yield
    except OSError as error:
        raise RowsError(f"{path}: cannot be written: {error}; choose another file") from None


def check_writable(path: Path) -> None:
    """RowsError where a file cannot be written there. Asked before hours of timing."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        path.open("a").close()
        if not there:
            path.unlink()


def write(path: Path, rows: Sequence[Row]) -> Path:
    """One row per line, so that a change shows as a changed line; whole or not at all."""
    with writing(path):
        write_atomically(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return path


def grouped(missed: Iterable[tuple[str, str]]) -> list[str]:
    """(label, reason): every reason once, with the first label and how many more there are."""
    labels: dict[str, list[str]] = {}
    for label, reason in missed:
        labels.setdefault(reason, []).append(label)
    more = {reason: f" and {len(of) - 1} more" * (len(of) > 1) for reason, of in labels.items()}
    return [f"{of[0]}{more[reason]}: {reason}" for reason, of in labels.items()]


# --- the folder of a GPU run ----------------------------------------------------------------------


@cache
def digest() -> str:
    """Of the sources here: rows of other code are not rows of this code."""
    root, total = Path(__file__).resolve().parents[1], hashlib.sha256()
    for name in _SOURCES:
        for file in sorted(f for f in (root / name).rglob("*") if f.suffix in _SUFFIXES):
            total.update(file.read_bytes())
    return total.hexdigest()[:12]


def add(folder: Path, row: Row, file: str = ROWS) -> None:
    """Keep a row, at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / file).open("a") as stream:
        stream.write(json.dumps(row | {"code": digest()}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def note(folder: Path, outcome: str, label: str, reason: str) -> None:
    """Keep what became of something that is no row: ok, missing, skipped or failed."""
    add(folder, {"outcome": outcome, "label": label, "reason": reason}, NOTES)


def _lines(file: Path) -> list[Row]:
    """The last one of a killed process may be cut."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(text) for text in lines if text.endswith("}")]


def every_row(folder: Path) -> list[Row]:
    """All rows, of whatever code; of the same measurement the last one."""
    names = ("op", "shape", "dtype", "mode", "impl")
    return list({tuple(row[n] for n in names): row for row in _lines(folder / ROWS)}.values())


def kept(folder: Path) -> list[Row]:
    """The rows of this code."""
    return [row for row in every_row(folder) if row["code"] == digest()]


def measured(folder: Path) -> set[tuple[str, str]]:
    """(label of a case, implementation) that have a row of this code."""
    return {("{op}/{shape}/{dtype}/{mode}".format(**row), row["impl"]) for row in kept(folder)}


def notes(folder: Path) -> list[dict[str, str]]:
    """What became of everything else with this code; of the same label the last word."""
    found = (note for note in _lines(folder / NOTES) if note["code"] == digest())
    return list({note["label"]: note for note in found}.values())


def pack(folder: Path, file: Path) -> Path:
    """Everything but the compilers' caches in one archive, the rows in the usual form beside."""
    write(folder / "rows.json", kept(folder))
    part = file.with_name(f".{file.name}.part")
    with tarfile.open(part, "w:gz") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if (inside := path.relative_to(folder)).parts[0] != "cache":
                archive.add(path, arcname=str("gpu" / inside))
    return part.replace(file)


def unpack(file: Path, folder: Path) -> None:
    """The files of an archive that `pack` made."""
    with tarfile.open(file) as archive:
        for member in archive.getmembers():
            member.name = str(Path(*Path(member.name).parts[1:]))
            archive.extract(member, folder, filter="data")


# --- beside the rows of another run ---------------------------------------------------------------


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
    before = {key(row): row for row in old}
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
