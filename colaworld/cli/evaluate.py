"""colaworld evaluate: measure a run on held-out episodes and write its report."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device, data_flag, take_data
from colaworld.data.config import DataConfig, check_there
from colaworld.evaluation.layout import read_evaluation
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.flow.config import SamplerConfig
from colaworld.runs.config import read_config


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `colaworld evaluate`. Defaults are the run's own settings."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder. evaluation.json, evaluation.npz and report.html are written into it."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set. Its held-out episodes are used: of the run's own set those the run held out."""
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
    folder = _parse(EvaluateOptions(run=tyro.MISSING), data_flag(argv)).run
    stored = read_config(folder)
    data, arguments = take_data(argv, stored.data)
    default = EvaluateOptions(
        run=folder, data=data.one_set(), sampler=stored.sampler, evaluation=stored.evaluation
    )
    options = _parse(default, arguments)
    config = replace(
        stored,
        data=options.data,
        sampler=options.sampler,
        evaluation=options.evaluation,
    )
    others: dict[Path, dict[str, Any]] = {}
    for other in options.compare:  # before the long work, so that a wrong path costs nothing
        others[other] = read_evaluation(other / "evaluation.json")
    check_there(config.data.path)
    device = choose_device(options.device)

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.evaluation.comparison import comparison
    from colaworld.evaluation.report.page import write_report
    from colaworld.evaluation.tables import table
    from colaworld.runs.load import environment, evaluate_run

    with bar("evaluating", stages=True) as progress:
        evaluation = evaluate_run(options.run, config=config, device=device, progress=progress)
    name = _data_name(config.data.path)
    result = {**evaluation.result, "data": {"name": name}}
    evaluation = replace(evaluation, result=result)
    evaluation.save(options.run)
    counts = evaluation.result["counts"]
    results = _named({options.run: evaluation.result, **others})
    again = " ".join(["colaworld evaluate", *map(shlex.quote, argv)])
    train = f"colaworld train {config.recipe} --config {options.run}/config.yaml --out NEW"
    report = write_report(
        options.run / "report.html",
        title=f"{config.recipe} on {name}, {counts['width']} × {counts['height']} pixels",
        evaluation=evaluation.result,
        artefacts=evaluation.artefacts,
        metrics_jsonl=options.run / "metrics.jsonl",
        config_yaml=(options.run / "config.yaml").read_text(),
        environment={"this page": again, "the run": train, **environment(options.run)},
        compare=results if others else None,
    )
    print(comparison(results).text() if others else table(evaluation.result))
    print(f"report: {report}")
    return 0


def _data_name(path: Path | None) -> str:
    """A data set's folder; with the one above it where the name alone says nothing."""
    if path is None:
        return "no data"
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("data", "videos") else path.name


def _parse(default: EvaluateOptions, arguments: list[str]) -> EvaluateOptions:
    return from_command_line(
        default,
        arguments,
        program="colaworld evaluate",
        description="Measure a run on held-out episodes and write its report.",
    )


def _named(results: dict[Path, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By recipe; runs of the same recipe by recipe and folder, where that is the same by its path."""
    recipes = {folder: read_config(folder).recipe for folder in results}
    names = list(recipes.values())
    for tell in (lambda folder: folder.name, str):
        shared = {name for name, n in Counter(names).items() if n > 1}
        names = [
            f"{recipes[folder]} ({tell(folder)})" if name in shared else name
            for folder, name in zip(recipes, names, strict=True)
        ]
    return dict(zip(names, results.values(), strict=True))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
