"""Strips of the same clips, arm by arm, from pictures made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from colaworld.evaluation.artefacts import Artefacts
from colaworld.studies.folder import jobs_of
from colaworld.studies.job import Job
from colaworld.studies.page import write_study
from colaworld.studies.rollouts import rollouts_of
from colaworld.studies.study import Arm, DataSet, Study

STUDY = Study(
    "s",
    "Which?",
    arms=tuple(Arm(name, "nano.cola") for name in ("a", "b", "elsewhere", "none")),
    data=(DataSet("d", record=("scene",)),),
    reference="a",
)


def pictures(seed: int, error: int) -> Artefacts:
    truth = np.random.default_rng(seed).integers(0, 200, size=(3, 4, 6, 8, 3), dtype=np.uint8)
    return Artefacts(
        **{"history": 1, "truth": truth, "inferred": truth + np.uint8(error), "random": truth},
        **{"every_code": truth[None], "code_names": ("0",), "code_notes": ("",)},
        **{"probe_kind": "", "probe_predicted": np.zeros(1), "probe_target": np.zeros(1)},
        action_names=(),
    )


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Of a: seed 0 is broken. Of b: seed 0. Of elsewhere: other clips. Of none: nothing."""
    found = jobs_of(STUDY, tmp_path, seeds=2)
    made = {"a/seed-0": None, "a/seed-1": (0, 51), "b/seed-0": (0, 0), "elsewhere/seed-0": (1, 0)}
    for name, of in made.items():
        folder = tmp_path / "d" / name
        folder.mkdir(parents=True)
        if of is None:
            (folder / "evaluation.npz").write_bytes(b"PK half a file")
        else:
            pictures(*of).save(folder / "evaluation.npz")
    return found


def test_arms_stand_below_the_same_recorded_clips(jobs) -> None:
    of = rollouts_of(jobs)["d"]
    told = [(row["words"], row["score"], row["gap"]) for row in of["rows"]]
    # 51 of 255 everywhere is 14.0 dB; no error is told as 60.
    shown = [("a, seed 1", "14.0 dB", False), ("b, seed 0", "60.0 dB", False)]
    assert told == [("recorded", "", False), *shown, ("recorded", "", True), *shown]
    assert of["frames"] == [0, 1, 2, 3] and of["history"] == 1
    assert all(len(row["tiles"]) == 4 for row in of["rows"])


def test_the_page_shows_them_and_does_without(jobs, tmp_path) -> None:
    row = {"study": "s", "data": "d", "arm": "a", "reference": "a", "seed": 1}
    row |= {"status": "finished", "why": "", "steps": 1, "numbers": {}, "recipe": "nano.cola"}
    row |= {"clips_trained": 1, "seconds": 1.0, "flops": 1.0, "collapsed_at": None, "beside": {}}
    row |= {"clips": {}, "entropy": [], "control": []}
    call = {"made": "1 of 8 runs", "again": "colaworld study s"}
    with_films = write_study(
        tmp_path / "1.html", STUDY, [row], rollouts=rollouts_of(jobs), **call
    ).read_text()
    without = write_study(tmp_path / "2.html", STUDY, [row], **call).read_text()
    assert "The same clips, rolled out" in with_films and "<small>14.0 dB</small>" in with_films
    assert with_films.count("<img") == 2 * 3 * 4
    assert "The same clips" not in without and "<img" not in without
