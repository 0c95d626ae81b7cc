"""The tables of a study, from its rows: cells of text, for Markdown, a terminal or a page.

Not here: how arms are compared (compare.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from colaworld.metrics.bootstrap import Interval
from colaworld.studies.compare import Told, alike, arm_mean, difference
from colaworld.studies.curves import Curve, curves_of
from colaworld.studies.rows import Row, collapsed

NAMES = {  # key of evaluation.json -> heading, digits
    "delta_psnr.random": ("delta-PSNR over random, dB", 2),
    "delta_psnr.shuffled": ("over shuffled, dB", 2),
    "probe.score": ("probe", 2),
    "codebook.entropy_normalised": ("entropy", 2),
    "codebook.perplexity": ("perplexity", 1),
    "rollout.psnr": ("PSNR, dB", 2),
    "rollout.ssim": ("SSIM", 3),
    "nmse": ("NMSE", 2),
    "leakage.gain": ("leakage, dB", 2),
}
Table = list[list[str]]


def sets_of(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by data set and arm, in the order in which they come."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row["data"], {}).setdefault(row["arm"], []).append(row)
    return found


def measured(rows: Sequence[Row]) -> list[str]:
    """Keys of the numbers that rows hold, in their order."""
    return list(dict.fromkeys(key for row in rows for key in row["numbers"] or {}))


def arms_table(arms: dict[str, list[Row]]) -> Table:
    """A header, then a row for each arm of one data set: how its runs ended, and its numbers."""
    keys = _evaluated(arms)
    table = [["arm", "seeds", "collapsed", *(_heading(key) for key in keys)]]
    for arm, rows in arms.items():
        cells = [cell(arm_mean(rows, key), _digits(key)) for key in keys]
        watched = [row for row in rows if row["entropy"]]  # continuous latents have no codes
        fallen = [row for row in watched if collapsed(row)]
        told = f"{len(fallen)} of {len(watched)}" if watched else "-"
        table.append([arm, str(len(rows)), told, *cells])
    return table


def differences_table(arms: dict[str, list[Row]]) -> Table:
    """The same of differences to the reference arm, and in how many seeds each has the mean's sign."""
    name = _reference(arms)
    if name is None:
        return []
    keys = _evaluated(arms)
    table = [[f"minus {name}", *(_heading(key) for key in keys)]]
    for arm, rows in arms.items():
        if arm == name:
            continue
        cells = []
        for key in keys:
            cells.append(signed_cell(difference(rows, arms[name], key), _digits(key)))
        table.append([arm, *cells])
    return table if len(table) > 1 else []


def elsewhere_table(arms: dict[str, list[Row]]) -> Table:
    """Runs measured on sets that they were not trained on, and against the reference arm."""
    every = [row for rows in arms.values() for row in rows]
    reference = _reference(arms)
    columns = {"delta_psnr": "delta-PSNR over random, dB", "psnr": "PSNR, dB", "probe": "probe"}
    apart = [f"{told}, minus {reference}" for told in columns.values()]
    table = [["elsewhere", "arm", "seeds", *columns.values(), *apart]]
    found = (key.split(".")[1] for key in measured(every) if key.startswith("elsewhere."))
    for name in dict.fromkeys(found):
        for arm, rows in arms.items():
            keys = [f"elsewhere.{name}.{column}" for column in columns]
            means = [arm_mean(rows, key) for key in keys]
            if means[1] is None:
                continue
            cells = [cell(mean, 2) for mean in means]
            against = ["-"] * len(keys)
            if reference not in (None, arm):
                against = [signed_cell(difference(rows, arms[reference], key)) for key in keys]
            table.append([name, arm, str(means[1].seeds), *cells, *against])
    return table if len(table) > 1 else []


def signed_cell(told: Told | None, digits: int = 2) -> str:
    """A difference, and in how many seeds it has the mean's sign."""
    agree = "" if told is None else f" ({told.agree} of {told.seeds})"
    return cell(told, digits, signed=True) + agree


def adaptations_table(arms: dict[str, list[Row]]) -> Table:
    """Runs adapted to real actions, by labels: PSNR (dB) under real actions, and against the reference arm."""
    every = [row for rows in arms.values() for row in rows]
    told = [key.split(".")[1] for key in measured(every) if key.startswith("adapted.")]
    reference = _reference(arms)
    columns = ("adapter", "psnr", "gain", "inferred", "entropy")
    table = [
        [
            *(
                "labels",
                "arm",
                "seeds",
                "adapter alone, dB",
                "fine-tuned, dB",
                "fine-tuning gained, dB",
            ),
            *("under inferred actions, dB", "entropy", f"fine-tuned, minus {reference}, dB"),
        ]
    ]
    for labels in dict.fromkeys(told):
        for arm, rows in arms.items():
            key = f"adapted.{labels}."
            means = [arm_mean(rows, key + name) for name in columns]
            if means[1] is None:
                continue
            cells = [cell(m, 2, signed=n == "gain") for m, n in zip(means, columns, strict=True)]
            apart = "-"
            if reference not in (None, arm):
                apart = signed_cell(difference(rows, arms[reference], key + "psnr"))
            table.append([labels, arm, str(means[1].seeds), *cells, apart])
    return table if len(table) > 1 else []


