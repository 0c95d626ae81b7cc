"""The folder of a study: what is there is used again where it is what is asked for, and refused where not."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from colaworld.config import ConfigError
from colaworld.files import FileError
from colaworld.studies import Arm, DataSet, Study
from colaworld.studies.folder import begun, finished_rows, jobs_of, open_folder
from colaworld.studies.rows import FIELDS, write_rows
from colaworld.studies.study import in_precision


def study(**more) -> Study:
    return Study(
        **{
            "name": "s",
            "question": "?",
            "arms": (Arm("a", "nano.cola"),),
            "data": (DataSet("d", path=Path("d")),),
            "reference": "a",
            **more,
        }
    )


def test_a_run_from_before_an_option_goes_on(tmp_path) -> None:
    """Its configuration lacks the key, which says what it always did."""
    (job,) = jobs_of(study(), tmp_path, seeds=1)
    job.prepare()
    asked = job.base.with_name("seed-0.yaml")
    text = asked.read_text()
    asked.write_text(text.replace("    nested_dropout: 0.0\n", ""))
    assert asked.read_text() != text
    job.prepare()
    assert asked.read_text() == text  # a recipe may have another value than an absent key means
    # What is only looked at changes no result.
    asked.write_text(text.replace("control_clips: 32\n  probe_clips: 256", "control_clips: 32"))
    assert asked.read_text() != text
    job.prepare()
    asked.write_text(text.replace("nested_dropout: 0.0", "nested_dropout: 0.5"))
    with pytest.raises(ConfigError, match=r"now \(model\.conditioner\.nested_dropout\)"):
        job.prepare()


# -- what was asked has changed ------------------------------------------------------------------


def recorded(*arguments: str, **more) -> Study:
    return study(data=(DataSet("d", record=("scene", *arguments), **more),))


def test_another_recording_than_the_one_that_is_there_is_refused(tmp_path) -> None:
    before = jobs_of(recorded("--seed", "1"), tmp_path, seeds=1)[0]
    before.prepare()
    now = jobs_of(recorded("--seed", "2"), tmp_path, seeds=1)[0]
    now.prepare()  # nothing is there yet
    before.prepare()
    before.base.mkdir()
    before.prepare()
    with pytest.raises(ConfigError, match=r"d/data: made by 'record scene --seed 1', .* --seed 2'"):
        now.prepare()


def test_a_row_has_the_reference_and_the_names_of_now(tmp_path) -> None:
    """Another arm may be the reference, and an arm's folder may be called otherwise."""
    arms = (Arm("a", "nano.cola"), Arm("b", "nano.cola"))
    first = study(arms=arms, measures=("nmse",))
    job = jobs_of(first, tmp_path, seeds=1)[0]
    row = {name: None for name in FIELDS} | {
        "data": "d",
        "arm": "a",
        "seed": 0,
        "numbers": {"nmse": None},
    }
    job.note(row={**row, "reference": "a"})
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "c")
    arms = (Arm("b", "nano.cola"), Arm("c", "nano.cola"))
    again = jobs_of(replace(first, arms=arms, reference="b"), tmp_path, seeds=1)
    assert again[1].finish()["reference"] == "b"
    (row,) = finished_rows(again)
    assert (row["arm"], row["reference"]) == ("c", "b")


@pytest.mark.parametrize("key", ["training.seed", "data.path"])
@pytest.mark.parametrize("where", ["study", "data", "arm"])
def test_what_a_study_sets_itself_is_refused_as_a_change(key, where) -> None:
    changes = {key: 1}
    parts = {
        "study": lambda: study(changes=changes),
        "data": lambda: study(data=(DataSet("d", path=Path("d"), changes=changes),)),
        "arm": lambda: study(arms=(Arm("a", "nano.cola", changes),)),
    }
    with pytest.raises(ConfigError, match=rf"study 's': .*{key}: the study sets it"):
        parts[where]()


@pytest.mark.parametrize(
    "name",
    ["data", "generator", "generator-data", "labelled", "bounds", "data.json", "elsewhere-a"],
)
def test_names_of_other_files_are_refused(name) -> None:
    with pytest.raises(
        ConfigError, match=rf"arm.name: {name!r} is the name of what a study puts there"
    ):
        Arm(name, "nano.cola")
    for taken in ("rows.json", "study.json", "report.html"):
        with pytest.raises(ConfigError, match="is the name of what a study puts there"):
            DataSet(taken, path=Path("."))


