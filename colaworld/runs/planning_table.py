"""Several plan.json as one table: methods beside each other, seeds of each joined, differences in pairs.

A method is a name that was given to one or more plans: runs of several seeds, in order; and each bound that they played. Its
success is the mean over seeds, with an interval that resamples seeds and episodes; a difference pairs the k-th seed of both,
episode by episode, and says which had no partner. Rows of a method's own worlds beside its plans are called
method/row. Not here: playing (planning.py), printing (cli).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from colaworld.config import ConfigError, leaves
from colaworld.files import read_json
from colaworld.planning.config import EpisodesConfig, Row
from colaworld.runs.planning import FORMAT_VERSION as PLAN_VERSION
from colaworld.runs.planning_limits import CHAINS, limits
from colaworld.runs.planning_rows import NEEDS
from colaworld.runs.planning_success import Won, gained, success

FORMAT_VERSION = 1
_SAME = ("env", "task", "quality", "goals", "steps of the environment")
_ELSE = (
    "episode_seeds",
    "goals_file",
    "device",
    "threads",
    "batch",
    "shown",
    "protocol",
    "seed",
    "size",
)
_OF_WORLD = ("space", "codes", "prior", "sampler")
BOUNDS = tuple(row for row in get_args(Row) if row != "world" and row not in NEEDS)
_PLANNING = ("oracle", "copy", "oracle-state")  # bounds that plan, and what they do that by:
_BY = (
    "planner",
    "mpc",
    "block",
    "encoder",
    "distance_weight",
    "head",
    "head_weight",
    "over",
    "penalty",
)


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

    def again(self, other: Planned) -> bool:
        """Whether both have a row of one run for one task."""
        mine, theirs = (
            (one.task, (one.result.get("run") or {}).get("weights_sha256")) for one in (self, other)
        )
        rows = {*self.result["rows"]} & {*other.result["rows"]} - {*BOUNDS}
        return mine[1] is not None and mine == theirs and bool(rows)

    def settings(self) -> dict[str, Any]:
        """Its protocol in flat keys, and what an episode has at most."""
        said = dict(leaves(self.result["protocol"]))
        steps = said.get("mpc.steps", 0) * said.get("block", 1) * said.get("mpc.action_repeat", 1)
        return {**said, "steps of the environment": steps}

    @property
    def rolled(self) -> bool:
        """Whether a row of it is of a run's world, or played by bounds alone."""
        return not self.result["rows"].keys() <= {*BOUNDS}

    def states(self, key: str) -> bool:
        """Whether a setting says anything of it: bounds alone have no world."""
        return self.rolled or key.split(".")[0] not in _OF_WORLD


def read_plans(named: Sequence[str]) -> list[Planned]:
    """Those of NAME=FOLDER, or NAME=FILE.

    Raises ConfigError where one has no name or that of a bound, or is given to a name twice, FileError where there is
    none, or no plan.json.
    """
    plans: list[Planned] = []
    for one in named:
        name, equals, where = one.partition("=")
        if not equals or not name or name in BOUNDS:
            raise ConfigError(
                f"{one!r:.80}: expected NAME=FOLDER of a plan, and a name other than {', '.join(BOUNDS)}"
            )
        path = Path(where) / "plan.json" if Path(where).is_dir() else Path(where)
        result = read_json(path, made_by="colaworld plan")
        version = result.get("format_version") if isinstance(result, dict) else None
        if version != PLAN_VERSION or not {"rows", "protocol"} <= result.keys():
            raise ConfigError(f"{path}: expected a plan.json of version {PLAN_VERSION}")
        if not _whole(result):
            raise ConfigError(
                f"{path}: expected rows of the protocol's episodes, as `colaworld plan` writes them: it was changed"
            )
        made = Planned(name, path, result)
        for two in plans:
            if two.name == name and (path.samefile(two.path) or made.again(two)):
                raise ConfigError(
                    f"{one!r:.80}: given twice, as {two.path}, and one run is no second training seed"
                )
        plans.append(made)
    return plans


def _whole(result: Mapping[str, Any]) -> bool:
    """Whether a plan.json has what a table is made of: every row each episode of the protocol, in order."""
    said, rows = result["protocol"], result["rows"]
    try:
        played = [[(one["seed"], one["success"]) for one in rows[row]["episodes"]] for row in rows]
        return (
            isinstance(said["env"], str)
            and isinstance(said["mpc"], dict)
            and said["space"] in (None, *CHAINS)
            and isinstance(rows, dict)
            and 0 < len(rows.keys() & {*get_args(Row)}) == len(rows)
            and len(said["episode_seeds"]) > 0
            and all([seed for seed, _ in row] == said["episode_seeds"] for row in played)
            and all(isinstance(success, bool) for row in played for _, success in row)
        )
    except (KeyError, TypeError, IndexError):
        return False


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
    lost: dict[str, dict[str, list[dict[str, Any]]]] = {}
    said: dict[str, dict[str, Any]] = {}
    differs: set[str] = set()
    for task in dict.fromkeys(one.task for one in plans):
        of_task = [one for one in plans if one.task == task]
        differs |= _checked(of_task)
        won[task] = _won(of_task)
        lost[task] = {name: _limits(won[task], of_task, name) for name in names}
        said[task] = _shared(of_task)
    tasks = {task: _compared(methods, reference) for task, methods in won.items()}
    over = _over_tasks(won) if len(won) > 1 else {}
    if over:
        lost["mean"] = {name: _limits(over, plans, name) for name in names}
    return {
        "format_version": FORMAT_VERSION,
        "reference": reference,
        "tasks": tasks,
        "mean": _compared(over, reference) if over else None,
        "limits": lost,
        "differing": sorted(differs),
        "missing": {
            task: missing for task, one in won.items() if (missing := _missing(one, names))
        },
        "protocol": said,
        "commits": sorted({str(one.result.get("commit")) for one in plans}),
        "plans": [{"name": one.name, "task": one.task, "path": str(one.path)} for one in plans],
    }


