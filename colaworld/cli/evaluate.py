"""colaworld evaluate: measure a run on held-out episodes and write its report."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.progress import bar
from colaworld.cli.train import choose_device, data_flag, take_data
from colaworld.config import Checked, ConfigError, Range, to_dict
from colaworld.data.config import DataConfig, check_there
from colaworld.evaluation.layout import read_evaluation
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.flow.config import SamplerConfig
from colaworld.runs.config import RunConfig, read_config


@dataclass(frozen=True)
class EvaluateOptions(Checked, at="--"):
    """Options of `colaworld evaluate`. Defaults are the run's own settings."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    out: Path | None = None
    """Where evaluation.json, evaluation.npz and report.html are written. Default: the run folder, which
    keeps those of the run's own data."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set. Its held-out episodes are used: of the run's own set those the run held out."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How videos are generated."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured."""
    also: tuple[str, ...] = ()
    """NAME=PATH of more data sets, none of them trained on: each is measured like the first, on all its
    episodes, and shown beside it; evaluation-NAME.json. What else they share (a colour, a texture, another
    simulator) is for the name to say."""
    compare: tuple[Path, ...] = ()
    """Other evaluated run folders, or what --out of theirs wrote, shown beside this one. Their curves are
    drawn together, too, where they were watched."""
    watch: bool = False
    """Evaluate the run's checkpoints, oldest first, and those that are yet to come, until the run is over:
    a row each in evaluations.jsonl, which the report draws. Let the run keep them
    (training.keep_checkpoints), or evaluate faster than it saves: a few --evaluation.clips will do."""
    poll: Annotated[float, Range(ge=0.1, le=86_400)] = 10.0
    """--watch: seconds between two looks for a checkpoint."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def run(argv: list[str]) -> int:
    """Evaluate; prints the table and the report's path."""
    if {"-h", "--help", "--help-all"} & set(argv):
        _parse(EvaluateOptions(run=Path("RUN")), argv)  # ends here
    folder = _parse(EvaluateOptions, data_flag(argv)).run
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
    out = _out(options, stored)
    also = _also(options.also, config.data, stored)
    config.evaluation.check_weights()
    device = choose_device(options.device)

    if options.watch:
        return _watch(options, config, device)

    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.evaluation.comparison import comparison
    from colaworld.evaluation.report.page import write_report
    from colaworld.evaluation.tables import beside, columns, horizon_rows, paper_rows, table
    from colaworld.files import write_json
    from colaworld.runs.evaluation import evaluate_run
    from colaworld.runs.provenance import environment
    from colaworld.runs.watch import read_rows

    curves = {named: read_rows(folder) for named, folder in _curves(options.run, others).items()}
    elsewhere: dict[str, dict[str, Any]] = {}
    for label, one in also.items():
        with bar(f"evaluating {label}", stages=True) as progress:
            other_config = replace(config, data=one)
            found = evaluate_run(
                options.run, config=other_config, device=device, progress=progress, unseen=True
            ).result
        elsewhere[label] = {**found, "data": {"name": _data_name(one.path)}}
    with bar("evaluating", stages=True) as progress:
        evaluation = evaluate_run(options.run, config=config, device=device, progress=progress)
    name = _data_name(config.data.path)
    result = {**evaluation.result, "data": {"name": name}}
    evaluation = replace(evaluation, result=result)
    evaluation.save(out)
    for label, found in elsewhere.items():
        write_json(out / f"evaluation-{label}.json", found)
    sets = {name: evaluation.result, **elsewhere}
    counts = evaluation.result["counts"]
    results = _named({out: evaluation.result, **others})
    again = " ".join(["colaworld evaluate", *map(shlex.quote, argv)])
    train = f"colaworld train {config.recipe} --config {options.run}/config.yaml --out NEW"
    if config.recipe == "adapt":
        start, path = stored.phases["adapter"].init_from, stored.data.path
        train = shlex.join(["colaworld", "adapt", str(start), "--data", str(path), "--out", "NEW"])
    report = write_report(
        out / "report.html",
        title=f"{config.recipe} on {name}, {counts['height']} × {counts['width']} pixels",
        evaluation=evaluation.result,
        artefacts=evaluation.artefacts,
        metrics_jsonl=options.run / "metrics.jsonl",
        config_yaml=(options.run / "config.yaml").read_text(),
        environment={"this page": again, "the run": train, **environment(options.run)},
        compare=results if others else None,
        sets=sets if elsewhere else None,
        curves=curves,
    )
    compared = comparison(results)
    print(compared.text() if others else table(evaluation.result))
    alike = {name: results[name] for name in compared.alike}
    for rows in (horizon_rows(evaluation.result), paper_rows(alike | elsewhere)):
        print(f"\n{columns(rows)}")
    if elsewhere:
        print(f"\n{beside(sets)}")
    print(f"report: {report}")
    return 0