# -- what studies share ---------------------------------------------------------------------------


def pretrained(name: str = "s", *arguments: str) -> Study:
    data = DataSet(
        "d",
        record=("scene", "--seed", "1"),
        pretrain=("scene", *arguments),
        pretrain_changes={"phases.pretrain.steps": 2000},
    )
    return study(name=name, data=(data,))


def made(of: Study, out: Path, share: Path) -> dict:
    """Jobs by name, those of data and generator as if they had been done."""
    jobs = {job.name: job for job in jobs_of(of, out, seeds=1, share=share)}
    for job in jobs.values():
        if job.of is None:
            job.prepare()
            job.base.mkdir()
    return jobs


def test_a_second_study_takes_data_and_generator_from_where_the_first_made_them(tmp_path) -> None:
    share = tmp_path / "first"
    jobs = made(pretrained("one"), share, share)  # the folder of a study, or one for all
    again = {
        job.name: job for job in jobs_of(pretrained("two"), tmp_path / "b", seeds=1, share=share)
    }
    for name in ("d/data", "d/generator-data", "d/generator"):
        again[name].check()
        assert again[name].base == jobs[name].base == share / name
    run = again["d/a/seed-0"]
    assert run.base == tmp_path / "b/d/a/seed-0"
    assert run.config.data.path == share / "d/data"
    assert run.config.backbone_weights == str(share / "d/generator")
    # Rows say how it was made, the same wherever it lies.
    alone = {job.name: job for job in jobs_of(pretrained(), tmp_path / "c", seeds=1)}
    assert run.made == alone["d/a/seed-0"].made
    assert run.made["data"] == "record scene --seed 1"
    assert run.made["generator"].startswith("nano.pretrain ")
    assert run.made["generator"].endswith(", 2000 steps")
    other = jobs_of(pretrained("s", "--seed", "3"), tmp_path / "c", seeds=1)[-1]
    assert other.made["generator-data"] == "record scene --seed 3"


def test_what_was_made_otherwise_or_nobody_knows_how_is_refused(tmp_path) -> None:
    share = tmp_path / "share"
    made(pretrained(), tmp_path / "a", share)

    def of(one: Study, name: str) -> None:
        jobs = {job.name: job for job in jobs_of(one, tmp_path / "b", seeds=1, share=share)}
        jobs[name].check()

    with pytest.raises(
        ConfigError, match=r"made by 'record scene', .* --seed 2' now; name another --share"
    ):
        of(pretrained("s", "--seed", "2"), "d/generator-data")
    longer = replace(pretrained().data[0], pretrain_changes={"phases.pretrain.steps": 3000})
    with pytest.raises(
        ConfigError, match=r"generator\.yaml: .*\(phases\.pretrain.*another --share"
    ):
        of(study(data=(longer,)), "d/generator")
    (share / "d/generator.yaml").unlink()
    with pytest.raises(
        ConfigError, match=r"generator: it is not known how it was trained .* another --share"
    ):
        of(pretrained(), "d/generator")
    (share / "d/data.json").unlink()
    with pytest.raises(
        ConfigError, match=r"data: it is not known how it was made, .* 'record scene --seed 1'"
    ):
        of(pretrained(), "d/data")


def test_the_folder_that_is_shared_is_remembered(tmp_path) -> None:
    share, other = tmp_path / "share", tmp_path / "other"
    call = {"seeds": 2, "max_steps": None}
    out = tmp_path / "out"
    began = open_folder(out, study(), resume=False, share=share, **call)
    assert began == {**call, "share": share, "autocast": None}
    assert begun(out, study())["share"] == share
    assert open_folder(out, study(), resume=True, **call) == began
    with pytest.raises(
        ConfigError, match=r"--share: the study in .* shares .*share, got .*other; leave"
    ):
        open_folder(out, study(), resume=True, share=other, **call)
    open_folder(tmp_path / "own", study(), resume=False, **call)
    with pytest.raises(ConfigError, match=r"--share: the study in .* has data of its own, got"):
        open_folder(tmp_path / "own", study(), resume=True, share=other, **call)


