"""What a study is: arms, data sets and measures, as a value. Imports no torch.

An arm is a recipe with changes; it is run with several seeds on each data set. Not here: running
(schedule.py), the rows (rows.py), how arms are compared (compare.py), which studies there are (nano.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from colaworld.config import Checked, ConfigError, Count, Positive, from_dict
from colaworld.recipes import RECIPES
from colaworld.registry import Registry
from colaworld.runs.config import RunConfig
from colaworld.runs.lengths import shortened

_NAME = re.compile(r"[a-z0-9][a-z0-9_.+-]*")


# What stands beside a folder of that name: OUT/DATA/data and data.json beside arms, OUT/rows.json beside data.
_BESIDE_ARMS = ("data", "generator", "generator-data", "labelled", "bounds")
ELSEWHERE = "elsewhere-"  # what folders of other sets begin with
_BESIDE_DATA = ("study.json", "rows.json", "report.html")
_OWN = ("training.seed", "data.path")


def _check_name(what: str, name: str, *, taken: bool = False) -> None:
    """Names are folders, too."""
    if taken:
        raise ConfigError(
            f"{what}: {name!r} is the name of what a study puts there; choose another"
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what}: expected a name of small letters, digits, '_', '.', '+' or '-', got {name!r}"
        )


@dataclass(frozen=True)
class Arm(Checked, at="arm."):
    """One of the ways that are compared: a recipe, and what is changed in it."""

    name: str
    """What it is called in tables; the name of its folder."""
    recipe: str
    """The recipe it begins as."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Flat key -> value: {"model.quantizer.normalise": False}. Ramps, cooldowns and gates shrink with a
    shorter phase as they do on the command line, unless they are named here."""
    note: str = ""
    """What it shows, in a few words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = self.name.split(".")[0] in _BESIDE_ARMS or self.name.startswith(ELSEWHERE)
        _check_name("arm.name", self.name, taken=taken)


@dataclass(frozen=True)
class Adaptation(Checked, at="adaptation."):
    """What follows each run: `colaworld adapt` with few and many labels, seeded as the run."""

    labels: tuple[Count, ...] = (100, 1000, 10000)
    """Recorded transitions; one adapted run for each number."""
    adapter_steps: Count = 600
    """Steps of the adapter alone."""
    steps: Count = 300
    """Steps of fine-tuning."""
    learning_rate: Positive = 1e-4
    """Of fine-tuning: a fifth of nano.cola's joint training, which with 100 labels spoils the world
    (EXPERIMENTS.md)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ConfigError(f"adaptation.labels: expected different numbers, got {self.labels}")


@dataclass(frozen=True)
class Planning(Checked, at="planning."):
    """What follows each run: `colaworld plan` in its codes and, where it was adapted, in real actions."""

    env: str
    """The environment in which the data were recorded."""
    arguments: tuple[str, ...] = ()
    """More of `colaworld plan`, the same for all runs and for what they are held against."""
    codes: tuple[str, ...] = ()
    """More of it, of plans in codes alone."""


@dataclass(frozen=True)
class DataSet(Checked, at="data."):
    """Videos that every arm is trained and measured on."""

    name: str
    """What it is called in tables; the name of its folder."""
    record: tuple[str, ...] = ()
    """Arguments of `colaworld record` without --out; empty where `path` is given."""
    path: Path | None = None
    """A data set that is there."""
    pretrain: tuple[str, ...] = ()
    """Arguments of `colaworld record` for the videos of a generator of its own, which nano.pretrain
    trains first and all arms start from. Empty: the generator of each arm's recipe."""
    pretrain_changes: dict[str, Any] = field(default_factory=dict)
    """Changes of nano.pretrain, by flat key."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Changes of every run on these data, by flat key."""
    labelled: tuple[str, ...] = ()
    """Arguments of `colaworld record` for what an adaptation learns from. Empty: the data set itself."""
    plan: Planning | None = None
    """How studies that plan do it on these data; None: they do not."""
    elsewhere: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> arguments of `colaworld record` of other sets, that no run is trained on: studies that measure elsewhere
    evaluate every run on the held-out episodes of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.elsewhere:
            _check_name("data.elsewhere", name)
        _check_name("data.name", self.name, taken=self.name in _BESIDE_DATA)
        if bool(self.record) == (self.path is not None):
            raise ConfigError(
                f"data {self.name!r}: expected either record or path, got both or none"
            )


