"""colaworld adapt: teach a trained world the real actions of a robot.

From the command line to the run that adapts; training itself is that of `train`. Not here: the run
(runs/adaptation.py), what is measured at its end (runs/adaptation_table.py).
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.launch import Processes, launched, program
from colaworld.cli.progress import bar
from colaworld.cli.train import TrainOptions, data_flag, settled, take, take_data, trained
from colaworld.config import Checked, ConfigError, Seed
from colaworld.data.config import DataConfig, check_there
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.flow.config import SamplerConfig
from colaworld.runs.adaptation import AdaptConfig, adapted_run
from colaworld.runs.config import RunConfig, read_config
from colaworld.training.config import TrainingConfig


@dataclass(frozen=True)
class AdaptOptions(Checked, at="--"):
    """Options of `colaworld adapt`. Data, loop, sampler and evaluation are as in the run it begins from."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a finished run: a world."""
    out: Path
    """The new run folder."""
    labels: str = "all"
    """How many recorded transitions may be used: a number, or all."""
    seed: Seed = 0
    """Of training, and of which transitions are used."""
    resume: bool = False
    """Go on from the last checkpoint in the new run folder."""
    anyway: bool = False
    """Start also where a step needs more memory than the machine has."""
    device: str = "auto"
    """cpu, cuda, or auto: the first GPU if there is one."""
    how: Annotated[AdaptConfig, tyro.conf.arg(name="")] = field(default_factory=AdaptConfig)
    """The adaptation."""
    data: DataConfig = field(default_factory=DataConfig)
    """The robot's clips; `--data SRC` names them."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The loop."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How videos are generated."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured at the end."""


def run(argv: list[str]) -> int:
    """Adapt, measure, print the table; exit status as of `train`."""
    with launched("colaworld adapt") as processes:
        return _adapt(argv, processes)


def _adapt(argv: list[str], processes: Processes) -> int:
    options, config = processes.after_main(lambda: _configured(argv, processes))

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.evaluation.adaptation import table
    from colaworld.runs.adaptation_table import keep_adapter, measure, told

    arguments = [a for a in argv if a != "--resume"]
    again = shlex.join([*processes.command(), "adapt", *arguments, "--resume"])
    begun = TrainOptions(options.out, options.resume, options.anyway, options.device, config)
    before = {"adapted": keep_adapter(options.out)} if processes.is_main else {}
    result, trainer = trained(begun, processes, again=again, before=before)
    if result.status != "finished" or not processes.is_main:
        return 1 if result.status == "stopped" else 0
    with bar("measuring", stages=True) as progress:
        found = measure(options.out, device=str(trainer.device), progress=progress)
    counts = found["counts"]
    print(
        f"{options.out}: {counts['clips']} held-out clips of {counts['episodes']} episodes, "
        f"{counts['horizon']} frames each; learned from {counts['labels']} recorded transitions"
    )
    print(table(found))
    print(
        "\n".join(told(found, names=config.action_contract.names if config.action_contract else ()))
    )
    called = shlex.join([*program(), "sample", str(options.out), "--actions", "FILE"])
    print(f"adaptation.json has every number; roll it out: {called}")
    return 0


def _configured(argv: list[str], processes: Processes) -> tuple[AdaptOptions, RunConfig]:
    """The options, and the run that they mean. Raises ConfigError or DataError."""
    folders, _ = take(argv, "--out")
    if folders and processes.resumes(Path(folders[-1])) and "--resume" not in argv:
        argv = [*argv, "--resume"]
    if {"-h", "--help", "--help-all"} & set(argv):
        _parse(AdaptOptions(run=Path("RUN"), out=Path("DIR")), argv)  # ends here
    first = _parse(AdaptOptions, data_flag(argv))
    if first.data.path is None:
        raise ConfigError("--data: name the robot's data set, a folder with recorded actions")
    check_there(first.data.path)
    stored = _world_of(first.run)
    data, arguments = take_data(argv, replace(stored.data, split="train", labels=None))
    seeded = replace(stored.training, seed=first.seed, max_steps=None)
    options = _parse(
        replace(
            first,
            data=data.one_set(),
            training=seeded,
            sampler=stored.sampler,
            evaluation=stored.evaluation,
            how=AdaptConfig(),
        ),
        arguments,
    )
    data = replace(options.data, labels=_labels(options.labels), labels_seed=options.seed)
    from colaworld.data.action_statistics import contract_of
    from colaworld.data.clips import ClipSet

    clips = ClipSet(data)
    clips.require_actions()
    begun = replace(
        stored, training=options.training, sampler=options.sampler, evaluation=options.evaluation
    )
    config = adapted_run(begun, options.run, data, options.how, contract_of(clips))
    return options, settled(config)


def _parse(default: AdaptOptions | type[AdaptOptions], arguments: list[str]) -> AdaptOptions:
    return from_command_line(
        default,
        arguments,
        program="colaworld adapt",
        description="Teach a trained world the real actions of a robot. Data, loop, sampler and evaluation are as "
        "in the run it begins from.",
        usual={"--data PATH": "The robot's clips, with recorded actions."},
    )


def _labels(asked: str) -> int | None:
    if asked == "all":
        return None
    if not asked.isascii() or not asked.isdigit() or int(asked) < 1:
        raise ConfigError(
            f"--labels: expected a number of recorded transitions or all, got {asked!r}"
        )
    return int(asked)


def _world_of(folder: Path) -> RunConfig:
    """The configuration of a finished run that is a world."""
    config = read_config(folder)
    from colaworld.runs.load import finished_weights, without_world

    if (why := without_world(config.parts())) is not None:
        raise ConfigError(f"{folder} is a run of {config.recipe}: {why}")
    if "lora" in config.parts():
        raise ConfigError(
            f"{folder} holds LoRA beside the video model; begin from the run that it was adapted from"
        )
    if finished_weights(folder) is None:
        raise ConfigError(f"{folder} is not finished: it has no weights; train it to its end")
    return config


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
