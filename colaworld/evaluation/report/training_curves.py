"""A run's metrics.jsonl as curves: rows on one x axis, phases as bands.

Not here: writing the file (training's loggers) and drawing the curves (`charts.py`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colaworld.evaluation.report.charts import Band
from colaworld.files import FileError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class History:
    """Rows of a run, with `x` their steps counted over all phases."""

    x: tuple[float, ...]
    rows: tuple[Mapping[str, Any], ...]
    phases: tuple[Band, ...]

    def curve(self, *path: str) -> tuple[list[float], list[float]]:
        """(x, y) of the number found under nested keys, for the rows that have one."""
        xs, ys = [], []
        for x, row in zip(self.x, self.rows, strict=True):
            value: Any = row
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, (int, float)) and math.isfinite(value):
                xs.append(x)
                ys.append(float(value))
        return xs, ys

    def keys(self, name: str) -> list[str]:
        """Keys of the nested dict `name`, in order of appearance."""
        found: dict[str, None] = {}
        for row in self.rows:
            if isinstance(row.get(name), Mapping):
                found.update(dict.fromkeys(row[name]))
        return list(found)


def read_history(source: str | Path | Iterable[Mapping[str, Any]]) -> History:
    """Read metrics.jsonl, or take its rows. A half-written last line is left out with a warning."""
    if not isinstance(source, (str, Path)):
        return _on_one_axis(list(source))
    if not Path(source).is_file():
        found = "something else" if Path(source).exists() else "none"
        raise FileError(f"{source}: expected a file of rows, found {found}")
    rows = []
    lines = Path(source).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{source}, line {number}: not JSON: {error}") from None
            log.warning("%s: the last line is half written and left out", source)
    return _on_one_axis(rows)


def _on_one_axis(rows: Sequence[Mapping[str, Any]]) -> History:
    xs: list[float] = []
    bands: list[Band] = []
    for row in rows:
        known = isinstance(row, Mapping) and "phase" in row
        if not known or not isinstance(row.get("global_step"), int):
            raise ValueError(
                f"metrics row: expected 'phase' and an integer 'global_step', got {str(row)[:80]}"
            )
        name, before = str(row["phase"]), xs[-1] if xs else 0.0
        xs.append(float(row["global_step"]))
        start = bands.pop().start if bands and bands[-1].name == name else before
        bands.append(Band(name, start, xs[-1]))
    return History(tuple(xs), tuple(rows), tuple(bands))