def plans_table(arms: dict[str, list[Row]]) -> Table:
    """Success of plans in each arm's worlds, and of what they are held against."""
    every = [row for rows in arms.values() for row in rows]
    reference = _reference(arms)
    table = [["plans", "arm", "seeds", "success", f"minus {reference}", "s/decision"]]
    keys = [key for key in measured(every) if re.fullmatch(r"planned\.\w+\.success", key)]
    for key in keys:
        space = "codes" if key.split(".")[1] == "latent" else "real actions"
        for arm, rows in arms.items():
            if (mean := arm_mean(rows, key)) is None:
                continue
            apart = "-"
            if reference not in (None, arm):
                apart = cell(difference(rows, arms[reference], key), 2, signed=True)
            seconds = cell(arm_mean(rows, key.replace("success", "seconds")), 2)
            table.append([space, arm, str(mean.seeds), cell(mean, 2), apart, seconds])
    bounds: Row = next((row["bounds"] for row in every if row.get("bounds")), {})
    for name, success in bounds.items():
        told = Interval(*(success[end] for end in ("mean", "low", "high")))
        table.append([_BOUNDS.get(name, name), "", "", _interval(told, ".2f"), "-", "-"])
    return table if len(table) > 1 else []


_BOUNDS = {
    "oracle": "in the true simulator",
    "cloning": "behaviour cloning",
    "random": "random actions",
    "copy": "where nothing moves",
}


def _evaluated(arms: dict[str, list[Row]]) -> list[str]:
    """Keys of the numbers of evaluation.json."""
    keys = measured([row for rows in arms.values() for row in rows])
    return [key for key in keys if not key.startswith(("elsewhere.", "adapted.", "planned."))]


def _reference(arms: dict[str, list[Row]]) -> str | None:
    """The arm that others are held against, where it has rows."""
    name = next(iter(arms.values()))[0]["reference"]
    return name if name in arms else None


def budgets_table(arms: dict[str, list[Row]]) -> Table:
    """What each arm took: means over its runs."""
    table = [["arm", "recipe", "steps", "clips", "FLOPs", "minutes", "collapsed at step", "ended"]]
    for arm, rows in arms.items():
        flops = [row["flops"] for row in rows]
        at = [row["collapsed_at"] for row in rows]
        ended = dict.fromkeys(_ended(row) for row in rows)
        table.append(
            [
                arm,
                rows[0]["recipe"],
                _spread([row["steps"] for row in rows]),
                _spread([row["clips_trained"] for row in rows]),
                "-" if None in flops else f"{np.mean(flops):.2e}",
                f"{np.mean([row['seconds'] for row in rows]) / 60:.1f}",
                ", ".join("-" if step is None else str(step) for step in at),
                ", ".join(ended),
            ]
        )
    return table


def curves_table(arms: dict[str, list[Row]]) -> Table:
    """Control and probe over training: the mean over seeds at some steps, and the range in brackets."""
    told = {name: curves_of(arms, name, shared=True) for name in ("control", "probe")}
    every = [curve for curves in told.values() for curve in curves.values()]
    steps = sorted({step for curve in every for step in curve.steps})
    table = [["over training", "arm", "seeds", *(f"step {step:g}" for step in steps)]]
    for name, curves in told.items():
        for arm, curve in curves.items():
            at = {step: i for i, step in enumerate(curve.steps)}
            cells = ["-" if step not in at else _ranged(curve, at[step]) for step in steps]
            table.append([name, arm, str(curve.seeds), *cells])
    return table if len(table) > 1 else []


def ahead_table(arms: dict[str, list[Row]]) -> Table:
    """Rollouts frame by frame, as `curves_table`; below, what the last given frame would score."""
    every = [row for rows in arms.values() for row in rows]
    table: Table = []
    for name, (heading, digits) in _AHEAD.items():
        curves = curves_of(arms, f"{name}_ahead")
        same = every[:1] if alike(every) else []  # whatever was trained
        held = curves_of({"the last frame": same}, f"copy_{name}_ahead")
        steps = max((curve.steps for curve in curves.values()), key=len, default=[])
        shown = _spaced(steps)
        table = table or [["frames ahead", "arm", "seeds", *(f"{step:g}" for step in shown)]]
        for arm, curve in (curves | held).items():
            at = {step: i for i, step in enumerate(curve.steps)}
            cells = ["-" if s not in at else _ranged(curve, at[s], digits) for s in shown]
            table.append([heading, arm, str(curve.seeds) if arm in arms else "", *cells])
    return table if len(table) > 1 else []


