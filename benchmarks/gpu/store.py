"""The folder of a GPU run: rows, notes, logs, and the archive of all that.

Rows and notes are appended line by line, so that a process that is killed leaves what it had. Needs
no torch. Not here: measuring.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

from ..rows import Row, write

ROWS, NOTES = "rows.jsonl", "notes.jsonl"
_SOURCES = ("colaworld", "kernels", "csrc", "benchmarks")


@cache
def digest() -> str:
    """Of the sources here: rows of other code are not rows of this code."""
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for name in _SOURCES:
        for file in sorted((root / name).rglob("*")):
            if file.suffix in (".py", ".cpp", ".h", ".cu", ".cuh"):
                total.update(file.read_bytes())
    return total.hexdigest()[:12]


def _append(file: Path, value: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps(value | {"code": digest()}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _lines(file: Path) -> list[dict[str, Any]]:
    """The last one of a killed process may be cut."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(text) for text in lines if text.endswith("}")]


def add(folder: Path, row: Row) -> None:
    """Keep a row."""
    _append(folder / ROWS, row)


def note(folder: Path, outcome: str, label: str, reason: str) -> None:
    """Keep what became of something that is no row: ok, missing, skipped or failed."""
    _append(folder / NOTES, {"outcome": outcome, "label": label, "reason": reason})


def every_row(folder: Path) -> list[Row]:
    """All rows, of whatever code; of the same measurement the last one."""
    key = ("op", "shape", "dtype", "mode", "impl")
    return list({tuple(row[k] for k in key): row for row in _lines(folder / ROWS)}.values())


def rows(folder: Path) -> list[Row]:
    """The rows of this code."""
    return [row for row in every_row(folder) if row["code"] == digest()]


def measured(folder: Path) -> set[tuple[str, str]]:
    """(label of a case, implementation) that have a row of this code."""
    return {("{op}/{shape}/{dtype}/{mode}".format(**row), row["impl"]) for row in rows(folder)}


def notes(folder: Path) -> list[dict[str, str]]:
    """What became of everything else with this code; of the same label the last word."""
    found = {n["label"]: n for n in _lines(folder / NOTES) if n["code"] == digest()}
    return list(found.values())


def pack(folder: Path, file: Path) -> Path:
    """Everything but the compilers' caches in one archive, the rows in the usual form beside."""
    write(folder / "rows.json", rows(folder))
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
