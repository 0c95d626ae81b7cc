"""Files of rows: those of other runs stay, those of other studies are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colaworld.files import FileError
from colaworld.studies.rows import added_to, write_rows
from colaworld.studies.study import Arm, DataSet, Study

STUDY = Study(
    "s",
    "Which?",
    arms=(Arm("base", "nano.cola"), Arm("ours", "nano.cola")),
    data=(DataSet("one", record=("scene",)), DataSet("two", record=("scene",))),
    reference="base",
)


def row(data: str, arm: str, seed: int, steps: int = 10) -> dict:
    return {
        **{"study": "s", "data": data, "arm": arm, "reference": "base", "seed": seed},
        **{"status": "finished", "why": "", "steps": steps, "numbers": {}},
    }


def test_rows_of_other_runs_stay_in_the_order_of_the_study(tmp_path) -> None:
    path = tmp_path / "rows.json"
    first = [row("two", "base", 0), row("one", "former", 0), row("one", "ours", 1)]
    assert added_to(path, first, STUDY) == [first[2], first[0], first[1]]  # there is no file yet
    write_rows(path, first)
    new = [row("one", "ours", 0), row("one", "ours", 1, steps=20), row("one", "base", 0)]
    every = added_to(path, new, STUDY)
    assert [(r["data"], r["arm"], r["seed"], r["steps"]) for r in every] == [
        ("one", "base", 0, 10),
        ("one", "ours", 0, 10),
        ("one", "ours", 1, 20),  # the new one
        ("two", "base", 0, 10),
        ("one", "former", 0, 10),  # no arm of the study any more
    ]
    other = added_to(path, [], replace(STUDY, reference="ours"))
    assert {r["reference"] for r in other} == {"ours"}


def test_a_file_of_another_study_is_refused(tmp_path) -> None:
    path = tmp_path / "rows.json"
    write_rows(path, [row("one", "base", 0)])
    with pytest.raises(FileError, match=r"rows.json: expected rows of the study 't', found .* 's'"):
        added_to(path, [], replace(STUDY, name="t"))
    path.write_text("[]")
    with pytest.raises(FileError, match="expected a list of rows of a study"):
        added_to(path, [], STUDY)
