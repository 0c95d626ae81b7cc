"""colaworld study: run a study's arms with several seeds, compare them, write rows and a report."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from colaworld.cli.command_line import from_command_line
from colaworld.cli.launch import program
from colaworld.config import Checked, ConfigError, Count, Range
from colaworld.files import FolderLock, makeable
from colaworld.studies import STUDIES, Study
from colaworld.studies.flops import scales
from colaworld.studies.folder import begun, chosen, finished_rows, jobs_of, open_folder
from colaworld.studies.job import Job
from colaworld.studies.rows import Row, added_to, read_rows, write_rows, writing
from colaworld.studies.study import in_precision

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True)
class StudyOptions(Checked, at="--"):
    """Options of `colaworld study`."""

    name: Annotated[str, tyro.conf.Positional]
    """The study; `colaworld study --help` lists them."""
    out: Path | None = None
    """Its folder; runs/study-NAME when none is named. Runs lie in OUT/DATA/ARM/seed-N."""
    seeds: Annotated[int, Range(ge=1, le=1000)] | None = None
    """Runs of each arm on each data set: seeds 0, 1, 2 ... of training, on the same data, under the same
    evaluation. 3 when none is given; as many as it began with where it is resumed."""
    jobs: Annotated[int, Range(ge=1, le=1024)] = 2
    """Processes at once. Several GPUs are shared out among them, one for each process."""
    threads: Annotated[int, Range(ge=1, le=1024)] = 1
    """Threads of each."""
    budget: str | None = None
    """Stop beginning runs after so long, and let those that run finish: 90m, 3h, 1d."""
    arms: tuple[str, ...] = ()
    """Begin runs of these arms only; the report is of all that are done."""
    data: tuple[str, ...] = ()
    """Begin runs on these data sets only."""
    max_steps: Count | None = None
    """At most so many steps of each phase: a look at the machinery, not at results."""
    resume: bool = False
    """Go on with the study in its folder: what is done is left out, what was interrupted goes on, what failed is
    tried again."""
    status: bool = False
    """Only show how each run stands."""
    share: Path | None = None
    """A folder where recorded sets and generators are, or shall be, so that studies need not make the same twice: that
    of another study, or one for all. What is there has to be made as this study asks."""
    rows: Path | None = None
    """Also write the rows to this file. Rows that it has of other runs of the study stay: arms or seeds that ran
    elsewhere. Those of --max-steps need a file of their own."""
    device: str = "auto"
    """cpu, cuda, or auto, for every run."""
    autocast: Literal["none", "bf16"] | None = None
    """Precision in which each run is trained and adapted; generators keep theirs. bf16 is faster on a CPU that has AMX.
    As recipes say (bf16 on a GPU, none on a CPU) when it is not named. `colaworld evaluate` measures in float32 all the
    same; control and probe while a run trains are in the precision of its training."""


def run(argv: list[str]) -> int:
    """Run or show a study: 0 when nothing failed, 1 where a run did."""
    if not argv or argv[0] in ("-h", "--help"):
        studies = "\n".join(f"  {name:20} {study.question}" for name, study in STUDIES.items())
        print(f"studies:\n{studies}\n")
        argv = ["--help"]
    options = from_command_line(
        StudyOptions,
        argv,
        program="colaworld study",
        description="Run a study: arms x data sets x seeds, compared in pairs.",
    )
    study = STUDIES[options.name]
    out = _out(options)
    budget = None if options.budget is None else seconds(options.budget)
    wanted = {"arms": options.arms, "data": options.data}
    if options.status:
        if not (out / "study.json").is_file():
            raise ConfigError(f"--status: {out} holds no study yet")
        there = begun(out, study)
        study = in_precision(study, there["autocast"])
        jobs = jobs_of(study, out, **{k: there[k] for k in ("seeds", "max_steps", "share")})
        print(status(chosen(jobs, **wanted)))
        return 0
    # Before anything is written, so that a wrong call leaves nothing behind.
    asked = {name: getattr(options, name) for name in ("max_steps", "share")}
    first = jobs_of(in_precision(study, options.autocast), out, seeds=1, **asked)
    chosen(first, **wanted)
    if options.share is not None and not makeable(options.share):
        raise ConfigError(f"--share: expected a folder, there or to be made, got {options.share}")
    if options.rows is not None and (options.rows.is_dir() or not makeable(options.rows.parent)):
        raise ConfigError(f"--rows: expected a file to be written, got {options.rows}")
    if options.rows is not None:
        kept = added_to(options.rows, [], study)
        if options.max_steps is not None and kept and not _all_of(kept, out):
            raise ConfigError(
                f"--rows: {options.rows} has rows of other runs, and runs of --max-steps are no more than a look; "
                "name another file"
            )
    if not makeable(out):
        raise ConfigError(f"--out: expected a folder, there or to be made, got {out}")
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(out)
    except BlockingIOError:
        raise ConfigError(
            f"{out}: another process runs a study in this folder; wait for it, stop it, or name "
            "another --out"
        ) from None
    try:
        if not (out / "study.json").is_file():  # what does not fit leaves a new folder empty
            _check_first(chosen(first, **wanted))
        asked |= {name: getattr(options, name) for name in ("seeds", "autocast", "resume")}
        began = open_folder(out, study, **asked)
        study = in_precision(study, began.pop("autocast"))
        jobs = jobs_of(study, out, **began)
        finished_rows(jobs)  # a broken file is said now, not after hours
        _check_first(chosen(jobs, **wanted))
        return _run(study, jobs, chosen(jobs, **wanted), options, budget, argv)
    finally:
        lock.close()


def _run(
    study: Study,
    every: list[Job],
    jobs: list[Job],
    options: StudyOptions,
    budget: float | None,
    argv: list[str],
) -> int:
    """Run `jobs`, out of `every` one of the study; the rows and the report are of all."""
    out = _out(options)
    # Not above: torch takes seconds, and help and wrong calls need none of it.
    from colaworld.studies.page import write_study
    from colaworld.studies.rollouts import rollouts_of
    from colaworld.studies.schedule import Scheduler

    def say(text: str) -> None:
        print(text, flush=True)

    def keep(name: str, row: Row) -> None:
        write_rows(out / "rows.json", finished_rows(every))

    runs = sum(job.of is not None for job in jobs)
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''} each"
    gpus = several_gpus(options.device)
    threads += f", over {len(gpus)} GPUs" if gpus else ""
    say(f"study {study.name}: {runs} runs, {options.jobs} at once, {threads}; {out}")
    for data in study.data if study.budget == "flops" else ():
        told = ", ".join(f"{arm} {by:.3f}" for arm, by in scales(study, data).items())
        say(
            f"{data.name}: steps of each arm, to take as many FLOPs as {study.reference}, times {told}"
        )
    scheduler = Scheduler(
        jobs,
        jobs=options.jobs,
        threads=options.threads,
        device=options.device,
        gpus=gpus,
        budget=budget,
        say=say,
        done=keep,
    )
    outcome = scheduler.run()
    again = [a for a in argv if a != "--resume"]
    resume = shlex.join([*program(), "study", *again, "--resume"])
    rows = finished_rows(every)
    if rows:
        write_rows(out / "rows.json", rows)
        made = f"{len(rows)} of {sum(job.of is not None for job in every)} runs"
        page = out / "report.html"
        with writing(page):
            call = shlex.join([*program(), "study", *again])
            write_study(page, study, rows, made=made, again=call, rollouts=rollouts_of(every))
        say(f"rows: {out / 'rows.json'}\nreport: {page}")
        if (
            options.rows is not None
        ):  # last: a file that others changed meanwhile costs nothing else
            write_rows(options.rows, added_to(options.rows, rows, study))
    elif options.rows is not None:
        say(f"--rows: no run is done yet, so that {options.rows} is not written")
    for name, why in outcome.failed.items():
        say(f"FAILED {name}: {why}")
    if outcome.left:
        say(f"{len(outcome.left)} jobs are left. Go on with:\n  {resume}")
    elif outcome.failed:
        say(f"When that is mended, try again with:\n  {resume}")
    return 1 if outcome.failed else 0


def _all_of(rows: Sequence[Row], out: Path) -> bool:
    """Whether a study's folder has all of these rows, too."""
    own = out / "rows.json"
    known = read_rows(own) if own.is_file() else []
    return all(row in known for row in rows)


