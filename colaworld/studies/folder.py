"""The folder of a study: where each run lies, and what has to be done in which order.

    OUT/study.json                     the name, seeds, cap of steps, shared folder and precision that it began with
    OUT/DATA/data                      the recorded set; OUT/DATA/generator: a run of nano.pretrain. What runs need first
                                       (these, generator-data, labelled) may lie in a folder that studies share
    OUT/DATA/ARM/seed-N/               an ordinary run folder
    OUT/DATA/ARM/seed-N.yaml           the configuration that was asked for
    OUT/DATA/ARM/seed-N.log, .json     what its commands said; how it stands, and its row
    OUT/DATA/labelled, bounds          where a study adapts or plans: its set, what plans are held against
    OUT/DATA/elsewhere-NAME            sets that no run is trained on
    OUT/DATA/ARM/seed-N-elsewhere-NAME/, seed-N-labels-L/, seed-N-plan-SPACE/    evaluations there, the adapted runs,
                                       and the plans
    OUT/rows.json, report.html         of all runs that are done

Not here: what is left to do of one of them (job.py), starting processes (schedule.py), what is in a row (rows.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colaworld.config import ConfigError, to_yaml
from colaworld.files import FileError, read_json, write_json
from colaworld.studies.after import bounds_call
from colaworld.studies.flops import scales
from colaworld.studies.job import Job
from colaworld.studies.rows import Row, writing
from colaworld.studies.study import ELSEWHERE, DataSet, Study, changed, config_of
from colaworld.training.same_run import config_sha256


def jobs_of(
    study: Study,
    out: Path,
    *,
    seeds: int,
    max_steps: int | None = None,
    share: Path | None = None,
) -> list[Job]:
    """Everything that has to be done, in the order in which it should: seed by seed, so that a study
    that is cut short has all arms.

    share: where recordings and generators are, or shall be, for other studies too; None: in `out`.
    Raises ConfigError on arms that do not fit, before anything is run.
    """
    out = out.resolve()
    study.check_budget()
    if study.adapt is not None and max_steps is not None:
        how = study.adapt
        caps = {name: min(getattr(how, name), max_steps) for name in ("adapter_steps", "steps")}
        study = replace(study, adapt=replace(how, **caps))
    first: list[Job] = []
    runs: list[Job] = []
    for data in study.data:
        home = (share or out).resolve() / data.name
        path, needs, jobs = _before(data, home, max_steps)
        by = scales(study, data)
        labelled = path
        planned = data.plan if study.plan else None
        if (study.adapt or planned) and data.labelled:
            labelled = home / "labelled"
            jobs.append(_recorded(labelled, f"{data.name}/labelled", data.labelled))
            needs = (*needs, f"{data.name}/labelled")
        others = {} if not study.elsewhere else data.elsewhere
        sets = {name: home / f"{ELSEWHERE}{name}" for name in others}
        for other, arguments in others.items():
            told = f"{data.name}/{ELSEWHERE}{other}"
            jobs.append(_recorded(sets[other], told, arguments))
            needs = (*needs, told)
        jobs = [replace(job, shared=share is not None) for job in jobs]
        first += jobs
        made = {job.base.name: _made(job) for job in jobs}
        bounds = None
        if planned is not None:
            call, folder = bounds_call(planned, labelled), out / data.name / "bounds"
            first.append(Job(folder, f"{data.name}/bounds", None, call, "plan.json", needs))
            needs, bounds = (*needs, f"{data.name}/bounds"), folder / "plan.json"
        for seed in range(seeds):
            for arm in study.arms:
                config = config_of(
                    study, data, arm, seed=seed, max_steps=max_steps, scale=by[arm.name]
                )
                config = replace(config, data=replace(config.data, path=path))
                # An arm that says where its generator comes from keeps it: random weights, say.
                if data.pretrain and "backbone_weights" not in arm.changes:
                    config = replace(config, backbone_weights=str(home / "generator"))
                base = out / data.name / arm.name / f"seed-{seed}"
                name = f"{data.name}/{arm.name}/seed-{seed}"
                runs.append(
                    Job(
                        base,
                        name,
                        config,
                        needs=needs,
                        of=(study, data, arm, seed),
                        labelled=labelled,
                        bounds=bounds,
                        elsewhere=sets,
                        made=made,
                    )
                )
    runs.sort(key=lambda job: job.of[3] if job.of else 0)
    return [*first, *runs]


def chosen(jobs: Sequence[Job], *, arms: Sequence[str], data: Sequence[str]) -> list[Job]:
    """Runs of some arms and data sets, with what they need first; all where none is named.

    Raises ConfigError on an unknown name.
    """
    known = [job.of for job in jobs if job.of]
    for what, asked, names in (
        ("--arms", arms, list(dict.fromkeys(of[2].name for of in known))),
        ("--data", data, list(dict.fromkeys(of[1].name for of in known))),
    ):
        if wrong := [name for name in asked if name not in names]:
            raise ConfigError(f"{what}: expected some of {', '.join(names)}, got {wrong[0]!r}")
    runs = [
        job
        for job in jobs
        if job.of and (not arms or job.of[2].name in arms) and (not data or job.of[1].name in data)
    ]
    needed = {name for job in runs for name in job.needs}
    return [job for job in jobs if job in runs or job.name in needed]


def _before(
    data: DataSet, home: Path, max_steps: int | None
) -> tuple[Path, tuple[str, ...], list[Job]]:
    """Where a data set is, what its runs need first, and those jobs."""
    jobs: list[Job] = []
    path = home / "data"
    if data.path is not None:
        path = data.path.resolve()
    else:
        jobs.append(_recorded(path, f"{data.name}/data", data.record))
    if data.pretrain:
        videos, told = home / "generator-data", f"{data.name}/generator-data"
        jobs.append(_recorded(videos, told, data.pretrain))
        config = changed("nano.pretrain", data.pretrain_changes, max_steps=max_steps)
        config = replace(config, data=replace(config.data, path=videos))
        jobs.append(Job(home / "generator", f"{data.name}/generator", config, needs=(told,)))
    return path, tuple(job.name for job in jobs), jobs


def _recorded(path: Path, name: str, arguments: tuple[str, ...]) -> Job:
    return Job(path, name, None, ("record", *arguments), "meta/info.json")


def _made(job: Job) -> str:
    """How it is made, in a line that says the same wherever it lies."""
    if job.config is None:
        return shlex.join(job.call)
    anywhere = replace(job.config, data=replace(job.config.data, path=None))
    config, cap = job.config, job.config.training.max_steps
    steps = sum(phase.capped(cap).steps for phase in config.scheduled())  # no part of the hash
    return f"{config.recipe} {config_sha256(to_yaml(anywhere))[:16]}, {steps} steps"


def open_folder(
    out: Path,
    study: Study,
    *,
    seeds: int | None,
    max_steps: int | None,
    resume: bool,
    share: Path | None = None,
    autocast: str | None = None,
) -> dict[str, Any]:
    """Begin a study's folder, or go on with it. Returns {seeds, max_steps, share, autocast}: the number of seeds, those
    asked for, or those it has, or 3; the folder that it shares and the precision, those of before where none is named.
    ConfigError where it holds another study."""
    share = share and share.resolve()
    path = out / "study.json"
    if path.is_file():
        if not resume:
            raise ConfigError(
                f"{out}: holds a study already; add --resume to go on with it, or name another --out"
            )
        there = begun(out, study)
        if there["max_steps"] != max_steps:
            raise ConfigError(
                f"{out}: holds a study with max_steps {there['max_steps']}, asked for {max_steps}; name "
                "another --out"
            )
        if seeds is not None and seeds < there["seeds"]:
            raise ConfigError(
                f"--seeds: the study in {out} has {there['seeds']}, which may only grow, got {seeds}; leave "
                "it out to go on with those"
            )
        seeds = there["seeds"] if seeds is None else seeds
        if share is not None and share != there["share"]:
            where = f"shares {there['share']}" if there["share"] else "has data of its own"
            raise ConfigError(f"--share: the study in {out} {where}, got {share}; leave it out")
        share = there["share"]
        if autocast is not None and autocast != there["autocast"]:
            how = there["autocast"] or "the precision of its recipes"
            raise ConfigError(
                f"--autocast: the study in {out} began with {how}, got {autocast}; leave it out, or name "
                "another --out"
            )
        autocast = there["autocast"]
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty and holds no study; name another --out")
    seeds = 3 if seeds is None else seeds
    with writing(path):
        told: dict[str, Any] = {"study": study.name, "max_steps": max_steps, "seeds": seeds}
        told |= {} if share is None else {"share": str(share)}
        write_json(path, told if autocast is None else {**told, "autocast": autocast})
    return {"seeds": seeds, "max_steps": max_steps, "share": share, "autocast": autocast}


def begun(out: Path, study: Study) -> dict[str, Any]:
    """What the study in a folder began with: {study, max_steps, seeds, share, autocast}.

    Raises FileError where study.json does not say that, ConfigError where it is of another study.
    """
    path = out / "study.json"
    there = read_json(path)
    counts = [there.get(key) for key in ("seeds", "max_steps")] if isinstance(there, dict) else []
    whole = [type(n) is int and n > 0 for n in counts]
    capped = bool(counts) and (whole[1] or ("max_steps" in there and counts[1] is None))
    fits = capped and isinstance(there.get("share", ""), str)
    if not fits or not whole[0] or there.get("autocast", "none") not in ("none", "bf16"):
        raise FileError(
            f"{path}: expected study, seeds, max_steps and perhaps share and autocast, as colaworld study writes "
            f"them, got {there!r:.80}"
        )
    if there.get("study") != study.name:
        raise ConfigError(
            f"{out}: holds a study with study {there.get('study')!r}, asked for {study.name!r}; name "
            "another --out"
        )
    share = Path(there["share"]) if "share" in there else None
    known = {key: there[key] for key in ("study", "max_steps", "seeds")}
    return {**known, "share": share, "autocast": there.get("autocast")}


def finished_rows(jobs: Sequence[Job]) -> list[Row]:
    """The rows that are there, data set by data set and arm by arm."""
    rows = [row for job in jobs if (row := job.row) is not None]
    order = {name: i for i, name in enumerate(_names(jobs))}
    return sorted(rows, key=lambda row: (order[(row["data"], row["arm"])], row["seed"]))


def _names(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((job.of[1].name, job.of[2].name) for job in jobs if job.of))
