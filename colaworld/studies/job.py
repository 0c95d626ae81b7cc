"""One thing that a study has to do: a run, or what runs need first. Its files, and the command that is left of it.

Not here: which jobs a study has (folder.py), starting processes (schedule.py), what is in a row (rows.py).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colaworld.config import ConfigError, leaves, load_yaml, to_dict, to_yaml
from colaworld.files import FileError, read_json, write_atomically, write_json
from colaworld.runs.config import RunConfig
from colaworld.studies.after import Following, adaptations, elsewhere, plans
from colaworld.studies.rows import Row, missing_in, row_of, writing
from colaworld.studies.study import Arm, DataSet, Study

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
        now = {"data": data.name, "arm": arm.name, "reference": study.reference}
        # How its data were made, in the words of now; `check` compares what it was.
        return {**row, **now, "made": dict(self.made)}

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
        if self.config is None:
            return
        asked, path = to_yaml(self.config), self._asked
        # Anew where an older one says the same in fewer keys: `train` would take those from the recipe.
        if not path.is_file() or path.read_text() != asked:
            with writing(path):
                write_atomically(path, asked)

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
