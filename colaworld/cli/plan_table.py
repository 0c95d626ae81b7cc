"""colaworld plan-table: several plans as one table, tasks by methods, with seeds joined and differences in pairs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.plan_options import check_file


@dataclass(frozen=True)
class TableOptions:
    """Options of `colaworld plan-table`."""

    plans: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NAME=FOLDER of each plan, as `colaworld plan --out FOLDER` wrote it. A name given to several plans of one task is a
    method with several training seeds, in this order."""
    reference: str | None = None
    """The name that others are compared with. None: the first."""
    json: Path | None = None
    """Write the table to this file as well."""


def run(argv: list[str]) -> int:
    """Join and print."""
    options: TableOptions = from_command_line(
        TableOptions,
        argv,
        program="colaworld plan-table",
        description="Join plans of the same episodes: methods and bounds by task, seeds of each method, differences "
        "in pairs.",
    )
    if options.json is not None:
        check_file("--json", options.json)
    # Not above: torch takes seconds, and help needs none of it.
    from colaworld.files import write_json
    from colaworld.runs.planning_limits import lines as limit_lines
    from colaworld.runs.planning_table import joined, read_plans

    table = joined(read_plans(options.plans), reference=options.reference)
    print("\n".join(lines(table)))
    for task, methods in table["limits"].items():
        for name, lost in methods.items():
            for number, line in enumerate(limit_lines(lost)):
                print(line if number else f"{task}: {name}: {line}")
    if options.json is not None:
        write_json(options.json, table)
        print(f"{options.json} has every number")
    return 0


def lines(table: Mapping[str, Any]) -> list[str]:
    """A row for each task and their mean, then the differences."""
    rows = dict(table["tasks"])
    if table["mean"] is not None:
        rows["mean"] = table["mean"]
    methods = list(dict.fromkeys(name for row in rows.values() for name in row))
    widest = max(map(len, rows))
    told = [f"{'':{widest}} " + " ".join(f"{name:>20}" for name in methods)]
    for task, row in rows.items():
        cells = [_share(row[name]["success"]) if name in row else "-" for name in methods]
        told.append(f"{task:{widest}} " + " ".join(f"{cell:>20}" for cell in cells))
    seeds = {
        name: max(row[name]["seeds"] for row in rows.values() if name in row) for name in methods
    }
    told.append(
        "success in percent with 95 % intervals over episodes, and seeds where there are several: "
        + ", ".join(f"{name} {count}" for name, count in seeds.items())
    )
    for task, row in rows.items():
        for name, one in row.items():
            if (apart := one["difference"]) is not None:
                told.append(
                    f"{task}: {name} minus {table['reference']}: {_share(apart, sign='+')} points, in pairs of the same "
                    f"episodes, {apart['seeds']} seed(s){_left_out(apart['left_out'])}"
                )
    if table["mean"] is None and len(table["tasks"]) > 1:
        told.append("no mean over tasks: their numbers of episodes differ, or no method played all")
    if table["differing"]:
        told.append(f"not alike in all plans: {', '.join(table['differing'])}")
    for task, missing in table["missing"].items():
        told.append(f"{task}: not played: {', '.join(missing)}; without them this is no result yet")
    return told


def markdown(table: Mapping[str, Any]) -> str:
    """The same for a document: a row for each method, a column for each task; below, what the parts of each method lose
    in the one task, or in the mean over tasks."""
    from colaworld.runs.planning_limits import in_a_line
    from colaworld.studies.tables import as_markdown

    short = [task.rpartition("/")[2] for task in table["tasks"]]
    tasks = {
        name if short.count(name) == 1 else task: row
        for name, (task, row) in zip(short, table["tasks"].items(), strict=True)
    }
    if table["mean"] is not None:
        tasks["mean"] = table["mean"]
    last = list(tasks)[-1]
    methods = list(dict.fromkeys(name for row in tasks.values() for name in row))
    cells = [["success, %", "seeds", *tasks, f"{last}, minus {table['reference']}"]]
    for name in methods:
        seeds = max(row[name]["seeds"] for row in tasks.values() if name in row)
        shares = [_share(row[name]["success"]) if name in row else "-" for row in tasks.values()]
        apart = tasks[last].get(name, {}).get("difference")
        cells.append([name, str(seeds), *shares, _share(apart, sign="+") if apart else "-"])
    of_all = "mean" if table["mean"] is not None else next(iter(table["tasks"]))
    lost = table["limits"][of_all] if len(table["tasks"]) == 1 or of_all == "mean" else {}
    told = [f"- {name}: {in_a_line(parts)}." for name, parts in lost.items() if parts]
    if told:
        told = [
            "\n\nPoints lost to each part, as one after another is replaced by the truth:\n",
            *told,
        ]
    return as_markdown(cells) + "\n".join(told)


def _left_out(alone: Mapping[str, int]) -> str:
    """Whose last seeds have no partner."""
    told = [f"the last {count} of {name}" for name, count in alone.items()]
    return f"; left out, without a partner: {' and '.join(told)}" if told else ""


def _share(value: Mapping[str, float], sign: str = "") -> str:
    return f"{100 * value['mean']:{sign}.1f} ({100 * value['low']:{sign}.0f} .. {100 * value['high']:{sign}.0f})"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
