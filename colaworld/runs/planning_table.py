"""Several plan.json as one table: methods beside each other, seeds of each joined, differences in pairs.

A method is a name that was given to one or more plans: runs of several seeds, in order; and each bound that they played. Its
success is the mean over seeds, with an interval that resamples seeds and episodes; a difference pairs the k-th seed of both,
episode by episode. Not here: playing (planning.py), printing (cli).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colaworld.config import ConfigError, leaves
from colaworld.files import read_json
from colaworld.metrics.bootstrap import Interval, bootstrap_seeds
from colaworld.metrics.proportion import wilson
from colaworld.planning.config import EpisodesConfig
from colaworld.runs.planning import FORMAT_VERSION as PLAN_VERSION

FORMAT_VERSION = 1
SAMPLES = 2000
_SAME = ("env", "task", "quality", "goals", "steps of the environment")
_ELSE = ("episode_seeds", "goals_file", "device", "threads", "batch", "shown", "protocol", "seed")
Won = np.ndarray  # [seeds, episodes] 0 or 1


@dataclass(frozen=True)
class Planned:
    """A plan.json and the name that it was given."""

    name: str
    path: Path
    result: Mapping[str, Any]

    @property
    def task(self) -> str:
        """Environment and task."""
        said = self.result["protocol"]
        return f"{said['env']}/{said['task']}" if said.get("task") else str(said["env"])

    def settings(self) -> dict[str, Any]:
        """Its protocol in flat keys, and what an episode has at most."""
        said = dict(leaves(self.result["protocol"]))
        steps = said.get("mpc.steps", 0) * said.get("block", 1) * said.get("mpc.action_repeat", 1)
        return {**said, "steps of the environment": steps}


def read_plans(named: Sequence[str]) -> list[Planned]:
    """Those of NAME=FOLDER, or NAME=FILE.

    Raises ConfigError where one has no name or that of a bound, FileError where there is none, or no plan.json.
    """
    plans = []
    for one in named:
        name, equals, where = one.partition("=")
        bounds = [row for row in EpisodesConfig.rows if row != "world"]
        if not equals or not name or name in bounds:
            raise ConfigError(
                f"{one!r:.80}: expected NAME=FOLDER of a plan, and a name other than {', '.join(bounds)}"
            )
        path = Path(where) / "plan.json" if Path(where).is_dir() else Path(where)
        result = read_json(path, made_by="colaworld plan")
        version = result.get("format_version") if isinstance(result, dict) else None
        if version != PLAN_VERSION or not {"rows", "protocol"} <= result.keys():
            raise ConfigError(f"{path}: expected a plan.json of version {PLAN_VERSION}")
        plans.append(Planned(name, path, result))
    return plans


def joined(plans: Sequence[Planned], *, reference: str | None = None) -> dict[str, Any]:
    """The table of some plans.

    Args:
        reference: whose success differences are taken from; None: the first name.

    Raises ConfigError where plans of one task are not of the same episodes and budget.
    """
    if not plans:
        raise ConfigError("expected one or more plans")
    names = list(dict.fromkeys(one.name for one in plans))
    reference = names[0] if reference is None else reference
    if reference not in names:
        raise ConfigError(f"--reference {reference}: expected one of {', '.join(names)}")
    won: dict[str, dict[str, Won]] = {}
    differs: set[str] = set()
    for task in dict.fromkeys(one.task for one in plans):
        of_task = [one for one in plans if one.task == task]
        differs |= _checked(of_task)
        won[task] = _won(of_task)
    tasks = {task: _compared(methods, reference) for task, methods in won.items()}
    return {
        "format_version": FORMAT_VERSION,
        "reference": reference,
        "tasks": tasks,
        "mean": _compared(_over_tasks(won), reference) if len(won) > 1 else None,
        "differing": sorted(differs),
        "missing": {
            task: missing for task, one in won.items() if (missing := _missing(one, names))
        },
        "plans": [{"name": one.name, "task": one.task, "path": str(one.path)} for one in plans],
    }


def _checked(plans: Sequence[Planned]) -> set[str]:
    """Which settings differ among plans of one task."""
    first, differs = plans[0].settings(), set()
    for one in plans[1:]:
        here = one.settings()
        for key in _SAME:
            if here.get(key) != first.get(key):
                raise ConfigError(
                    f"{one.path}: {key} is {here.get(key)!r:.60}, in {plans[0].path} {first.get(key)!r:.60}; plans of "
                    "one task are compared on the same episodes and budget (colaworld goals)"
                )
        differs |= {
            key
            for key in here.keys() | first.keys()
            if here.get(key) != first.get(key) and key.split(".")[0] not in _ELSE
        }
    return differs


def _won(plans: Sequence[Planned]) -> dict[str, Won]:
    """Of each method [seeds, episodes]; a bound that several played alike is one."""
    found: dict[str, list[list[int]]] = {}
    for one in plans:
        for row, played in one.result["rows"].items():
            episodes = [int(episode["success"]) for episode in played["episodes"]]
            name = one.name if row == "world" else row
            rows = found.setdefault(name, [])
            if row == "world" or episodes not in rows:
                rows.append(episodes)
    return {name: np.array(rows) for name, rows in found.items()}


def _compared(methods: Mapping[str, Won], reference: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, won in methods.items():
        interval = _interval(won)
        told[name] = {"seeds": len(won), "success": interval.as_dict(), "difference": None}
        theirs = methods.get(reference)
        if name != reference and theirs is not None:
            # One result, as a bound is, stands beside every seed.
            shared = len(theirs) if len(won) == 1 else min(len(won), len(theirs))
            apart = won[:shared] - theirs[:shared]
            told[name]["difference"] = _bootstrap(apart).as_dict() | {"seeds": len(apart)}
    return told


def _interval(won: Won) -> Interval:
    """Wilson's of one seed, and where all or none succeeded; else over seeds and episodes."""
    if len(won) == 1 or won.min() == won.max():
        return wilson(int(won[0].sum()), won.shape[1])
    return _bootstrap(won)


def _bootstrap(values: np.ndarray) -> Interval:
    return bootstrap_seeds(
        lambda seed, rows: float(values[seed, rows].mean()),
        np.arange(values.shape[1]),
        seeds=len(values),
        samples=SAMPLES,
        generator=np.random.default_rng(0),
    )


def _over_tasks(won: Mapping[str, Mapping[str, Won]]) -> dict[str, Won]:
    """Those methods that played every task alike often, tasks after one another."""
    names = [n for n in next(iter(won.values())) if all(n in methods for methods in won.values())]
    made = {}
    for name in names:
        parts = [methods[name] for methods in won.values()]
        if len({part.shape for part in parts}) == 1:
            made[name] = np.concatenate(parts, axis=1)
    return made


def _missing(methods: Mapping[str, Won], names: Sequence[str]) -> list[str]:
    wanted = [*names, *(row for row in EpisodesConfig.rows if row != "world")]
    return [name for name in wanted if name not in methods]
