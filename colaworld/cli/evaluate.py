"""colaworld evaluate: measure a run on held-out episodes and write its report."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device
from colaworld.config import from_command_line
from colaworld.data.loader import DataConfig
from colaworld.evaluation.evaluate import EvaluationConfig
from colaworld.evaluation.files import read_json
from colaworld.evaluation.report import write_report
from colaworld.evaluation.tables import compare, table
from colaworld.flow.samplers import SamplerConfig
from colaworld.recipes.runs import environment, evaluate_run, read_config


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `colaworld evaluate`. Defaults are the run's own settings."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder. evaluation.json, evaluation.npz and report.html are written into it."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set; its held-out episodes are used."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How videos are generated."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured."""
    compare: tuple[Path, ...] = ()
    """Other evaluated run folders, shown beside this one."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def run(argv: list[str]) -> int:
    """Evaluate; prints the table and the report's path."""
    arguments = ["--data.path" if a == "--data" else a for a in argv]
    given = next((a for a in arguments if not a.startswith("-")), None)
    folder = Path(given) if given else Path("RUN")
    stored = read_config(folder) if given and folder.exists() else None
    if stored is None and given and not {"-h", "--help"} & set(arguments):
        raise ValueError(f"{folder}: no such run folder; colaworld train makes one")
    default = EvaluateOptions(run=folder)
    if stored is not None:
        default = replace(
            default, data=stored.data, sampler=stored.sampler, evaluation=stored.evaluation
        )
    options = from_command_line(
        default, arguments, program="colaworld evaluate", description="Measure a run."
    )
    config = replace(
        read_config(options.run),
        data=options.data,
        sampler=options.sampler,
        evaluation=options.evaluation,
    )
    others = {}
    for other in options.compare:  # before the long work, so that a wrong path costs nothing
        others[read_config(other).recipe] = read_json(other / "evaluation.json")
    with bar("evaluating") as progress:
        evaluation = evaluate_run(
            options.run, config=config, device=choose_device(options.device), progress=progress
        )
    evaluation.save(options.run)
    results = {config.recipe: evaluation.result, **others}
    report = write_report(
        options.run / "report.html",
        title=f"{config.recipe} on {config.data.path.name if config.data.path else 'no data'}",
        evaluation=evaluation.result,
        artefacts=evaluation.artefacts,
        metrics_jsonl=options.run / "metrics.jsonl",
        config_yaml=(options.run / "config.yaml").read_text(),
        environment=environment(options.run),
        compare=results if others else None,
    )
    print(compare(results) if others else table(evaluation.result))
    print(f"report: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
