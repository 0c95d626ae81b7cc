"""The folder of a study: where each run lies, what is known of it, and the commands that are left to do.

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

Not here: starting processes (schedule.py), what is in a row (rows.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colaworld.config import ConfigError, leaves, load_yaml, to_dict, to_yaml
from colaworld.files import FileError, read_json, write_atomically, write_json
from colaworld.runs.config import RunConfig
from colaworld.studies.after import Following, adaptations, bounds_call, elsewhere, plans
from colaworld.studies.flops import scales
from colaworld.studies.rows import Row, missing_in, row_of, writing
from colaworld.studies.study import ELSEWHERE, Arm, DataSet, Study, changed, config_of
from colaworld.training.same_run import config_sha256

STOPPED = re.compile(r"^stopped: (.*)$", re.MULTILINE)  # as the trainer says it


@dataclass(frozen=True)
class Job:
    """Commands that are done one after another: those of a run, or what runs of a data set need first."""

    base: Path
    """Files beside its folder begin with this: base.yaml, base.log, base.json."""
    name: str
    """For people: "crafter/cola/seed-0"."""
    config: RunConfig | None = None
    """What is trained."""
    call: tuple[str, ...] = ()
    """Where nothing is trained: the command, without --out."""
    makes: str = ""
    """The file in its folder that says that this is done."""
    needs: tuple[str, ...] = ()
    """Names of jobs that come first."""
    of: tuple[Study, DataSet, Arm, int] | None = None
    """Of a run: its study, data set, arm and seed."""
    labelled: Path | None = None
    """Of a run: the set with actions that it is adapted on and plans with."""
    bounds: Path | None = None
    """Of a run that plans: the plan.json of what its plans are held against."""
    elsewhere: dict[str, Path] = field(default_factory=dict)
    """Of a run: sets that it is also measured on, by name."""
    made: dict[str, str] = field(default_factory=dict)
    """Of a run: how what it needs first is made, by name: the command, or the hash of what the generator is trained by."""
    shared: bool = False
    """Whether other studies may have made it: then it has to be known how."""

    def command(self, *, device: str) -> list[str] | None:
        """The next command, as arguments of colaworld; None where all is done."""
        if self.config is None:
            there = (self.base / self.makes).is_file()
            return None if there else [*self.call, "--out", str(self.base)]
        state = self.state()
        trained = (self.base / "weights" / "model.safetensors").is_file()
        if not trained and "stopped" not in state:
            resume = ["--resume"] if (self.base / "config.yaml").is_file() else []
            call = ["train", self.config.recipe, "--config", str(self._asked)]
            call += ["--out", str(self.base)]
            return [*call, "--device", device, *resume]
        if self.of is not None and not (self.base / "evaluation.json").is_file():
            return ["evaluate", str(self.base), "--device", device]
        left = (one.command(device=device) for one in self.after)
        return next((command for command in left if command is not None), None)

    @property
    def after(self) -> list[Following]:
        """What follows the run: evaluations elsewhere, adaptations, plans; nothing where it was stopped."""
        if self.of is None or self.labelled is None or "stopped" in self.state():
            return []
        study, data, _, seed = self.of
        found = elsewhere(self.elsewhere, self.base)
        if study.adapt is not None:
            found += adaptations(study.adapt, self.base, self.labelled, seed=seed)
        if study.plan and data.plan is not None:
            found += plans(data.plan, self.base, self.labelled, adapted=study.adapt)
        return found

    # -- files beside the run ----------------------------------------------------------------

    @property
    def log(self) -> Path:
        """What its commands said."""
        return self.base.with_name(self.base.name + ".log")

    def state(self) -> dict[str, Any]:
        """ "stopped": why training ended with no weights; "row"; "failed": what went wrong last; "calls": how what
        is there was made.

        Raises FileError where the file does not say so.
        """
        if not self._state.is_file():
            return {}
        wrong, state = "", {}
        try:
            state = read_json(self._state)
        except FileError as error:
            wrong = str(error)
        kinds = {"stopped": str, "failed": str, "calls": dict, "row": dict}
        if not wrong and not (
            isinstance(state, dict)
            and all(isinstance(state.get(name, kind()), kind) for name, kind in kinds.items())
            and not ("row" in state and missing_in(state["row"]))
        ):
            wrong = f"{self._state}: expected how a run of a study stands"
        if wrong:
            raise FileError(f"{wrong}; delete it: --resume makes it again from the run")
        return dict(state)

    @property
    def row(self) -> Row | None:
        """What is known of a run that is done, with the reference and the names of now."""
        row = self.state().get("row")
        if row is None or self.of is None:
            return None
        study, data, arm, _ = self.of
        return {**row, "data": data.name, "arm": arm.name, "reference": study.reference}

    def note(self, **known: Any) -> None:
        """Keep what is known; None forgets."""
        state = {**self.state(), **known}
        with writing(self._state):
            write_json(self._state, {key: v for key, v in state.items() if v is not None})

    @property
    def _state(self) -> Path:
        return self.base.with_name(self.base.name + ".json")

    def check(self) -> None:
        """ConfigError where what is there was made by another configuration or another call."""
        known, option = self.state().get("calls", {}), "--share" if self.shared else "--out"
        for key, (folder, call) in self._calls().items():
            if not folder.exists():
                continue
            if self.shared and key not in known:
                raise ConfigError(
                    f"{folder}: it is not known how it was made, the study asks for {shlex.join(call)!r}; "
                    "name another --share"
                )
            if known.get(key, call) != call:
                raise ConfigError(
                    f"{folder}: made by {shlex.join(known[key])!r}, the study asks for {shlex.join(call)!r} "
                    f"now; name another {option}, or delete it"
                )
        asked = self._asked
        if self.config is not None and self.shared and self.base.exists() and not asked.is_file():
            raise ConfigError(
                f"{self.base}: it is not known how it was trained (no {asked.name} beside it); name another "
                "--share"
            )
        if self.config is not None and asked.is_file() and (keys := _differing(asked, self.config)):
            raise ConfigError(
                f"{asked}: holds another configuration than the study asks for now ({keys}); name "
                f"another {option}, or delete {self.base} and {asked}"
            )

    def prepare(self) -> None:
        """Write what is asked for. ConfigError as `check`."""
        self.check()
        known = self.state().get("calls", {})
        calls = {**known, **{key: call for key, (_, call) in self._calls().items()}}
        if calls != known:
            self.note(calls=calls)
        if self.config is not None and not self._asked.is_file():
            with writing(self._asked):
                write_atomically(self._asked, to_yaml(self.config))

    def _calls(self) -> dict[str, tuple[Path, list[str]]]:
        """Commands besides training and evaluation, by what they are noted as, and the folder that each makes."""
        if self.config is None:
            return {self.name: (self.base, [*self.call])}
        return {one.key: (one.out, [*one.call]) for one in self.after}

    @property
    def _asked(self) -> Path:
        return self.base.with_name(self.base.name + ".yaml")

    # -- how it ended ------------------------------------------------------------------------

    def ended(self, verb: str, status: int, said: str) -> None:
        """Take note of how a command ended: a run that its gate, alarm or guard stopped is a result. A generator that
        is stopped is none that others could start from.

        said: what the command wrote, of this time alone.
        """
        found = STOPPED.findall(said)
        if verb == "train" and status == 1 and found and self.of is not None:
            # Rows and pages are read elsewhere: the run's name in place of its folder.
            self.note(stopped=found[-1].replace(str(self.base), self.name), failed=None)

    def finish(self) -> Row | None:
        """The row of a run whose commands are done; made once."""
        if self.of is None:
            return None
        state = self.state()
        study, data, arm, seed = self.of
        after = self.after
        known = {*state["row"]["numbers"], *state["row"].get("after", {})} if "row" in state else {}
        if {*study.measures, *(one.key for one in after)} - set(
            known
        ):  # or the study asks for more
            why = state.get("stopped", "")
            status = "finished" if not why else "collapsed" if "collapsed" in why else "diverged"
            row = row_of(
                *(study, data, arm, seed, self.base),
                status=status,
                why=why,
                after=after,
                bounds=self.bounds,
                made=self.made,
            )
            self.note(row=row, failed=None)
            return row
        return self.row


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
    return f"{job.config.recipe} {config_sha256(to_yaml(anywhere))[:16]}"


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


def _differing(path: Path, config: RunConfig) -> str:
    """Flat keys in which a saved configuration is another one; "" where it says the same."""
    try:
        was = dict(leaves(to_dict(load_yaml(path, RunConfig))))
    except ConfigError as error:
        return str(error)
    now = dict(leaves(to_dict(config)))
    for values in (was, now):  # it changes no result, and earlier runs have none
        values.pop("training.probe_clips", None)
    return ", ".join(sorted(k for k in was | now if was.get(k) != now.get(k)))