_AHEAD = {"psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3)}


def _spaced(steps: Sequence[float], most: int = 8) -> list[float]:
    """At most so many of them, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _ranged(curve: Curve, i: int, digits: int = 2) -> str:
    if np.isnan(curve.mean[i]):
        return "-"
    values = (line[i] for line in (curve.mean, curve.low, curve.high))
    mean, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in values)  # no -0.00
    return f"{mean} [{low}, {high}]" if curve.seeds > 1 else mean


def _ended(row: Row) -> str:
    """ "finished", "collapsed after 1 rollback"."""
    count = row.get("rollbacks", 0)
    return row["status"] + (f" after {count} rollback{'s' if count > 1 else ''}" if count else "")


def notes_of(arms: dict[str, list[Row]]) -> list[str]:
    """What a reader of the tables of one data set has to know."""
    every = [row for rows in arms.values() for row in rows]
    notes = []
    made = [tuple(row.get("made", {}).items()) for row in every]
    if len(set(made)) > 1:
        notes.append("Not all runs had data and generator made by the same calls.")
    notes += [f"{name}: `{how}`." for name, how in (made[0] if len(set(made)) == 1 else ())]
    for arm, rows in arms.items():
        ways = {row.get("asked_sha256") for row in rows}
        if None in ways:  # earlier rows do not have it
            ways = {json.dumps([row["recipe"], row.get("changes")], sort_keys=True) for row in rows}
        if len(ways) > 1:
            notes.append(f"Runs of {arm} were not all configured alike.")
    if not alike(every):
        notes.append(
            "Not all runs were measured on the same clips: their differences are over seeds alone."
        )
    trained = {row.get("changes", {}).get("training.autocast", "auto") for row in every}
    if trained == {"bf16"}:
        notes.append("Trained in bfloat16 (autocast), evaluated in float32.")
    elif len(trained) > 1:
        notes.append(f"Runs differ in training.autocast: {', '.join(sorted(trained))}.")
    seeds = {arm: len(rows) for arm, rows in arms.items()}
    if len(set(seeds.values())) > 1:
        told = ", ".join(f"{arm} {count}" for arm, count in seeds.items())
        notes.append(f"Arms do not have equally many seeds: {told}.")
    if min(seeds.values()) < 3:
        notes.append("Fewer than three seeds: how much seeds differ is not known.")
    beside = dict.fromkeys((name, value) for row in every for name, value in row["beside"].items())
    if held := [f"{name} {value:.2f}" for name, value in beside if value is not None]:
        notes.append(f"To compare the probe with: {', '.join(held)}.")
    for row in every:
        if row["status"] != "finished":
            why = row["why"].partition(". ")[0]  # what to do about it is in the run's own words
            notes.append(f"{row['arm']}, seed {row['seed']}: {row['status']}: {why}.")
    return notes


def markdown(rows: Sequence[Row]) -> str:
    """All tables of all data sets as Markdown."""
    parts = []
    for data, arms in sets_of(rows).items():
        parts.append(f"### {data}")
        tables = (
            *(arms_table, differences_table, ahead_table, elsewhere_table),
            *(adaptations_table, plans_table, curves_table, budgets_table),
        )
        for table in (make(arms) for make in tables):
            if table:
                parts.append(as_markdown(table))
        parts += notes_of(arms)
    return "\n\n".join(parts) + "\n"


def cell(told: Told | None, digits: int, *, signed: bool = False) -> str:
    """ "1.50 [1.20, 1.80]"; "-" where there is no number."""
    if told is None:
        return "-"
    return _interval(told.interval, f"{'+' if signed else ''}.{digits}f")


def _interval(found: Interval, form: str) -> str:
    shown = f"{found.mean:{form}}"
    if np.isfinite([found.low, found.high]).all():
        shown += f" [{found.low:{form}}, {found.high:{form}}]"
    return shown


def as_markdown(table: Table) -> str:
    """A table whose first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|" + "---|" * len(table[0]))
    return "\n".join(lines)


def _heading(key: str) -> str:
    return NAMES.get(key, (key, 2))[0]


def _digits(key: str) -> int:
    return NAMES.get(key, (key, 2))[1]


def _spread(values: Sequence[int]) -> str:
    """ "1700", or "1610 to 1700" where runs differ."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
