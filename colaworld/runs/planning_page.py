"""plan.html: who reached the goal, what plans cost, real frames beside those that were imagined.

Self-contained, as the report of an evaluation, whose style sheet, charts and tiles it takes. Not here: the
numbers (planning.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from colaworld.config import leaves
from colaworld.evaluation.report.charts import Series, line_chart
from colaworld.evaluation.report.templates import write_page
from colaworld.evaluation.report.tiles import tile
from colaworld.planning.mpc import Episode
from colaworld.runs.planning_limits import SWAPPED, points

_COLUMNS = 10  # frames of an episode that are shown
_STYLES = {
    "world": "c-1",
    "oracle": "c-6",
    "copy": "c-copy",
    "world-inferred": "c-3",
    "oracle-codes": "c-4",
    "oracle-state": "c-7",
}
# What each row is, in the words of the page.
_WORDS = {
    "world": "the planner in the run’s world",
    "oracle": "the same planner in the true simulator",
    "cloning": "a policy trained on recorded actions",
    "random": "acts without looking",
    "copy": "the same planner where the last frame stays",
    "world-inferred": "the world under the codes that it infers from what truly happens",
    "oracle-codes": "codes planned in the true simulator, which does what their table says",
    "oracle-state": "the true simulator, whose plans cost the true distance",
}


def write_plan(
    path: Path, result: Mapping[str, Any], shown: Mapping[str, Sequence[Episode]]
) -> Path:
    """Write the page, atomically; its path. `result` and `shown` as `plan_run` returns them."""
    said = result["protocol"]
    return write_page(
        path,
        Path(__file__).with_suffix(".html"),
        title=f"Planning in {said['env']} with {said['planner']['kind']}",
        result=result,
        rows=[_row(name, row) for name, row in result["rows"].items()],
        words=[f"{name}: {_WORDS[name]}." for name in result["rows"]],
        limits=[
            {**one, "parts": " and ".join(one["parts"]), "lost": points(one["lost"])}
            for one in result["limits"]
        ],
        chart=_chart(result["rows"], "mean of episodes under way"),
        strips=list(_strips(shown, said["shown"], said["videos"])),
        protocol=[(k, v) for k, v in leaves(said) if k != "episode_seeds"],
    )


def _row(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    share, more = row["success"], row["more_than_fewest"]
    return {
        "name": name,
        "success": f"{100 * share['mean']:.0f} % ({row['successes']} of {len(row['episodes'])})",
        "interval": f"{100 * share['low']:.0f} to {100 * share['high']:.0f} %",
        "more": "–" if more is None else f"{more:.1f}",
        "calls": f"{row['calls_per_decision']:.0f}",
        "seconds": f"{row['seconds_per_decision']:.3f}",
    }


def _chart(rows: Mapping[str, Any], of: str) -> Markup | None:
    """Cost of plans over decisions, of those that planned more than once."""
    series = [
        Series(name, range(1, len(costs) + 1), costs, _STYLES[name])
        for name, row in rows.items()
        if len(costs := row["cost_by_decision"]) > 1
    ]
    if not series:
        return None
    return line_chart(
        series, title=f"Cost of the plans, {of}", x_label="decision", y_label="cost", points=True
    )


def _strips(
    shown: Mapping[str, Sequence[Episode]], count: int, films: int
) -> Iterator[dict[str, Any]]:
    """A section for each of `count` episodes of those that plan: real frames above imagined ones, and what its
    plans cost."""
    for name, episodes in shown.items():
        if name not in SWAPPED:
            continue
        for number, one in enumerate(episodes[:count], 1):
            if one.goal is None:
                continue
            words = f"{name}, episode {number}"

            def picture(frame: Any, what: str, words: str = words) -> Any:
                return tile(frame[None], width=84, alt=f"{words}, {what}")

            real = [picture(f, f"real frame {i}") for i, f in enumerate(one.real[:_COLUMNS])]
            lines = [{"name": "real", "tiles": [*real, picture(one.goal, "goal")]}]
            expected = one.imagined[: _COLUMNS - 1]
            if expected:
                tiles = [picture(f, f"imagined frame {i}") for i, f in enumerate(expected, 1)]
                lines.append({"name": "imagined", "tiles": [None, *tiles]})
            done = "reached" if one.success else "not reached"
            fewest = "" if one.best is None else f"The fewest are {one.best}. "
            yield {
                "title": f"{words}: {done} after {one.steps} steps",
                "note": f"{fewest}An imagined frame is what the plan expected of its action; "
                "the last real picture is the goal.",
                "lines": lines,
                "chart": _chart({name: {"cost_by_decision": one.costs}}, words),
                "film": f"videos/{name}-{number}.mp4" if number <= films else None,
            }
