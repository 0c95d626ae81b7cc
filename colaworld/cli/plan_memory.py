"""colaworld plan-memory: does a recipe fit on a card, and what to change where it does not.

From the command line to a table by phase. Not here: how memory is counted (runs/memory.py).
"""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.train import data_flag, take
from colaworld.config import Checked, ConfigError, Positive, load_yaml
from colaworld.recipes import RECIPES, recipe
from colaworld.runs.config import RunConfig
from colaworld.runs.memory import Advice, PhaseMemory, advise, gib, plan_memory, usable
from colaworld.runs.presets import with_preset

_USAGE = """usage: colaworld plan-memory RECIPE [--gpu GB] [--preset GB] [--json FILE] [--FIELD VALUE ...]

recipes:
{recipes}

Takes the fields of `colaworld train RECIPE`. Nothing is allocated, no weights are read. The nano recipes
take their frames as they were recorded: name a data set (--data PATH) or a size (--data.height N --data.width N).
"""

_COLUMNS = ("parameters", "gradients", "optimizer", "average", "activations", "total", "tokenizer")


@dataclass(frozen=True)
class MemoryOptions(Checked, at="--"):
    """Options of `colaworld plan-memory` besides the run's configuration."""

    gpu: Positive = 80.0
    """GB of the card, as it is sold."""
    json: Path | None = None
    """Write the numbers here too, in bytes."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """The run."""


def run(argv: list[str]) -> int:
    """Print the plan; 0 when every phase fits, 1 when one does not."""
    names = "\n".join(f"  {n:20} {(f.__doc__ or '').strip()}" for n, f in RECIPES.items())
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        print(_USAGE.format(recipes=names), end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    options = parse(argv)
    ops_log = logging.getLogger("colaworld.ops")
    level = ops_log.level
    ops_log.setLevel(logging.WARNING)  # nothing is run, so nothing to tell
    try:
        return _plan(options)
    finally:
        ops_log.setLevel(level)


def _plan(options: MemoryOptions) -> int:
    config = options.run
    limit = usable(options.gpu) if math.isfinite(options.gpu) else 0
    if limit <= 0:
        raise ConfigError(f"--gpu: expected GB of a card, more than 1, got {options.gpu:g}")
    memory = plan_memory(config)
    fits = all(phase.total <= limit for phase in memory)
    print(table(config, memory, options.gpu), flush=True)
    advice: list[Advice] = []
    if not fits:
        print("\nWhat to switch on, cheapest first, each on top of those above it:", flush=True)
        for change in advise(config, limit):
            advice.append(change)
            print(f"  {gib(change.total):>9}  {change.flags}  ({change.cost})", flush=True)
        print(_verdict(advice, limit))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(_numbers(options, memory, advice), indent=1) + "\n")
    return 0 if fits else 1


def parse(argv: list[str]) -> MemoryOptions:
    """The recipe, then its preset, then --config files, then the command line."""
    name, *rest = argv
    config = recipe(name)
    presets, rest = take(data_flag(rest), "--preset")
    files, rest = take(rest, "--config")
    for preset in presets:
        config = with_preset(config, preset)
    for file in files:
        config = load_yaml(file, RunConfig, base=config)
    return from_command_line(
        MemoryOptions(run=config),
        rest,
        program=f"colaworld plan-memory {name}",
        description="Memory of a recipe by phase, and what to change where it does not fit.",
        usual={"--config FILE": "A YAML file.", "--preset GB": "See colaworld train."},
    )


def table(config: RunConfig, memory: tuple[PhaseMemory, ...], gpu: float) -> str:
    """What a person reads: one line a phase, bytes at the moment when they are most."""
    training = config.training
    clips = training.batch_size * training.accumulate
    lines = [
        f"{config.recipe}: {clips} clips an update in passes of {training.batch_size}, "
        f"recompute {training.recompute}",
        f"card of {gpu:g} GB: {gib(usable(gpu))} for tensors (of {gpu:g} GiB, less 6 % that drivers "
        "do not show, 1 GiB of context and libraries, 5 % split blocks)",
        "",
        "  ".join([f"{'phase':10}", *(f"{name:>11}" for name in _COLUMNS)]),
    ]
    for phase in memory:
        cells = [gib(getattr(phase, name)) for name in _COLUMNS]
        word = "fits" if phase.total <= usable(gpu) else "does not fit"
        lines.append("  ".join([f"{phase.phase:10}", *(f"{c:>11}" for c in cells), word]))
    lines += [
        "",
        "Bytes of a step at the moment when they are most, of a GPU's kernels. tokenizer: its weights",
        "and what encoding a batch takes at most, alone.",
    ]
    return "\n".join(lines)


def _verdict(advice: list[Advice], limit: int) -> str:
    if not advice:
        return "  nothing is left to switch on: this run needs a larger card"
    last = advice[-1]
    if last.total > limit:
        return (
            f"With all of them {gib(last.total)}, and {gib(limit)} is there: this run needs a larger "
            "card or smaller sizes"
        )
    whole = plan_memory(last.config)
    over = [f"{phase.phase} {gib(phase.total)}" for phase in whole if phase.total > limit]
    if over:
        return f"That phase fits then, but not {', '.join(over)}; ask again with these flags"
    return "Fits with: " + " ".join(change.flags for change in _last_of_each(advice))


def _last_of_each(advice: list[Advice]) -> list[Advice]:
    """Without the halvings that a later one replaces."""
    last = {change.flags.split()[0]: change for change in advice}
    return [change for change in advice if last[change.flags.split()[0]] is change]


def _numbers(
    options: MemoryOptions, memory: tuple[PhaseMemory, ...], advice: list[Advice]
) -> dict[str, Any]:
    limit = usable(options.gpu)
    return {
        "recipe": options.run.recipe,
        "gpu_gb": options.gpu,
        "usable_bytes": limit,
        "fits": all(phase.total <= limit for phase in memory),
        "phases": [asdict(phase) | {"total": phase.total} for phase in memory],
        "advice": [
            {"flags": change.flags, "cost": change.cost, "total": change.total} for change in advice
        ],
    }


__all__ = ["MemoryOptions", "parse", "run", "table"]
