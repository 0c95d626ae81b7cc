"""colaworld plan-scale: what a recipe needs on many GPUs: memory, traffic, time.

From the command line to a table by phase. Not here: the formulas (runs/scale.py, docs/scale.md).
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.train import data_flag, take
from colaworld.config import Checked, ConfigError, Count, Positive, Range, load_yaml
from colaworld.recipes import RECIPES, recipe
from colaworld.runs.config import RunConfig
from colaworld.runs.memory import gib, usable
from colaworld.runs.scale import Cluster, PhaseScale, plan_scale
from colaworld.training.cards import CARDS

_USAGE = """usage: colaworld plan-scale RECIPE --gpus N [--gpu NAME] [--nodes N] [--FIELD VALUE ...]

recipes:
{recipes}

GPUs: {cards}
Takes the fields of `colaworld train RECIPE`. Nothing is allocated, no weights or data are read.
"""
_Part = Annotated[float, Range(gt=0, le=1)]
_A_NODE = 8  # GPUs that most machines have


@dataclass(frozen=True)
class ScaleOptions(Checked, at="--"):
    """Options of `colaworld plan-scale` besides the run's configuration."""

    gpus: Count = 8
    """GPUs in all."""
    gpu: str = "h100"
    """Which ones."""
    nodes: Count | None = None
    """Machines; None: of eight GPUs each."""
    network: Positive = 50.0
    """GB/s of each GPU to other machines, one way (50: a 400 Gb/s port for each)."""
    utilisation: tuple[_Part, _Part] = (0.2, 0.4)
    """Least and most share of the card's peak that a step is assumed to reach; `speed.mfu` of a run's
    rows has what yours reached."""
    json: Path | None = None
    """Write the numbers here too."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """The run."""


def run(argv: list[str]) -> int:
    """Print the plan; 0 when every phase fits, 1 when one does not."""
    names = "\n".join(f"  {n:20} {(f.__doc__ or '').strip()}" for n, f in RECIPES.items())
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        cards = ", ".join(card.name for card in CARDS)
        text = _USAGE.format(recipes=names, cards=cards)
        print(text, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    options = parse(argv)
    logging.getLogger("colaworld.ops").setLevel(logging.WARNING)  # nothing is run, nothing to tell
    cluster = cluster_of(options)
    phases = plan_scale(options.run, cluster, utilisation=options.utilisation)
    print(table(options.run, cluster, phases, options.utilisation))
    if options.json is not None:
        told = {
            "recipe": options.run.recipe,
            "cluster": asdict(cluster),
            "utilisation": options.utilisation,
            "phases": [asdict(phase) | {"days": phase.days} for phase in phases],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if all(phase.memory <= usable(cluster.card.memory) for phase in phases) else 1


def parse(argv: list[str]) -> ScaleOptions:
    """The recipe, then --config files, then the command line."""
    name, *rest = argv
    config = recipe(name)
    files, rest = take(data_flag(rest), "--config")
    for file in files:
        config = load_yaml(file, RunConfig, base=config)
    return from_command_line(
        ScaleOptions(run=config),
        rest,
        program=f"colaworld plan-scale {name}",
        description="Memory, traffic and time of a recipe on many GPUs, by phase.",
        usual={"--config FILE": "A YAML file."},
    )


def cluster_of(options: ScaleOptions) -> Cluster:
    """The machines that are asked for. ConfigError on a card that is not known, and on GPUs that the
    machines cannot share evenly."""
    cards = {card.name: card for card in CARDS}
    if options.gpu not in cards:
        raise ConfigError(f"--gpu: expected one of {', '.join(cards)}, got {options.gpu!r}")
    nodes = options.nodes or -(-options.gpus // _A_NODE)
    if options.gpus % nodes:
        raise ConfigError(
            f"--nodes: expected a divisor of the {options.gpus} GPUs, got {nodes}"
            + ("" if options.nodes else f" (machines of {_A_NODE}); name it")
        )
    low, high = options.utilisation
    if low > high:
        raise ConfigError(f"--utilisation: expected the least first, got {low:g} {high:g}")
    return Cluster(cards[options.gpu], options.gpus, nodes, options.network)


def table(
    config: RunConfig,
    cluster: Cluster,
    phases: tuple[PhaseScale, ...],
    utilisation: tuple[float, float],
) -> str:
    """What a person reads: a line a phase, then what it rests on."""
    training, card = config.training, cluster.card
    clips, limit = training.batch_size * training.accumulate, usable(card.memory)
    lines = [
        f"{config.recipe} on {cluster.gpus} x {card.name} in {cluster.nodes} "
        f"machine{'s' * (cluster.nodes > 1)}: {clips} clips an update, "
        f"{training.batch_size // cluster.gpus} on each GPU in {training.accumulate} "
        f"pass{'es' * (training.accumulate > 1)}",
        "",
        f"{'phase':10} {'memory':>11} {'':13} {'traffic':>11} {'work':>18} {'waiting':>9} {'a step':>18} {'days':>18}",
    ]
    days = [0.0, 0.0]
    for phase in phases:
        fits = "fits" if phase.memory <= limit else "does not fit"
        sent = sum(asdict(phase.traffic).values())
        days = [total + more for total, more in zip(days, phase.days, strict=True)]
        lines.append(
            f"{phase.phase:10} {gib(phase.memory):>11} {fits:13} {gib(sent):>11} "
            f"{_range(phase.compute, 's'):>18} {phase.communication:>7.2f} s "
            f"{_range(phase.step, 's'):>18} {_range(phase.days, ''):>18}"
        )
    total = (days[0], days[1])
    lines += [
        f"all phases: {_range(total, 'days')}, {_range((total[0] * cluster.gpus, total[1] * cluster.gpus), 'GPU days')}",
        "",
        "Assumed, not measured:",
        f"  work     {card.tflops:g} TFLOP/s of dense bf16 (data sheet), of which {100 * utilisation[0]:.0f} to "
        f"{100 * utilisation[1]:.0f} % are reached (--utilisation)",
        f"  links    {cluster.link:g} GB/s one way between GPUs"
        + (
            f", the port of each to other machines (--network); {card.link:g} within one"
            if cluster.nodes > 1
            else ""
        ),
        "  a step   from all traffic hidden behind work to none; loading data hidden, checkpoints left out",
        f"  memory   {gib(limit)} of {card.memory:g} GB for tensors; see colaworld plan-memory",
        "Formulas: docs/scale.md.",
    ]
    return "\n".join(lines)


def _range(values: tuple[float, float], unit: str) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return f"{low} to {high} {unit}".rstrip()


__all__ = ["ScaleOptions", "parse", "run", "table"]