def _checked(plans: Sequence[Planned]) -> set[str]:
    """Which settings differ among plans of one task."""
    first = plans[0].settings()
    for one in plans[1:]:
        here = one.settings()
        for key in _SAME:
            if here.get(key) != first.get(key):
                raise ConfigError(
                    f"{one.path}: {key} is {here.get(key)!r:.60}, in {plans[0].path} {first.get(key)!r:.60}; plans of "
                    "one task are compared on the same episodes and budget (colaworld goals)"
                )
    _check_bounds(plans)
    return {
        key
        for key, said in _every(plans).items()
        if key.split(".")[0] not in _ELSE and any(value != said[0] for value in said)
    }


def _check_bounds(plans: Sequence[Planned]) -> None:
    """ConfigError where a bound was played by other planners, or under another loop or cost: those are no seeds of it."""
    for row in _PLANNING:
        played = [one for one in plans if row in one.result["rows"]]
        for one in played[1:]:
            here, there = _of_bound(one), _of_bound(played[0])
            for key in here | there:
                if here.get(key) != there.get(key):
                    raise ConfigError(
                        f"{one.path}: {row} was played under {key} {here.get(key)!r:.60}, in {played[0].path} "
                        f"{there.get(key)!r:.60}; a bound of one task has one planner, loop and cost: let one of both "
                        "play it (--rows)"
                    )


def _of_bound(plan: Planned) -> dict[str, Any]:
    """The settings that a planner plays bounds by. They see frames: no context of a world, no head that reads latents."""
    said = plan.settings()
    out = {"mpc.context"} | ({"head", "head_weight"} if said.get("cost") == "latents" else set())
    return {
        key: value for key, value in said.items() if key.split(".")[0] in _BY and key not in out
    }


def _every(plans: Sequence[Planned]) -> dict[str, list[Any]]:
    """What each setting is in those plans that it says anything of, None where it is not told."""
    told = [(one, one.settings()) for one in plans]
    keys = dict.fromkeys(key for one, said in told for key in said if one.states(key))
    return {key: [said.get(key) for one, said in told if one.states(key)] for key in keys}


def _shared(plans: Sequence[Planned]) -> dict[str, Any]:
    """The settings that are alike in all plans of a task, in flat keys."""
    skipped = ("device", "threads", "batch", "shown", "episode_seeds", "goals_file")
    return {
        key: said[0]
        for key, said in _every(plans).items()
        if key.split(".")[0] not in skipped and all(value == said[0] for value in said)
    }


def _won(plans: Sequence[Planned]) -> dict[str, Won]:
    """Of each method; a bound that several played alike is one."""
    found: dict[str, list[list[int]]] = {}
    for one in plans:
        for row, played in one.result["rows"].items():
            episodes = [int(episode["success"]) for episode in played["episodes"]]
            rows = found.setdefault(_called(one.name, row), [])
            if row not in BOUNDS or episodes not in rows:
                rows.append(episodes)
    return {name: np.array(rows) for name, rows in found.items()}


def _called(method: str, row: str) -> str:
    """A bound is the same for all methods, a row with a run's world is of one."""
    return row if row in BOUNDS else method if row == "world" else f"{method}/{row}"


def _limits(won: Mapping[str, Won], plans: Sequence[Planned], method: str) -> list[dict[str, Any]]:
    """What the parts of a method lose, of the rows that as many of its seeds played as there are; nothing where its
    plans are of two spaces. A plan of bounds alone has none."""
    spaces = {one.settings().get("space") for one in plans if one.name == method and one.rolled}
    if len(spaces) != 1 or method not in won:
        return []
    (space,) = spaces
    seeds = len(won[method])
    played = {}
    for row in CHAINS[space or "latent"]:
        found = won.get(_called(method, row))
        if found is not None and (len(found) == seeds or (row in BOUNDS and len(found) == 1)):
            played[row] = found
    return limits(played, space)


def _compared(methods: Mapping[str, Won], reference: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, won in methods.items():
        told[name] = {"seeds": len(won), "success": success(won).as_dict(), "difference": None}
        if name != reference and reference in methods:
            told[name]["difference"] = _apart(name, won, reference, methods[reference])
    return told


def _apart(name: str, won: Won, reference: str, theirs: Won) -> dict[str, Any]:
    """The difference from the reference in pairs of the k-th seeds, how many these are, and of whom how many last seeds
    have no partner. A bound that was played once stands beside every seed."""
    every = name in BOUNDS and len(won) == 1
    pairs = len(theirs) if every else min(len(won), len(theirs))
    alone = {} if every else {name: len(won) - pairs, reference: len(theirs) - pairs}
    return gained(won[:pairs], theirs[:pairs]).as_dict() | {
        "seeds": pairs,
        "left_out": {who: count for who, count in alone.items() if count},
    }


def _over_tasks(won: Mapping[str, Mapping[str, Won]]) -> dict[str, Won]:
    """Those methods that played every task alike often, tasks after one another; none where tasks have other numbers of
    episodes, which a mean would weigh by them."""
    if len({played.shape[1] for methods in won.values() for played in methods.values()}) > 1:
        return {}
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
