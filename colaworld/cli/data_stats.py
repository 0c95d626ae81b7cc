"""`colaworld data stats PATH`: what the actions of a data set are, measured, said by a person, and kept beside
the set.

Not here: measuring and the file (data/action_statistics.py); this file only asks and prints.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from colaworld.action_contract import ActionContract
from colaworld.cli.command_line import from_command_line
from colaworld.cli.errors import FORESEEN, report_error
from colaworld.cli.progress import bar
from colaworld.config import Checked, ConfigError, Positive
from colaworld.data.config import check_there
from colaworld.files import printable

if TYPE_CHECKING:
    from colaworld.contracts import ActionSpec
    from colaworld.data.sources.source import Source


@dataclass(frozen=True)
class StatsConfig(Checked, at="--"):
    """Which actions, and what is known of them."""

    path: Annotated[Path, tyro.conf.Positional]
    """A data set, as training takes it."""
    column: str = "action"
    """Column of the actions."""
    names: tuple[str, ...] = ()
    """What its channels (or classes) are called, where the set does not say."""
    unit: tuple[str, ...] = ()
    """Unit of each channel, or one for all: rad, m, px."""
    mode: Literal["absolute", "relative", ""] = ""
    """absolute: a place to be at; relative: a change from where it is."""
    frame: str = ""
    """What the numbers are measured in: world, base, gripper, joints."""
    normaliser: Literal["mean_std", "min_max", "quantile", "none"] = "mean_std"
    """How numbers are to be scaled: to deviation 1, or to -1..1 between their ends or quantiles."""
    write: bool = False
    """Write it beside the set: meta/colaworld_actions.json, or colaworld_actions.json in a folder
    without meta/."""
    source: str = "auto"
    """How to read it: lerobot, hdf5, webdataset, video_folder, or a source of your own."""
    recorded_fps: Positive | None = None
    """HDF5: frames per second, where the files do not say."""


def run(argv: list[str]) -> int:
    """Print, and write if asked. 1 where the set's own statistics are wrong, 2 for a wrong call."""
    config = from_command_line(
        StatsConfig,
        argv,
        program="colaworld data stats",
        description="What the actions of a data set are: channels, units, rate and statistics.",
    )
    try:
        return _run(config)
    except FORESEEN as error:
        return report_error("colaworld data stats", error)


def _run(config: StatsConfig) -> int:
    check_there(config.path)
    # Not above: help and wrong calls need no numpy and no PyAV.
    from colaworld.data.action_statistics import (
        contract_file,
        measure,
        stored_contract,
        told_wrongly,
        write_contract,
    )
    from colaworld.data.errors import DataError
    from colaworld.data.sources import open_source

    source = open_source(
        config.path,
        kind=config.source,
        action_column=config.column,
        recorded_fps=config.recorded_fps,
    )
    if source.action_spec is None:
        raise DataError(source.describe().no_actions)
    before = stored_contract(source)
    spec = _said(config, source, before)
    scaling = "none" if spec.kind == "discrete" else config.normaliser
    with bar("reading") as progress:
        made = measure(source, spec=spec, scaling=scaling, progress=progress)
    print_contract(made, len(source.episodes))
    wrong, notes = told_wrongly(source, made)
    for line in notes:
        print(f"note: {line}")
    for line in wrong:
        print(f"wrong: {line}")
    if wrong:
        print(
            "What normalises by these statistics sees other actions than the rows hold. colaworld "
            "uses the rows; let LeRobot compute the file again."
        )
    if config.write:
        print(f"written: {write_contract(source, made)}")
    elif before is None:
        print("not written: --write keeps it beside the set")
    elif before.hash != made.hash:
        print(f"{contract_file(source.path)} says otherwise ({before.hash}); --write replaces it")
    return int(bool(wrong))


def _said(config: StatsConfig, source: Source, before: ActionContract | None) -> ActionSpec:
    """What the set says of its actions, and the options, or else what was written before, besides."""
    from colaworld.data.action_statistics import STATED, stated

    spec = source.action_spec
    assert spec is not None
    if spec.kind == "discrete" and (config.unit or config.mode or config.frame):
        raise ConfigError(
            f"--unit, --mode, --frame: column {spec.column!r} holds classes, which have none of them"
        )
    if len(config.unit) not in (0, 1, spec.size):
        raise ConfigError(
            f"--unit: expected 1, or {spec.size} (one for each channel), got {len(config.unit)}"
        )
    units = config.unit * spec.size if len(config.unit) == 1 else config.unit
    options = {
        "names": config.names,
        "units": units,
        "mode": config.mode,
        "frame": config.frame,
    }
    spec = stated(spec, options, who="the command line")
    if before is None or (before.kind, before.size) != (spec.kind, spec.size):
        return spec
    return replace(spec, **{k: getattr(spec, k) or getattr(before, k) for k in STATED})


def print_contract(contract: ActionContract, episodes: int) -> None:
    """What is stated, then a row for each channel or class."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    wide = None if sys.stdout.isatty() else 120
    console, n = Console(width=wide), contract.normaliser
    facts = Table(box=box.SIMPLE, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    discrete = contract.kind == "discrete"
    facts.add_row(
        "column", f"{escape(printable(contract.column))} ({contract.kind}, {contract.size})"
    )
    if not discrete:
        facts.add_row("mode", contract.mode or _unsaid("--mode"))
        facts.add_row("frame of reference", escape(printable(contract.frame)) or _unsaid("--frame"))
    facts.add_row("rate", "not known" if contract.rate is None else f"{contract.rate:g} Hz")
    if not discrete:
        facts.add_row("normaliser", n.kind)
    facts.add_row("rows", f"{n.count} of {episodes} episodes")
    facts.add_row("contract", contract.hash)
    console.print(facts)
    if not contract.names:
        console.print(f"{'classes' if discrete else 'channels'}: names {_unsaid('--names')}")
    if not discrete and not all(contract.units or ("",)):
        console.print(f"units: {_unsaid('--unit')}")
    table = Table(box=box.SIMPLE)
    if discrete:
        for head in ("class", "name", "times", "share"):
            table.add_column(head, justify="left" if head == "name" else "right")
        for i, times in enumerate(n.counts):
            name = escape(printable(contract.names[i])) if contract.names else ""
            table.add_row(str(i), name, str(times), f"{times / max(1, n.count):.1%}")
    else:
        heads = ("#", "name", "unit", "low", "q01", "mean", "std", "q99", "high")
        for head in heads:
            # Folded: never a number without its end.
            if head in ("name", "unit"):
                table.add_column(head, overflow="fold")
            else:
                table.add_column(head, justify="right", overflow="fold")
        columns = (n.low, n.q01, n.mean, n.std, n.q99, n.high)
        for i, row in enumerate(zip(*columns, strict=True)):
            name, unit = (
                escape(printable(said[i])) if said else ""
                for said in (contract.names, contract.units)
            )
            table.add_row(str(i), name, unit, *(f"{value:.4g}" for value in row))
    console.print(table)


def _unsaid(option: str) -> str:
    return f"not known; say it with {option}"