def _check_first(jobs: Sequence[Job]) -> None:
    """ConfigError where a recording or a generator that is there was made otherwise than the study asks."""
    for job in jobs:
        if job.of is None:
            job.check()


def several_gpus(device: str) -> list[str]:
    """The GPUs that processes may see, as CUDA_VISIBLE_DEVICES names them; none where there is one at most, or where
    `device` names one."""
    import torch

    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [name.strip() for name in named.split(",")][: torch.cuda.device_count()]
    return [str(i) for i in range(torch.cuda.device_count())]


def _out(options: StudyOptions) -> Path:
    return options.out or Path("runs") / f"study-{options.name}"


def seconds(text: str) -> float:
    """Of "90s", "90m", "3h", "1.5d". Raises ConfigError on anything else."""
    unit = _UNITS.get(text[-1:])
    try:
        value = float(text[:-1])
    except ValueError:
        value = 0.0
    if unit is None or not 0 < value < 1e6:
        raise ConfigError(f"--budget: expected a time such as 90m, 3h or 1d, got {text!r}")
    return value * unit


def status(jobs: list[Job]) -> str:
    """A table: each job, how it stands, and the main numbers of runs that are done."""
    from colaworld.evaluation.tables import columns  # torch comes with it

    table = [["job", "state", "steps", "minutes", "delta-PSNR, dB", "probe", "entropy"]]
    shown = ("delta_psnr.random", "probe.score", "codebook.entropy_normalised")
    for job in jobs:
        state = job.state()
        row = state.get("row")
        if row is None:
            word, steps = _stands(job)
            table.append([job.name, word, steps, *["-"] * 4])
            continue
        numbers = [row["numbers"].get(key) for key in shown]
        cells = ["-" if n is None else f"{n['mean']:.2f}" for n in numbers]
        table.append(
            [job.name, row["status"], str(row["steps"]), f"{row['seconds'] / 60:.1f}", *cells]
        )
    done = sum("row" in job.state() for job in jobs)
    return f"{columns(table)}\n{done} of {sum(j.of is not None for j in jobs)} runs are done"


def _stands(job: Job) -> tuple[str, str]:
    """A word on a job without a row, and the steps that it has made."""
    metrics = job.base / "metrics.jsonl"
    steps = "-"
    if metrics.is_file():
        with metrics.open("rb") as file:
            steps = str(sum(1 for _ in file))
    command = job.command(device="auto")
    if command is None:
        return "done" if job.of is None else "measured, no row yet", steps
    state = job.state()
    if failed := state.get("failed"):
        return f"FAILED: {failed[:60]}", steps
    if command[0] == "evaluate":
        return "trained", steps
    return ("waiting" if steps == "-" else "in training"), steps


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
