"""Real actions that a person gives: a file of rows, or names of classes. Checked against the contract.

    .csv     a header of channel names, then a row for each action; of classes one column, names or numbers,
             under the column's name or none
    .json    [[0.1, 0.2], ...], or {"names": ["x", "y"], "actions": [[0.1, 0.2], ...]}
    .npy     floats [n, A] or integers [n]; it says no names

Not here: what is rolled out under them (sample.py).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colaworld.contracts import ActionSpec

_FORMATS = (".csv", ".json", ".npy")


def read_actions(given: str, spec: ActionSpec) -> np.ndarray:
    """int64 [n] classes, or float32 [n, A] in the data's units.

    Args:
        given: the name of a file, or names or numbers of classes with commas between.
        spec: what the recorded actions are.

    Raises ValueError on a file that cannot be read, or holds other actions: both sides are named.
    """
    path = Path(given)
    where = f"--actions {given}"
    if path.suffix not in _FORMATS:
        if spec.kind == "discrete":
            return _classes([[word.strip()] for word in given.split(",")], spec, where)
        raise ValueError(
            f"{where}: expected a file ({', '.join(_FORMATS)}) of rows of {_channels(spec)}"
        )
    if not path.is_file():
        raise ValueError(f"{where}: no such file")
    try:
        names, rows = _READERS[path.suffix](path)
    except (OSError, ValueError, TypeError, RecursionError, MemoryError, csv.Error) as error:
        raise ValueError(f"{where}: cannot be read: {error}") from None
    if path.suffix == ".csv" and _header(rows, spec):
        names, rows = rows[0], rows[1:]
    if not len(rows):
        raise ValueError(f"{where}: it holds no actions")
    if spec.kind == "discrete":
        if names is not None and len(names) != 1:
            raise ValueError(f"{where}: expected one column of classes, got {', '.join(names)}")
        return _classes(rows, spec, where)
    if spec.names and names is not None and tuple(names) != spec.names:
        raise ValueError(
            f"{where}: expected the channels {', '.join(spec.names)}, in this order, got "
            f"{', '.join(names)}"
        )
    if spec.names and names is None and path.suffix == ".csv":
        raise ValueError(f"{where}: expected a header with the channels {', '.join(spec.names)}")
    return _numbers(rows, spec, where)


def _channels(spec: ActionSpec) -> str:
    return f"{spec.size} numbers" + (f" ({', '.join(spec.names)})" if spec.names else "")


def _numbers(rows: Sequence[Any], spec: ActionSpec, where: str) -> np.ndarray:
    for number, row in enumerate(rows, 1):
        if not _is_row(row) or len(row) != spec.size:
            got = f"{len(row)}" if _is_row(row) else f"{row!r:.40}"
            raise ValueError(f"{where}: row {number}: expected {_channels(spec)}, got {got}")
    try:
        made = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: expected numbers alone: {error}") from None
    fits = np.abs(made) <= np.finfo(np.float32).max  # not a number is none
    if not fits.all():
        row = int(np.argwhere(~fits)[0, 0]) + 1
        raise ValueError(
            f"{where}: row {row}: expected finite numbers of float32, got {rows[row - 1]!r:.80}"
        )
    return made.astype(np.float32)


def _is_row(row: Any) -> bool:
    """Whether it holds one value after another: no number, no text, nothing nested."""
    if isinstance(row, np.ndarray):
        return row.ndim == 1
    return isinstance(row, list) and not any(isinstance(cell, list | dict) for cell in row)


def _classes(rows: Sequence[Any], spec: ActionSpec, where: str) -> np.ndarray:
    known = {name: number for number, name in enumerate(spec.names)}
    made = []
    for number, row in enumerate(rows, 1):
        value = row[0] if _is_row(row) and len(row) == 1 else row
        text = str(value)
        found = known.get(text, int(text) if text.isascii() and text.isdigit() else -1)
        if not 0 <= found < spec.size:
            named = f": {', '.join(spec.names)}" if spec.names else ""
            header = f" (a header would say {spec.column!r})" if where.endswith(".csv") else ""
            raise ValueError(
                f"{where}: action {number}: expected one of {spec.size} classes{named}, or its number, "
                f"got {text[:40]!r}{header if number == 1 else ''}"
            )
        made.append(found)
    return np.asarray(made, dtype=np.int64)


def _csv(path: Path) -> tuple[None, list[Any]]:
    text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin theirs with a mark of UTF-8
    lines = csv.reader(text.splitlines(), strict=True)
    return None, [[cell.strip() for cell in row] for row in lines if row]


def _header(rows: Sequence[Any], spec: ActionSpec) -> bool:
    """Whether the first row of a table of text names columns. Of classes the name is known: a row with
    any other word is an action that is misspelt, which must not be lost."""
    if not len(rows):
        return False
    if spec.kind == "discrete":
        said = rows[0][0]
        return len(rows[0]) > 1 or (said in (spec.column, "action") and said not in spec.names)
    try:
        [float(cell) for cell in rows[0]]
    except ValueError:
        return True
    return False


def _json(path: Path) -> tuple[list[str] | None, list[Any]]:
    held = json.loads(path.read_text(encoding="utf-8"))
    names = None
    if isinstance(held, dict):
        names, held = held.get("names"), held.get("actions")
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if names is not None and not texts:
            raise ValueError(f"names: expected a list of channel names, got {names!r:.60}")
    if not isinstance(held, list):
        raise ValueError("expected a list of actions, or an object with names and actions")
    return names, held


def _npy(path: Path) -> tuple[None, np.ndarray]:
    found = np.load(path, allow_pickle=False)
    if (
        not isinstance(found, np.ndarray)
        or found.ndim not in (1, 2)
        or found.dtype.kind not in "iufU"
    ):
        shown = (
            f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "an archive"
        )
        raise ValueError(f"expected an array of actions, [n] or [n, A], of numbers, got {shown}")
    return None, found


_READERS: dict[str, Any] = {".csv": _csv, ".json": _json, ".npy": _npy}
