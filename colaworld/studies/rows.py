"""What is kept of each run of a study: a row of plain JSON, and the files that rows stand in.

A row holds what comparisons and tables need, so that these are made again without the runs. Not here:
comparisons (compare.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from colaworld.config import to_dict, to_yaml
from colaworld.evaluation.layout import read_evaluation
from colaworld.files import FileError, plain, read_json, write_atomically, write_refused
from colaworld.runs.config import RunConfig, read_config
from colaworld.studies.after import Following, bounds_of
from colaworld.studies.flops import flops_of
from colaworld.studies.readings import ahead_in, beside_in, clips_in, number_at
from colaworld.studies.study import Arm, DataSet, Study
from colaworld.training.same_run import config_sha256

POINTS = 60  # of a curve, at most
LOOKS = 20  # of one that is measured now and then
ONE_CODE = 0.05  # normalised entropy: of eight codes one is used 99 times of 100
FIELDS = ("study", "data", "arm", "reference", "seed", "status", "why", "steps", "numbers")
Row = dict[str, Any]


def row_of(
    study: Study,
    data: DataSet,
    arm: Arm,
    seed: int,
    folder: Path,
    *,
    status: str,
    why: str = "",
    after: Sequence[Following] = (),
    bounds: Path | None = None,
    made: Mapping[str, str] | None = None,
) -> Row:
    """The row of a run that was trained and evaluated in `folder`.

    status: "finished", or how its training stopped; why: in its own words; after: what followed it;
    bounds: the plan.json of what planning is held against;
    made: how its data and its generator were.
    Raises FileError or ConfigError where the folder lacks a file, or evaluation.json a measure, or a plan is of other
    episodes than its bounds.
    """
    followed = [(one, one.read()) for one in after]
    planned = [one.file for one in after if one.call[0] == "plan"]
    held = {} if bounds is None else bounds_of(bounds, planned)
    config = read_config(folder)
    found = read_evaluation(folder / "evaluation.json")
    rows = _metrics(folder / "metrics.jsonl")
    steps: dict[str, int] = {}
    for row in rows:
        steps[row["phase"]] = steps.get(row["phase"], 0) + 1
    entropy = _curve(rows, "codebook", "entropy_normalised")
    ran, counts = found.get("run") or {}, found["counts"]
    return plain(
        {
            "study": study.name,
            "data": data.name,
            "arm": arm.name,
            "reference": study.reference,
            "seed": seed,
            "status": status,
            "why": why,
            "recipe": arm.recipe,
            "changes": {**study.changes, **data.changes, **arm.changes},
            "steps": sum(steps.values()),
            "steps_by_phase": steps,
            "rollbacks": max(int(row.get("round") or 0) for row in rows),
            "clips_trained": sum(steps.values())
            * config.training.batch_size
            * config.training.accumulate,
            "seconds": round(sum(row["seconds"] for row in rows), 1),
            "flops": flops_of(config, steps, height=counts["height"], width=counts["width"]),
            "collapsed_at": collapsed_at(entropy, floor=_floor(config)),
            "numbers": {key: number_at(found, key) for key in study.measures}
            | {key: of for _, more in followed for key, of in more["numbers"].items()},
            "beside": beside_in(found),
            "entropy": _thinned(entropy),
            "control": _thinned(_curve(rows, "control", "control"), LOOKS),
            "probe": _thinned(_curve(rows, "probe", "score"), LOOKS),
            **ahead_in(found),
            "clips": clips_in(found),
            "after": {one.key: more["clips"] for one, more in followed},
            "bounds": held,
            "made": dict(made or {}),
            "asked_sha256": _asked(config),
            "commit": ran.get("commit"),
            "config_sha256": ran.get("config_sha256"),
        }
    )


def _asked(config: RunConfig) -> str:
    """Hash of what a run's results follow from, but for its seed, and for where its data and its generator were."""
    weights = config.backbone_weights
    anywhere = replace(
        config,
        data=replace(config.data, path=None),
        backbone_weights="own" if weights and Path(weights).is_absolute() else weights,
        training=replace(config.training, seed=0),
    )
    steps = {
        phase.name: phase.capped(config.training.max_steps).steps for phase in config.scheduled()
    }
    read = [steps, to_dict(config.sampler), to_dict(config.evaluation)]  # no part of the other hash
    told = config_sha256(to_yaml(anywhere)) + json.dumps(plain(read), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def collapsed_at(entropy: Sequence[tuple[int, float]], *, floor: float) -> int | None:
    """The first step from which on entropy stays under `floor` to the end; None where it does not."""
    step = None
    for at, value in entropy:
        if value >= floor:
            step = None
        elif step is None:
            step = at
    return step


def collapsed(row: Row) -> bool:
    """Whether training ended with the codebook under its floor, or held-out clips get hardly more than one code:
    in training a few codes may flicker while every other clip gets the same one."""
    held = (row["numbers"] or {}).get("codebook.entropy_normalised") or {}
    return row["collapsed_at"] is not None or held.get("mean", 1.0) < ONE_CODE


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """FileError that names `path` and what to do where the system refuses to write it: a full disk, say."""
    try:
        yield
    except OSError as error:
        raise FileError(write_refused(path, error)[0]) from None


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One row per line, so that a change shows as a changed line; whole or not at all."""
    with writing(path):
        write_atomically(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def read_rows(path: Path) -> list[Row]:
    """Rows as `write_rows` wrote them. Raises FileError, which names file and row."""
    rows = read_json(path, made_by="colaworld study NAME --rows FILE")
    if not isinstance(rows, list) or not rows:
        raise FileError(f"{path}: expected a list of rows of a study")
    for number, row in enumerate(rows, start=1):
        if missing := missing_in(row):
            raise FileError(
                f"{path}: row {number} has no {', '.join(missing)}; expected rows that `colaworld study` "
                "wrote"
            )
    return rows


def added_to(path: Path, rows: Sequence[Row], study: Study) -> list[Row]:
    """`rows` and those of a file's that are of other runs, as `write_rows` takes them: in the order of the study's data
    sets and arms, then what it no longer has. All are held against the reference arm of now.

    Raises FileError where the file holds no rows, or rows of another study.
    """
    there = read_rows(path) if path.exists() else []
    for row in there:
        if row["study"] != study.name:
            raise FileError(
                f"{path}: expected rows of the study {study.name!r}, found some of {row['study']!r}"
            )
    known = {_run_of(row): row for row in (*there, *rows)}
    names = [(data.name, arm.name) for data in study.data for arm in study.arms]
    names += [run[:2] for run in known]
    order = {name: i for i, name in reversed(list(enumerate(names)))}
    every = sorted(known.values(), key=lambda row: (order[_run_of(row)[:2]], row["seed"]))
    return [{**row, "reference": study.reference} for row in every]


def _run_of(row: Row) -> tuple[str, str, int]:
    return row["data"], row["arm"], row["seed"]


def missing_in(row: Any) -> list[str]:
    """Fields that a row lacks."""
    return [name for name in FIELDS if not isinstance(row, dict) or name not in row]


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl. FileError where one is not a row; a finished run has no half line."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            row["phase"], row["global_step"], row["seconds"]
        except (ValueError, TypeError, KeyError) as error:
            raise FileError(
                f"{path}, line {number}: expected a row of training: {error!r}"
            ) from None
        rows.append(row)
    if not rows:
        raise FileError(f"{path}: expected a row for each step, found none")
    return rows


def _curve(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[tuple[int, float]]:
    """(step, value) of a number under nested keys, of rows that have it."""
    curve = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)):
            curve.append((int(row["global_step"]), float(value)))
    return curve


def _thinned(curve: Sequence[tuple[int, float]], most: int = POINTS) -> list[list[float]]:
    """At most so many of the points, the first and the last among them, with four digits."""
    if len(curve) > most:
        last = len(curve) - 1
        curve = [curve[round(i * last / (most - 1))] for i in range(most)]
    return [[step, round(value, 4)] for step, value in curve]


def _floor(config: RunConfig) -> float:
    """Entropy under which a codebook counts as collapsed, as the run's own gate or alarm says."""
    rules = [rule for phase in config.scheduled() for rule in (phase.gate, phase.alarm) if rule]
    return rules[0].floor if rules else 0.3
