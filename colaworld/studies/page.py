"""The report of a study as one HTML file: tables and curves, self-contained, no script, no request.

Not here: the tables (tables.py), how lines are drawn (evaluation/report/charts.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from colaworld import __version__
from colaworld.evaluation.report.charts import Series, line_chart
from colaworld.evaluation.report.templates import write_page
from colaworld.studies.curves import NAMES, curves_of
from colaworld.studies.rows import Row
from colaworld.studies.study import Study
from colaworld.studies.tables import (
    adaptations_table,
    arms_table,
    budgets_table,
    differences_table,
    elsewhere_table,
    notes_of,
    plans_table,
    sets_of,
)

_TEMPLATE = Path(__file__).with_name("page.html")
_LABELS = {
    "entropy": "entropy / log K",
    "control": "1 - inferred / shuffled loss",
    "probe": "accuracy or R²",
    "psnr_ahead": "PSNR, dB",
    "ssim_ahead": "SSIM",
}
_TOGETHER = 5  # arms in one chart


def write_study(
    path: Path,
    study: Study,
    rows: Sequence[Row],
    *,
    made: str,
    again: str,
    rollouts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write the page, atomically.

    made: of how many runs; again: the command that makes it again; rollouts: as `rollouts_of` gives them.
    """
    sets = [
        {
            "name": name,
            "notes": notes_of(arms),
            "arms": arms_table(arms),
            "differences": differences_table(arms),
            "elsewhere": elsewhere_table(arms),
            "adaptations": adaptations_table(arms),
            "plans": plans_table(arms),
            "budgets": budgets_table(arms),
            "rollouts": (rollouts or {}).get(name),
            "charts": [
                (NAMES[name], found)
                for name, label in _LABELS.items()
                if (found := charts_of(arms, name, title=NAMES[name], label=label))
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


def charts_of(
    arms: Mapping[str, Sequence[Row]], name: str, *, title: str, label: str
) -> list[Markup]:
    """Charts of a curve of rows, a few arms in each; none where no row has it."""
    told = list(curves_of(arms, name).items())
    charts = []
    x_label = "frames ahead" if name.endswith("_ahead") else "step"
    for first in range(0, len(told), _TOGETHER):
        series: list[Series] = []
        for i, (arm, curve) in enumerate(told[first : first + _TOGETHER], start=1):
            style = f"c-{i if i < 5 else 6}"
            low, high = (curve.low, curve.high) if curve.seeds > 1 else ([], [])
            series.append(Series(arm, curve.steps, curve.mean, style, low=low, high=high))
        margin = 30 + 7 * max(len(arm) for arm, _ in told)
        charts.append(
            line_chart(
                series, title=title, x_label=x_label, y_label=label, width=1020, margin=margin
            )
        )
    return charts


def _told(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in changes.items())
