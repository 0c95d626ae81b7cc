"""What every GPU kernel takes of a processor, and what that lets expect of it. No GPU is needed.

    python tests/cuda_check            print, and compare with the committed table
    python tests/cuda_check --write    print, and write the table and the READMEs' part of it
    ... --only adaln                   the kernels of one op, the others as they are

A failure is a kernel that touches the stack (its registers spilled), asks for more shared memory than
the architecture has, or is worse than its committed row: more registers, shared memory or
instructions; fewer blocks on a multiprocessor, narrower loads or stores, fewer bytes of loads under
way at a time. Instructions, widths and bytes may differ by TOLERANCE. Rows of another compiler are not
compared. Not here: reading kernels (`compiled.py`), formulas (`predict.py`), times (benchmarks).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import compiled, predict
from .kernel_table import READMES, markdown, with_table
from .predict import Row

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "resources.json"
TOLERANCE = 0.02  # what an edit elsewhere may change of a kernel


def _key(row: Row) -> tuple[Any, ...]:
    return row["impl"], row["op"], row["kernel"], row["config"], row["arch"]


def _group(row: Row) -> tuple[Any, ...]:
    """What is read together: a table is written group by group."""
    return row["impl"], row["op"], row["arch"]


def mean_width(widths: dict[str, int]) -> float:
    """Bits of the instruction that a byte is moved by, the mean over bytes; 0 without any."""
    moved = sum(int(bits) * count for bits, count in widths.items())
    return sum(int(bits) ** 2 * count for bits, count in widths.items()) / moved if moved else 0.0


# What must not rise, and what must not fall: (words, how it follows from a row, what is tolerated).
_RISES: tuple[tuple[str, Callable[[Row], float], float], ...] = (
    ("registers", lambda row: row["registers"], 0),
    ("shared memory", lambda row: row["shared"], 0),
    ("instructions", lambda row: row["instructions"], TOLERANCE),
    ("instructions of the main loop", lambda row: row["loop"], TOLERANCE),
)
_FALLS: tuple[tuple[str, Callable[[Row], float], float], ...] = (
    ("blocks on a multiprocessor", predict.blocks_of, 0),
    ("mean width of loads", lambda row: mean_width(row["loads"]), TOLERANCE),
    ("mean width of stores", lambda row: mean_width(row["stores"]), TOLERANCE),
    ("bytes in flight", predict.bytes_in_flight, TOLERANCE),
)


def complaints(found: list[Row], committed: list[Row]) -> list[str]:
    """What is wrong with these rows, one line each; nothing when all is well."""
    before = {_key(row): row for row in committed}
    lines = []
    for row in found:
        name = "{impl} {kernel} [{config}] sm_{arch}".format(**row)
        if row["stack"]:
            lines.append(f"{name}: {row['stack']} bytes of stack, expected none")
        limits = predict.PROCESSOR.get(row["arch"])
        if limits is not None and row["shared"] > limits.block_shared:
            lines.append(
                f"{name}: {row['shared']} bytes of shared memory, the limit is {limits.block_shared}"
            )
        old = before.get(_key(row))
        if old is None:
            lines.append(f"{name}: not in the committed table; look at it, then --write")
        elif old["compiler"] == row["compiler"]:
            lines += [f"{name}: {change}" for change in changes(old, row)]
    # What could not be built here (no nvcc, no triton, an architecture, another op) is not missing.
    gone = before.keys() - {_key(row) for row in found}
    read = {_group(row) for row in found}
    lines += [
        f"{key}: in the committed table, but no longer shipped"
        for key in sorted(gone)
        if _group(before[key]) in read
    ]
    return lines


def changes(old: Row, row: Row) -> Iterable[str]:
    """What is worse than it was, in words."""
    for what, of, tolerated in _RISES:
        if of(row) > of(old) * (1 + tolerated) and of(old):
            yield f"{what} rose from {of(old):g} to {of(row):g}"
    for what, of, tolerated in _FALLS:
        if of(row) < of(old) * (1 - tolerated):
            yield f"{what} fell from {of(old):g} to {of(row):g}"


def together(found: list[Row], committed: list[Row]) -> list[Row]:
    """The table with `found` in place of the rows of the same kind, op and architecture."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        groups.setdefault(_group(row), []).append(row)
    read = set(groups)
    for row in committed:
        if _group(row) not in read:
            groups.setdefault(_group(row), []).append(row)
    return [row for group in sorted(groups) for row in groups[group]]


def write(rows: list[Row]) -> Iterable[str]:
    """Writes the table and the READMEs' part of it; the names of the files that changed."""
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    yield RESULTS.name
    for kind, name in READMES.items():
        file = ROOT / name
        if file.is_file() and any(row["impl"] == kind for row in rows):
            file.write_text(with_table(file.read_text(), markdown(rows, kind)))
            yield name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--only", choices=compiled.OPS, help="the kernels of one op")
    parser.add_argument("--workers", type=int, default=2, help="processes that compile")
    arguments = parser.parse_args()
    committed = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    found = []
    for row in compiled.rows(arguments.only, arguments.workers):
        found.append(row)
        print(
            "{impl:7} sm_{arch:<4} {registers:4} registers {stack:3} stack {shared:6} shared "
            "{blocks:3} blocks {instructions:6} instructions {loop:5} in the loop  {kernel} {config}"
            "".format(**row, blocks=predict.blocks_of(row)),
            flush=True,
        )
    for kind, reason in (("triton", "triton is not installed"), ("cuda", "built without CUDA")):
        if not any(row["impl"] == kind for row in found):
            print(f"{kind}: no kernels to read ({reason}, or the op has none)")
    if arguments.write:
        committed = together(found, committed)
        for name in write(committed):
            print(f"written: {name}")
    before = {_key(row): row["compiler"] for row in committed}
    for pair in sorted({(before.get(_key(row)), row["compiler"]) for row in found}, key=str):
        if pair[0] not in (None, pair[1]):
            print("rows of {1} are not compared with the committed ones of {0}".format(*pair))
    wrong = complaints(found, committed)
    for line in wrong:
        print(f"WRONG {line}")
    print(f"{len(found)} rows, {len(wrong)} wrong")
    return 1 if wrong else 0