@dataclass(frozen=True)
class Study(Checked, at="study."):
    """Arms x data sets x seeds, and what is measured of each run."""

    name: str
    """By which it is called."""
    question: str
    """What it asks, one sentence."""
    arms: tuple[Arm, ...]
    """What is compared."""
    data: tuple[DataSet, ...]
    """On what."""
    reference: str
    """The arm that the others are held against, in pairs."""
    budget: Literal["clips", "flops", "own"] = "clips"
    """clips: every arm trains on as many clips at most (updates x clips of an update), which is checked. flops:
    the steps of each arm are scaled so that its training takes as many operations as the reference arm's. own:
    arms differ in it, which the tables tell."""
    measures: tuple[str, ...] = (
        "delta_psnr.random",
        "delta_psnr.shuffled",
        "probe.score",
        "codebook.entropy_normalised",
        "rollout.psnr",
        "nmse",
        "leakage.gain",
    )
    """Keys of evaluation.json that hold a number or {mean, low, high}."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Changes of every run, by flat key."""
    adapt: Adaptation | None = None
    """What each run is adapted with, and measured after."""
    plan: bool = False
    """Whether each run plans, where its data set says how."""
    elsewhere: bool = False
    """Whether each run is also measured on what its data set names as elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_name("study.name", self.name)
        for what, names in (
            ("arms", [arm.name for arm in self.arms]),
            ("data", [data.name for data in self.data]),
        ):
            if not names or len(set(names)) != len(names):
                raise ConfigError(
                    f"study {self.name!r}: {what}: expected one or more of different names, got {names}"
                )
        for where, changes in (
            ("changes", self.changes),
            *((f"arm {arm.name!r}", arm.changes) for arm in self.arms),
            *((f"data {data.name!r}", data.changes) for data in self.data),
        ):
            for key in _OWN:
                if key in changes:
                    raise ConfigError(
                        f"study {self.name!r}: {where}: {key}: the study sets it, so that runs are paired"
                    )
        if self.reference not in {arm.name for arm in self.arms}:
            raise ConfigError(
                f"study {self.name!r}: reference: expected one of its arms, got {self.reference!r}"
            )

    def check_budget(self) -> None:
        """ConfigError where arms that should train on as many clips do not, each in full length."""
        if self.budget != "clips":
            return
        data = self.data[0]
        asked = {arm.name: clips_of(config_of(self, data, arm)) for arm in self.arms}
        if len(set(asked.values())) > 1:
            told = ", ".join(f"{name} {clips}" for name, clips in asked.items())
            raise ConfigError(
                f"study {self.name!r}: expected arms of equal budgets, got clips trained on: {told}; "
                "make them equal, or say budget='own'"
            )


def in_precision(study: Study, autocast: str | None) -> Study:
    """A study whose runs are trained with this `training.autocast`, and adapted so; None: as recipes say. Generators
    are not, which studies share.

    Raises ConfigError where the study sets it itself.
    """
    key = "training.autocast"
    if autocast is None:
        return study
    parts: tuple[Study | DataSet | Arm, ...] = (study, *study.data, *study.arms)
    for one in parts:
        if key in one.changes:
            raise ConfigError(
                f"--autocast: the study {study.name!r} sets {key} itself ({one.name!r}); leave it out"
            )
    return replace(study, changes={**study.changes, key: autocast})


STUDIES: Registry[Study] = Registry("study", ConfigError)


def register_study(study: Study) -> None:
    """Make a study known by its name. Raises ConfigError where another has this name."""
    STUDIES.add(study.name, study)


def with_changes(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """`config` with values by flat keys. Raises ConfigError on an unknown key or a wrong value."""
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        *path, name = key.split(".")
        _check_inside(config, key)
        inside = nested
        for part in path:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"{key}: given beside a value for {part}")
        inside[name] = value
    return from_dict(RunConfig, nested, base=config)


def _check_inside(config: RunConfig, key: str) -> None:
    """ConfigError where a key leads into what is off (a gate that is None): a change of one of its fields
    would put the whole thing there, with defaults that nobody asked for."""
    value: Any = config
    path = key.split(".")
    for depth, name in enumerate(path[:-1], start=1):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if value is None:
            inside = ".".join(path[:depth])
            raise ConfigError(f"{key}: there is no {inside} in {config.recipe} to change")


def changed(recipe: str, changes: Mapping[str, Any], *, max_steps: int | None = None) -> RunConfig:
    """A recipe with changes; ramps, cooldowns and gates shrink with their phase as on the command line.

    max_steps: cap of each phase, for a look; then also what `changes` names shrinks.
    """
    base = RECIPES[recipe]()
    config = shortened(with_changes(base, changes), base, set(changes))[0]
    if max_steps is None:
        return config
    return shortened(with_changes(config, {"training.max_steps": max_steps}), config, ())[0]


def config_of(
    study: Study,
    data: DataSet,
    arm: Arm,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    scale: float = 1.0,
) -> RunConfig:
    """The configuration of a run, but for where its data and its generator are.

    Args:
        seed: of the training; data and evaluation are the same for all.
        max_steps: cap of each phase.
        scale: with so many times the steps of each phase; ramps and gates shrink with them, and do not grow.

    Raises:
        ConfigError: names the arm and the key that is wrong.
    """
    changes: dict[str, Any] = {**study.changes, **data.changes, **arm.changes}
    changes["training.seed"] = seed
    try:
        if scale != 1:
            for phase in changed(arm.recipe, changes).scheduled():
                changes[f"phases.{phase.name}.steps"] = max(1, round(phase.steps * scale))
        return changed(arm.recipe, changes, max_steps=max_steps)
    except ConfigError as error:
        raise ConfigError(f"study {study.name!r}, arm {arm.name!r}: {error}") from None


def clips_of(config: RunConfig) -> int:
    """Clips that a run trains on at most, each time that it is drawn."""
    steps = sum(phase.capped(config.training.max_steps).steps for phase in config.scheduled())
    return steps * config.training.batch_size * config.training.accumulate
