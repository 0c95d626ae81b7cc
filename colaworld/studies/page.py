"""The report of a study as one HTML file: tables and curves, self-contained, no script, no request.

Not here: the tables (tables.py), how lines are drawn (evaluation/report/charts.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from colaworld import __version__
from colaworld.evaluation.report.charts import Series, line_chart
from colaworld.evaluation.report.templates import write_page
from colaworld.studies.rows import Row
from colaworld.studies.study import Study
from colaworld.studies.tables import (
    adaptations_table,
    arms_table,
    budgets_table,
    differences_table,
    notes_of,
    plans_table,
    sets_of,
)

_TEMPLATE = Path(__file__).with_name("page.html")
_CURVES = {
    "entropy": ("Entropy of the codes in use", "entropy / log K"),
    "control": ("Control on held-out clips", "1 - inferred / shuffled loss"),
}
_TOGETHER = 5  # arms in one chart


def write_study(path: Path, study: Study, rows: Sequence[Row], *, made: str, again: str) -> Path:
    """Write the page, atomically. `made`: of how many runs; `again`: the command that makes it again."""
    sets = [
        {
            "name": name,
            "notes": notes_of(arms),
            "arms": arms_table(arms),
            "differences": differences_table(arms),
            "adaptations": adaptations_table(arms),
            "plans": plans_table(arms),
            "budgets": budgets_table(arms),
            "charts": [
                (title, found)
                for key, (title, label) in _CURVES.items()
                if (found := curves(arms, key, title=title, label=label))
            ],
        }
        for name, arms in sets_of(rows).items()
    ]
    shared = {"each run": study.changes} if study.changes else {}
    changes = {**shared, **{f"each run on {d.name}": d.changes for d in study.data if d.changes}}
    arms = [["arm", "recipe", "changes", "what it shows"]]
    arms += [[name, "", _told(change), ""] for name, change in changes.items()]
    arms += [[arm.name, arm.recipe, _told(arm.changes), arm.note] for arm in study.arms]
    return write_page(
        path,
        _TEMPLATE,
        title=f"Study: {study.name}",
        foot=again,
        version=__version__,
        made=made,
        question=study.question,
        reference=study.reference,
        sets=sets,
        arms=arms,
    )


def curves(arms: Mapping[str, Sequence[Row]], key: str, *, title: str, label: str) -> list[Markup]:
    """Charts of a curve of rows over steps, a few arms in each; none where no row has it."""
    told = {arm: found for arm, rows in arms.items() if (found := [r for r in rows if r[key]])}
    names = list(told)
    charts = []
    for first in range(0, len(names), _TOGETHER):
        series: list[Series] = []
        for i, arm in enumerate(names[first : first + _TOGETHER], start=1):
            style = f"c-{i if i < 5 else 6}"
            lines = [([s for s, _ in row[key]], [v for _, v in row[key]]) for row in told[arm]]
            if len(lines) > 1:
                series += [
                    Series(f"{arm}, a seed", x, y, f"raw {style}", label=False) for x, y in lines
                ]
            series.append(Series(arm, *mean_curve(lines), style))
        margin = 30 + 7 * max(len(name) for name in names)
        charts.append(
            line_chart(
                series, title=title, x_label="step", y_label=label, width=1020, margin=margin
            )
        )
    return charts


def mean_curve(
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[list[float], list[float]]:
    """The mean of curves at the steps of the longest, as far as each goes."""
    x = max((line[0] for line in lines), key=lambda steps: (steps[-1], len(steps)))
    ys = [np.interp(x, *line, right=np.nan) for line in lines]
    return list(x), np.nanmean(ys, axis=0).tolist()


def _told(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in changes.items())