def _out(options: EvaluateOptions, stored: RunConfig) -> Path:
    """The folder to write into. Raises ConfigError where that would put an evaluation of other data in
    place of that of the run's own or of one that it is compared with, or files among others'."""
    run, path = options.run, options.data.path
    out = options.out or run
    for compared in options.compare:
        if compared.resolve() == out.resolve():
            raise ConfigError(
                f"--compare {compared}: this evaluation is written there, in place of that one; name another "
                "folder, or write to another --out"
            )
    if out.resolve() == run.resolve():
        if _is_own(path, stored):
            return run
        own = ", ".join(str(one.path) for one in stored.data.sets().values())
        raise ConfigError(
            f"--data {path}: no data of the run, which has {own}: {run} keeps the evaluation of its own, "
            f"which others read; --out DIR writes this one elsewhere, --also NAME={path} measures both "
            "side by side"
        )
    if options.watch:
        raise ConfigError(f"--out {out}: --watch writes into the run's folder; leave it out")
    if (out / "config.yaml").is_file():
        raise ConfigError(f"--out {out}: holds a run; name another folder")
    if (out / "meta").is_dir() or (path is not None and out.resolve() == path.resolve()):
        raise ConfigError(f"--out {out}: holds data; name another folder")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: expected a folder, it is a file")
    return out


def _is_own(path: Path | None, stored: RunConfig) -> bool:
    """Whether a data set is one of the run's: by its path, by its name where those were moved."""
    own = [one.path for one in stored.data.sets().values() if one.path is not None]
    if path is None or not own or path.resolve() in [one.resolve() for one in own]:
        return True
    return any(not one.exists() and one.name == path.resolve().name for one in own)


def _also(asked: tuple[str, ...], data: DataConfig, stored: RunConfig) -> dict[str, DataConfig]:
    """More data sets by name, read as `data` is. Raises ConfigError or DataError on what is none, or was
    trained on by the run of `stored`."""
    known = [one.path.resolve() for one in stored.data.sets().values() if one.path is not None]
    sets: dict[str, DataConfig] = {}
    for text in asked:
        name, equals, path = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not path:
            raise ConfigError(f"--also: expected NAME=PATH, got {text!r}")
        if name in sets:
            raise ConfigError(f"--also: the name {name!r} is given twice")
        one = check_there(Path(path))
        if data.path is not None and one.resolve() == data.path.resolve():
            raise ConfigError(f"--also {text}: this is the data set that is measured anyway")
        if one.resolve() in known:
            raise ConfigError(
                f"--also {text}: the run was trained on this set, and --also measures all episodes; "
                "--data measures its held-out ones"
            )
        sets[name] = replace(data, path=one, mixture={}, split="heldout")
    return sets


def _curves(run: Path, others: Iterable[Path]) -> dict[str, Path]:
    """Folders by name, of this run and of others whose checkpoints were evaluated, too."""
    watched: dict[Path, dict[str, Any]]
    watched = {folder: {} for folder in (run, *others) if (folder / "evaluations.jsonl").is_file()}
    return {name: folder for name, folder in zip(_named(watched), watched, strict=True)}


def _watch(options: EvaluateOptions, config: RunConfig, device: str) -> int:
    """A line for each checkpoint, as it comes."""
    from colaworld.evaluation.measures.measure import number
    from colaworld.runs.evaluation import evaluate_run
    from colaworld.runs.watch import FILE, watch

    def measure(checkpoint: Any) -> dict[str, Any]:
        with bar(f"evaluating {checkpoint.path.name}", stages=True) as progress:
            return evaluate_run(
                options.run, config=config, device=device, progress=progress, checkpoint=checkpoint
            ).result

    asked = {k: v for k, v in to_dict(options.evaluation).items() if v is not None}
    asked["sampler"] = to_dict(options.sampler)
    rows = 0
    for row in watch(options.run, measure, settings=asked, poll=options.poll):
        rows += 1
        probe = (row["probe"] or {}).get("mean")
        entropy = row["entropy_normalised"]
        print(
            f"step {row['global_step']}: {number(row['delta_psnr']['mean'], 'dB')} over random actions"
            + ("" if probe is None else f", probe {probe:.2f}")
            + ("" if entropy is None else f", entropy {entropy:.2f}"),
            flush=True,
        )
    print(f"{options.run / FILE}: {rows} new rows; `colaworld evaluate` draws them in the report")
    return 0


def _data_name(path: Path | None) -> str:
    """A data set's folder; with the one above it where the name alone says nothing."""
    if path is None:
        return "no data"
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("data", "videos") else path.name


def _parse(
    default: EvaluateOptions | type[EvaluateOptions], arguments: list[str]
) -> EvaluateOptions:
    return from_command_line(
        default,
        arguments,
        program="colaworld evaluate",
        description="Measure a run on held-out episodes and write its report. Defaults are the run's own.",
        usual={"--data PATH": "The data set. [the run's own held-out episodes]"},
        groups={
            "data": "data.height data.width data.fps data.stride data.camera",
            "generating and measuring": "sampler.steps sampler.guidance evaluation.clips "
            "evaluation.probe_clips evaluation.history evaluation.horizon evaluation.batch_size "
            "evaluation.lpips evaluation.fvd evaluation.seed",
        },
    )


def _named(results: dict[Path, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By recipe; runs of the same recipe by recipe and folder, where that is the same by its path."""
    recipes = {folder: _recipe(folder, found) for folder, found in results.items()}
    names = list(recipes.values())
    for tell in (lambda folder: folder.name, str):
        shared = {name for name, n in Counter(names).items() if n > 1}
        names = [
            f"{recipes[folder]} ({tell(folder)})" if name in shared else name
            for folder, name in zip(recipes, names, strict=True)
        ]
    return dict(zip(names, results.values(), strict=True))


def _recipe(folder: Path, found: dict[str, Any]) -> str:
    """Of the run that an evaluation is of, which may lie elsewhere (--out)."""
    said = (found.get("run") or {}).get("recipe")
    return said if isinstance(said, str) else read_config(folder).recipe


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