def test_the_precision_is_remembered_and_reaches_every_run_but_no_generator(tmp_path) -> None:
    call = {"seeds": 1, "max_steps": None}
    out = tmp_path / "out"
    began = open_folder(out, study(), resume=False, autocast="bf16", **call)
    assert began["autocast"] == "bf16" == begun(out, study())["autocast"]
    assert open_folder(out, study(), resume=True, **call) == began
    with pytest.raises(ConfigError, match=r"--autocast: .* began with bf16, got none; leave it"):
        open_folder(out, study(), resume=True, autocast="none", **call)
    open_folder(tmp_path / "own", study(), resume=False, **call)
    with pytest.raises(ConfigError, match=r"--autocast: .* the precision of its recipes, got bf16"):
        open_folder(tmp_path / "own", study(), resume=True, autocast="bf16", **call)
    half = in_precision(pretrained(), "bf16")
    jobs = {job.name: job for job in jobs_of(half, out, seeds=1)}
    run = jobs["d/a/seed-0"]
    assert run.config.training.autocast == "bf16"
    assert run.of[0].changes["training.autocast"] == "bf16"  # and so in its row
    assert jobs["d/generator"].config.training.autocast == "auto"
    assert in_precision(pretrained(), None) == pretrained()
    own = study(arms=(Arm("a", "nano.cola", {"training.autocast": "none"}),))
    with pytest.raises(
        ConfigError, match=r"--autocast: the study 's' sets training.autocast .*'a'"
    ):
        in_precision(own, "bf16")


# -- files that are broken -----------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"row": ', "[]", '{"row": {}}', '{"row": 3}', '{"stopped": 1}'])
def test_a_broken_state_is_named_with_what_to_do(text, tmp_path) -> None:
    (job,) = jobs_of(study(), tmp_path, seeds=1)
    path = job.base.with_name("seed-0.json")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(FileError, match=r"seed-0\.json: .*delete it"):
        job.state()


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[1]", '{"study": "s", "max_steps": null, "seeds": "3"}', '{"study": "s"}', "{"),
        '{"study": "s", "max_steps": null, "seeds": 3, "share": 4}',
        '{"study": "s", "max_steps": null, "seeds": 3, "autocast": "fp8"}',
    ],
)
def test_a_broken_study_file_is_named(text, tmp_path) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(FileError, match=r"study\.json: "):
        open_folder(tmp_path, study(), seeds=None, max_steps=None, resume=True)
    with pytest.raises(FileError, match=r"study\.json: "):
        begun(tmp_path, study())


def test_a_folder_is_of_one_study_and_its_seeds_may_only_grow(tmp_path) -> None:
    assert open_folder(tmp_path, study(), seeds=2, max_steps=None, resume=False)["seeds"] == 2
    there = {"study": "s", "max_steps": None, "seeds": 2, "share": None, "autocast": None}
    assert begun(tmp_path, study()) == there
    with pytest.raises(ConfigError, match=r"holds a study with study 's', asked for 'other'"):
        begun(tmp_path, study(name="other"))
    with pytest.raises(ConfigError, match=r"--seeds: .* has 2, which may only grow, got 1"):
        open_folder(tmp_path, study(), seeds=1, max_steps=None, resume=True)
    assert open_folder(tmp_path, study(), seeds=3, max_steps=None, resume=True)["seeds"] == 3


def test_a_full_disk_is_said_with_the_file(tmp_path, monkeypatch) -> None:
    (job,) = jobs_of(study(), tmp_path, seeds=1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"seed-0\.json: cannot be written: .*make room"):
        job.note(failed="why")
    with pytest.raises(FileError, match=r"seed-0\.yaml: cannot be written: .*make room"):
        job.prepare()
    with pytest.raises(FileError, match=r"rows\.json: cannot be written: .*make room"):
        write_rows(tmp_path / "rows.json", [])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_generator_that_was_stopped_is_no_generator(tmp_path) -> None:
    """A run that its guard stops is a result; what other runs start from is not."""
    of = study(data=(DataSet("d", record=("scene",), pretrain=("scene",)),))
    jobs = {job.name: job for job in jobs_of(of, tmp_path, seeds=1)}
    for name, ended in (("d/generator", "train"), ("d/a/seed-0", "evaluate")):
        job = jobs[name]
        job.ended("train", 1, f"stopped: diverged; the run is saved in {job.base}")
        assert job.command(device="cpu")[0] == ended
    # A row tells no folder of the machine.
    assert jobs["d/a/seed-0"].state()["stopped"] == "diverged; the run is saved in d/a/seed-0"
