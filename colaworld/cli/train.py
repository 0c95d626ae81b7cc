"""colaworld train: run a recipe."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from colaworld.config import from_command_line, load_yaml
from colaworld.recipes import RECIPES, recipe
from colaworld.recipes.base import RunConfig, build_trainer

log = logging.getLogger(__name__)

_USAGE = """usage: colaworld train RECIPE --data PATH --out DIR [--resume] [--config FILE] [--FIELD VALUE ...]

recipes:
{recipes}

`colaworld train RECIPE --help` lists every field. Fields given on the command line win over those
of --config FILE (YAML), which win over the recipe's. `--training.max-steps N` caps each phase.
"""


@dataclass(frozen=True)
class TrainOptions:
    """Options of `colaworld train` besides the run's configuration."""

    out: Path
    """The run folder: config.yaml, metrics.jsonl, checkpoints/, tensorboard/, weights/."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder."""
    device: str = "auto"
    """cpu, cuda, or auto: the first GPU if there is one."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """The run."""


def run(argv: list[str]) -> int:
    """Train; 0 when finished or interrupted (with a checkpoint), 2 on a wrong call."""
    names = "\n".join(f"  {n:20} {(f.__doc__ or '').strip()}" for n, f in RECIPES.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE.format(recipes=names), end="")
        return 0 if argv else 2
    name, *rest = argv
    config = recipe(name)
    rest = ["--data.path" if a == "--data" else a for a in _split_equals(rest, "--data")]
    if "--config" in rest:
        at = rest.index("--config")
        if at + 1 >= len(rest):
            raise ValueError("--config: expected a YAML file after it")
        config = load_yaml(rest[at + 1], RunConfig, base=config)
        del rest[at : at + 2]
    options = from_command_line(
        TrainOptions(out=Path("runs") / name, run=config),
        rest,
        program=f"colaworld train {name}",
        description=(RECIPES[name].__doc__ or "").strip(),
    )
    config = options.run
    if config.data.path is not None:
        config = replace(config, data=replace(config.data, path=config.data.path.resolve()))
    command = shlex.join(["colaworld", "train", *(a for a in argv if a != "--resume"), "--resume"])
    trainer = build_trainer(
        config,
        out=options.out,
        resume=options.resume,
        device=choose_device(options.device),
        resume_command=command,
    )
    result = trainer.run()
    print(result.message)
    return 1 if result.status == "stopped" else 0


def _split_equals(arguments: list[str], flag: str) -> list[str]:
    """`--data=X` as two arguments, so that the short flag works in both forms."""
    split: list[str] = []
    for argument in arguments:
        if argument.startswith(flag + "="):
            split += [flag, argument[len(flag) + 1 :]]
        else:
            split.append(argument)
    return split


def choose_device(name: str) -> str:
    """"auto" is the first GPU if there is one. Raises ValueError for a GPU that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this torch ({torch.__version__}) sees no GPU; use cpu")
    return name


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
