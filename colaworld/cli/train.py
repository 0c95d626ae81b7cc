"""colaworld train: run a recipe.

From the command line to a `RunConfig`. Not here: what a person reads before and after training
(train_summary.py), the wiring (runs/build.py), the loop and its progress (training).
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.launch import Processes, launched
from colaworld.cli.train_summary import ending, summary
from colaworld.config import ConfigError, leaves, load_given, to_dict
from colaworld.data.config import DataConfig, check_apart, check_sets
from colaworld.data.mixture import named_data
from colaworld.recipes import RECIPES, recipe
from colaworld.runs.adaptation import RECIPE as ADAPTED
from colaworld.runs.config import RunConfig, read_config
from colaworld.runs.lengths import shortened
from colaworld.runs.presets import with_preset

if TYPE_CHECKING:
    from torch import nn

    from colaworld.data.loader import ClipLoader
    from colaworld.models.world_model import WorldModel
    from colaworld.training.phase_state import TrainResult
    from colaworld.training.trainer import Trainer

log = logging.getLogger(__name__)

_USAGE = """usage: colaworld train RECIPE --data PATH --out DIR [--resume] [--preset GB] [--config FILE]
                       [--FIELD VALUE ...]

recipes:
{recipes}

`colaworld train RECIPE --help` shows the usual options, --help-all every field. Fields given on the command line win over those
of --config FILE (YAML), which win over the recipe's. `--training.max-steps N` caps each phase;
ramps, cooldowns, the gate and the start of codes shrink with it, unless they are given.
--resume goes on with the run in DIR, from its own config.yaml; a larger --training.max-steps (or
--phases.joint.steps) trains a finished run further. --preset 24|48|80|141 fits a recipe of
a published video model into a card of so many GB (colaworld plan-memory).
"""


@dataclass(frozen=True)
class TrainOptions:
    """Options of `colaworld train` besides the run's configuration."""

    out: Path
    """The run folder: config.yaml, metrics.jsonl, checkpoints/, tensorboard/, weights/."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder."""
    anyway: bool = False
    """Start also where a step needs more memory than the machine has."""
    device: str = "auto"
    """cpu, cuda, or auto: the first GPU if there is one."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """The run."""


def run(argv: list[str]) -> int:
    """Train; 0 when finished or interrupted (with a checkpoint), 1 when the alarm stopped it."""
    names = "\n".join(f"  {n:20} {(f.__doc__ or '').strip()}" for n, f in RECIPES.items())
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        print(_USAGE.format(recipes=names), end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    with launched("colaworld train") as processes:
        return _train(argv, processes)


def _train(argv: list[str], processes: Processes) -> int:
    options, changes = processes.after_main(lambda: _parse(_restarted(argv, processes)))
    arguments = [a for a in argv if a != "--resume"]
    again = shlex.join([*processes.command(), "train", *arguments, "--resume"])
    result, trainer = trained(options, processes, changes=changes, again=again)
    if result.status == "finished" and processes.is_main:
        print(ending(options.run, trainer))
    return 1 if result.status == "stopped" else 0


def trained(
    options: TrainOptions,
    processes: Processes,
    *,
    changes: Sequence[str] = (),
    again: str = "",
    before: Mapping[str, Callable[[nn.Module], None]] | None = None,
) -> tuple[TrainResult, Trainer]:
    """Wire the run, say what is about to happen, and train it.

    Args:
        options: of the call; the run as it shall be.
        processes: that train together.
        changes: what was scaled to a shorter run.
        again: what a person would type to resume.
        before: see `Trainer`.
    """
    config = options.run
    check_sets(config.data)
    if not options.resume:
        check_apart(options.out, config.data)
    device = processes.device(choose_device(options.device))

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.runs.build import build_trainer
    from colaworld.runs.duration import check_time
    from colaworld.runs.fits import check_memory
    from colaworld.training.checkpoint import find_checkpoints

    if not options.resume and find_checkpoints(options.out / "checkpoints"):
        raise ConfigError(
            f"{options.out} already holds a run; add --resume to go on with it, or choose another "
            "folder with --out"
        )
    told = {"out": options.out.resolve(), "resume": options.resume, "device": device.split(":")[0]}
    processes.agree(dict(leaves({**to_dict(told), **to_dict(config)})))
    processes.join(device, timeout=config.training.parallel.timeout)
    trainer = build_trainer(
        config,
        out=options.out,
        resume=options.resume,
        device=device,
        resume_command=again,
        before=before,
    )
    order = trainer.loader.state_dict()
    processes.agree({"clips in data": order["clips"], "streams of data": order["streams"]})
    clips = cast("ClipLoader", trainer.loader).clips
    size = {"height": clips.height, "width": clips.width}
    try:
        tokens = check_memory(
            _of_one(config, processes.world_size),
            cast("WorldModel", trainer.model),
            device=trainer.device,
            processes=processes.world_size,
            neighbours=processes.local_world_size,
            **size,
        )
    except ConfigError as error:
        if not options.anyway:
            raise
        tokens = str(error)
    if processes.is_main:
        started = find_checkpoints(trainer.out / "checkpoints") if trainer.resume else []
        duration = check_time(
            _of_one(config, processes.world_size),
            cast("WorldModel", trainer.model),
            trainer.phases,
            device=trainer.device,
            progress=started[-1].state["progress"] if started else None,
            **size,
        )
        header = summary(config, trainer, changes, tokens, duration, started)
        print(header, flush=True)
    processes.begins(options.out)
    return trainer.run(), trainer


def _of_one(config: RunConfig, processes: int) -> RunConfig:
    """The run as one of its processes sees it: with its share of a batch."""
    share = config.training.batch_size // processes
    return replace(config, training=replace(config.training, batch_size=share))


def _restarted(argv: list[str], processes: Processes) -> list[str]:
    """The same call; where torchrun starts it again, one that goes on with its run."""
    folders, _ = take(argv[1:], "--out")
    out = Path(folders[-1]) if folders else Path("runs") / argv[0]
    if not processes.resumes(out):
        return argv
    if (out / "config.yaml").is_file():  # what a preset did stands there
        argv = [argv[0], *take(argv[1:], "--preset")[1]]
    log.info("restart %d: goes on with %s", processes.restarts, out)
    return argv if "--resume" in argv else [*argv, "--resume"]


def parse(argv: list[str]) -> TrainOptions:
    """The recipe, then the saved run (resuming), then --config files, then the command line.

    Raises ConfigError on a wrong recipe, file or value, SystemExit on a wrong argument.
    """
    return _parse(argv)[0]


def _parse(argv: list[str]) -> tuple[TrainOptions, list[str]]:
    """The same, and what was scaled to a shorter run."""
    name, *rest = argv
    base = recipe(name)
    data, rest = take(rest, "--data")
    files, rest = take(rest, "--config")
    presets, rest = take(rest, "--preset")
    for preset in presets:
        base = with_preset(base, preset)
    config = base
    folders, _ = take(rest, "--out")
    folder = Path(folders[-1]) if folders else Path("runs") / name
    resumes = "--resume" in rest and (folder / "config.yaml").is_file()
    if resumes:
        saved = read_config(folder)
        if saved.recipe != name:
            verb = "adapt RUN" if saved.recipe == ADAPTED else f"train {saved.recipe}"
            raise ConfigError(
                f"{folder} holds a run of {saved.recipe}, not of {name}; resume it with "
                f"colaworld {verb}, or choose another folder with --out"
            )
        if presets:
            raise ConfigError(
                f"--preset: {folder} goes on with the configuration it began with; leave --preset "
                "out (--training.recompute blocks saves memory and may change)"
            )
        config = saved
    changes: list[str] = []

    def settle(asked: RunConfig, given: set[str]) -> RunConfig:
        if resumes:  # it was settled when the run began
            return asked
        settled, said = shortened(asked, config, given)
        changes.extend(said)
        return settled

    for file in files:
        config = settle(*load_given(file, RunConfig, base=config))
        if config.recipe != name:
            raise ConfigError(
                f"{file} is a configuration of {config.recipe}, not of {name}; run "
                f"colaworld train {config.recipe}, or take `recipe` and `schedule` out of the file"
            )
    if (named := named_data(data)) is not None:
        named = replace(config.data, path=named.path, mixture=named.mixture)
        config = replace(config, data=named)
    options = from_command_line(
        TrainOptions(out=folder, run=config),
        rest,
        program=f"colaworld train {name}",
        description=(RECIPES[name].__doc__ or "").strip(),
        usual={
            "--data PATH": "The videos; several sets: a YAML file, or --data NAME=PATH:WEIGHT for each.",
            "--config FILE": "A YAML file; options on the command line win over it.",
            "--preset GB": "Fit a published video model into a card of 24, 48, 80 or 141 GB.",
        },
    )
    if options.run.recipe != name:
        raise ConfigError(
            f"--recipe: it says which recipe a run is of, here {name}, got {options.run.recipe!r}; "
            "the name behind `train` chooses it"
        )
    flags = {flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in rest}
    return replace(options, run=settled(settle(options.run, flags))), changes


def data_flag(arguments: list[str]) -> list[str]:
    """The same arguments with --data X and --data=X spelled out as --data.path X."""
    spelled: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        spelled += ["--data.path", *([value] if equals else [])] if flag == "--data" else [argument]
    return spelled


def take_data(arguments: list[str], data: DataConfig) -> tuple[DataConfig, list[str]]:
    """`data` at the path, or with the set of its mixture, that --data names; the other arguments."""
    values, rest = take(data_flag(arguments), "--data.path")
    return data.one_set(Path(values[-1])) if values else data, rest


def take(arguments: list[str], flag: str) -> tuple[list[str], list[str]]:
    """(values given for `flag`, as `--flag X` or `--flag=X`, the other arguments)."""
    values: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == flag:
            value = next(left, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{flag}: expected a value after it")
            values.append(value)
        elif argument.startswith(flag + "="):
            values.append(argument[len(flag) + 1 :])
        else:
            rest.append(argument)
    return values, rest


def settled(config: RunConfig) -> RunConfig:
    """Paths made absolute, so that the run is found again from any folder."""
    data, weights = config.data, config.backbone_weights
    mixture = {n: replace(one, path=one.path.resolve()) for n, one in data.mixture.items()}
    path = None if data.path is None else data.path.resolve()
    config = replace(config, data=replace(data, path=path, mixture=mixture))
    if weights is not None and weights.lower() == "none":
        weights = None
    elif weights and weights != "nano" and Path(weights).exists():
        weights = str(Path(weights).resolve())
    latents = None if config.latents is None else str(Path(config.latents).resolve())
    stored = getattr(config.model.tokenizer, "path", "")
    if stored and Path(stored).expanduser().exists():
        tokenizer: Any = config.model.tokenizer
        tokenizer = replace(tokenizer, path=str(Path(stored).expanduser().resolve()))
        config = replace(config, model=replace(config.model, tokenizer=tokenizer))
    return replace(config, backbone_weights=weights, latents=latents)


def choose_device(name: str) -> str:
    """The first GPU, if there is one, for "auto". ValueError for a device that is not there."""
    kind, _, number = name.partition(":")
    if name != "auto" and (kind not in ("cpu", "cuda") or (number and not number.isdigit())):
        raise ValueError(f"--device: expected cpu, cuda, cuda:N or auto, got {name!r}")
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    if kind == "cuda" and int(number or 0) >= gpus:
        raise ValueError(
            f"--device {name}: this torch ({torch.__version__}) sees {gpus or 'no'} "
            f"GPU{'s' if gpus > 1 else ''}; use {'a lower number' if gpus else 'cpu'}"
        )
    return name


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
