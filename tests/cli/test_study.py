"""colaworld study: whole at two steps a phase, killed and resumed; what it refuses; how runs stand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colaworld.cli.study import several_gpus
from colaworld.studies import STUDIES

ROOT = Path(__file__).resolve().parents[2]
# Two arms as small as the rest of these tests, registered from outside as a user's own study is.
STUDY = """
from pathlib import Path
from colaworld.studies import Arm, DataSet, Study, register_study

SMALL = {{
    "backbone_weights": None,
    **{{f"model.{{part}}.{{name}}": value
       for part in ("backbone", "idm", "fdm")
       for name, value in (("depth", 1), ("width", 32), ("heads", 1))}},
    "model.idm.tokens": 1, "model.conditioner.depth": 1, "model.conditioner.heads": 1,
    "model.quantizer.unquantized_steps": 0, "data.holdout": 0.1,
    "training.batch_size": 2, "training.health_every": 1, "training.health_window": 8,
    "training.tensorboard": False, "training.checkpoint_every": 1, "objective.start_clips": 8,
    "evaluation.clips": 4, "evaluation.probe_clips": 8, "evaluation.horizon": 2,
    "evaluation.bootstrap_samples": 20, "evaluation.shown_clips": 2, "evaluation.shown_starts": 1,
    "evaluation.shown_codes": 2, "sampler.steps": 1,
}}
register_study(Study(
    "tiny", "Does it run?",
    arms=(Arm("cola", "nano.cola", {{"phases.warmup.steps": 850, "phases.joint.steps": 850}}),
          Arm("naive", "nano.naive_joint"), *{more}),
    data=(DataSet("scene", path=Path({scene!r}), elsewhere=dict(colour=(
        "scene", "--episodes", "10", "--steps", "12", "--size", "32", "--vary", "colour"))),),
    reference="cola", changes=SMALL, budget={budget!r}, elsewhere={elsewhere},
))
"""


@pytest.fixture
def study(tmp_path, scene, from_outside):
    """Registers the study here and in processes that are started; returns its folder to be."""

    def register(more: str = "()", budget: str = "own", *, elsewhere: bool = False) -> Path:
        assert "tiny" not in STUDIES
        file = tmp_path / "plugin_tiny.py"
        told = {"scene": str(scene), "more": more, "budget": budget, "elsewhere": elsewhere}
        file.write_text(STUDY.format(**told))
        from_outside(file)
        return tmp_path / "out"

    return register


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "rows.json").read_text())


@pytest.mark.slow
def test_two_arms_by_two_seeds(study, colaworld, tmp_path) -> None:
    out = study()
    call = ["study", "tiny", "--out", out, "--max-steps", 2, "--seeds", 2]
    said = colaworld(*call, "--rows", tmp_path / "kept.json")
    assert said.status == 0, said.plain
    rows = rows_of(out)
    assert [(r["arm"], r["seed"]) for r in rows] == [
        ("cola", 0), ("cola", 1), ("naive", 0), ("naive", 1)
    ]  # fmt: skip
    assert [r["steps_by_phase"] for r in rows[1:3]] == [{"warmup": 2, "joint": 2}, {"joint": 2}]
    assert [r["clips_trained"] for r in rows[1:3]] == [8, 4]  # two clips a step
    assert {r["status"] for r in rows} == {"finished"}
    told = {(r["arm"], r["asked_sha256"]) for r in rows}  # seeds of an arm are configured alike
    assert len(told) == len({arm for arm, _ in told})
    evaluation = json.loads((out / "scene/naive/seed-1/evaluation.json").read_text())
    last = rows[-1]
    assert last["numbers"]["nmse"]["mean"] == evaluation["nmse"]["mean"]
    assert last["numbers"]["probe.score"] == {
        name: evaluation["probe"]["score"][name] for name in ("mean", "low", "high")
    }
    assert last["clips"]["rolled"] == rows[0]["clips"]["rolled"]  # the same clips for all
    assert len(last["entropy"]) == 2 and last["entropy"][0][0] == 1
    assert rows == json.loads((tmp_path / "kept.json").read_text())
    # A frozen backbone saves the backward pass of its weights: the second step costs more.
    assert rows[1]["flops"] > rows[2]["flops"] > 0
    page = (out / "report.html").read_text()
    assert "Does it run?" in page and "Against cola" in page and "<svg" in page

    assert "holds a study already; add --resume" in colaworld(*call).plain
    again = colaworld(*call[:6], "--rows", tmp_path / "kept.json", "--resume")  # its seeds
    assert again.status == 0 and "train" not in again.out and rows_of(out) == rows
    other = colaworld("study", "tiny", "--out", out, "--resume")
    assert other.status == 2 and "max_steps 2, asked for None" in other.plain
    shown = colaworld("study", "tiny", "--out", out, "--status")
    assert "4 of 4 runs are done" in shown.out and shown.out.count("finished") == 4
    changed = (out / "scene/naive/seed-1.yaml").read_text().replace("seed: 1\n", "seed: 7\n")
    (out / "scene/naive/seed-1.yaml").write_text(changed)
    lost = colaworld(*call[:4], "--max-steps", 2, "--resume")
    assert lost.status == 1 and "holds another configuration" in lost.plain
    assert "training.seed" in lost.plain


@pytest.mark.slow
def test_runs_are_measured_on_a_set_in_another_look(study, colaworld) -> None:
    out = study(elsewhere=True)
    call = ["study", "tiny", "--out", out, "--max-steps", 2, "--arms", "naive"]
    said = colaworld(*call, "--seeds", 1)
    assert said.status == 0, said.plain
    (row,) = rows_of(out)
    there = json.loads((out / "scene/naive/seed-0-elsewhere-colour/evaluation.json").read_text())
    told = row["numbers"]["elsewhere.colour.psnr"]["mean"]
    assert told == there["rollout"]["psnr"]["mean"] != row["numbers"]["rollout.psnr"]["mean"]
    assert row["made"]["elsewhere-colour"].endswith("--vary colour")
    page = (out / "report.html").read_text()
    assert "On what no run was trained on" in page and "The same clips, rolled out" in page
    again = colaworld(*call, "--resume")
    assert again.status == 0 and "train" not in again.out and rows_of(out) == [row]


@pytest.mark.slow
def test_what_fails_is_tried_once_more_and_named(study, colaworld) -> None:
    # Its frames are cropped to a size that the patches do not divide.
    out = study('(Arm("wrong", "nano.naive_joint", {"data.crop": [0, 0, 30, 30]}),)')
    said = colaworld("study", "tiny", "--out", out, "--max-steps", 2, "--seeds", 1)
    assert said.status == 1
    assert said.out.count("scene/wrong/seed-0: train") == 2
    assert "FAILED scene/wrong/seed-0: colaworld train: " in said.out
    assert "try again with:" in said.out and said.out.rstrip().endswith("--resume")
    assert [r["arm"] for r in rows_of(out)] == ["cola", "naive"]
    assert "FAILED: colaworld train" in colaworld("study", "tiny", "--out", out, "--status").out


@pytest.mark.slow
def test_a_run_that_its_gate_stops_is_a_result(study, colaworld) -> None:
    # No entropy is as high as a floor of 1, so that warm-up always ends "collapsed".
    gate = {"phases.warmup.steps": 2, "phases.warmup.gate.floor": 1.0}
    out = study(f'(Arm("stops", "nano.cola", {gate}),)')
    said = colaworld("study", "tiny", "--out", out, "--seeds", 1, "--arms", "stops")
    assert said.status == 0, said.plain
    (row,) = rows_of(out)
    assert row["status"] == "collapsed" and row["steps_by_phase"] == {"warmup": 2}
    assert "ended by its steps with a collapsed codebook" in row["why"]
    assert row["collapsed_at"] == 1
    assert row["numbers"]["delta_psnr.random"]["mean"] is not None  # of its last checkpoint
    again = colaworld("study", "tiny", "--out", out, "--seeds", 1, "--arms", "stops", "--resume")
    assert again.status == 0 and "stops/seed-0: train" not in again.out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_killed_and_resumed_it_ends_as_if_never_killed(study, colaworld, tmp_path, number) -> None:
    out = study()
    arguments = ["study", "tiny", "--max-steps", "40", "--seeds", "1", "--jobs", "1"]
    arguments += ["--arms", "naive"]
    process = subprocess.Popen(
        [sys.executable, "-m", "colaworld", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = out / "scene/naive/seed-0/metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 2):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    held = colaworld(*arguments, "--out", out, "--resume")
    assert held.status == 2 and "another process runs a study in this folder" in held.plain
    process.send_signal(number)
    told, _ = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == 0 and "SIGTERM: waiting for 1 to save" in told
        assert "1 jobs are left. Go on with:" in told and not children(out)
    left = colaworld(*arguments[:2], "--out", out, "--status").out
    assert "in training" in left and "0 of 2 runs are done" in left
    begun = len(metrics.read_text().splitlines())
    assert begun < 40
    while children(out):  # they save and end by themselves when the parent is gone
        assert time.monotonic() < until
        time.sleep(0.05)
    said = colaworld(*arguments, "--out", out, "--resume")
    assert said.status == 0 and "train (goes on)" in said.out, said.plain
    whole = colaworld(*arguments, "--out", tmp_path / "whole")
    assert whole.status == 0
    resumed, never = rows_of(out)[0], rows_of(tmp_path / "whole")[0]
    for key in ("steps", "numbers", "entropy", "clips", "flops"):
        assert resumed[key] == never[key]


def children(out: Path) -> list[str]:
    """Processes of colaworld that work in `out`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(part.startswith(f"{out}/") for part in line):
            found.append(process.name)
    return found


def test_a_spent_budget_begins_nothing(study, colaworld) -> None:
    out = study()
    call = ["study", "tiny", "--out", out, "--max-steps", 2, "--seeds", 1]
    said = colaworld(*call, "--budget", "0.000000001s")
    assert said.status == 0 and "2 jobs are left. Go on with:" in said.out
    assert not (out / "scene").exists()
    assert "0 of 2 runs are done" in colaworld("study", "tiny", "--out", out, "--status").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no study 'nothing' is registered"),
        (["tiny", "--budget", "soon"], "--budget: expected a time such as 90m"),
        (["tiny", "--arms", "other"], "--arms: expected some of cola, naive, got 'other'"),
        (["tiny", "--status"], "holds no study yet"),
        (["tiny", "--seeds", "0"], "--seeds: expected >= 1, got 0"),
    ],
)
def test_wrong_calls(study, colaworld, arguments, said) -> None:
    out = study()
    found = colaworld("study", *arguments, "--out", out)
    assert found.status == 2 and said in found.plain
    assert not out.exists()


def test_unequal_budgets_are_refused(study, colaworld) -> None:
    out = study('(Arm("long", "nano.naive_joint", {"phases.joint.steps": 1800}),)', "clips")
    said = colaworld("study", "tiny", "--out", out)
    assert said.status == 2 and "cola 3400, naive 3400, long 3600" in said.plain


def test_what_cannot_be_written_or_is_another_study_is_said_first(
    study, colaworld, tmp_path
) -> None:
    out = study()
    file = tmp_path / "file"
    file.write_text("")
    other_rows = tmp_path / "rows.json"
    other_rows.write_text((ROOT / "benchmarks/results/study_collapse.json").read_text())
    whole_rows = tmp_path / "whole.json"  # as of runs in full length
    whole_rows.write_text(other_rows.read_text().replace('"study": "collapse"', '"study": "tiny"'))
    for more, said in (
        (["--out", file], "--out: expected a folder, there or to be made, got"),
        (["--out", file / "in"], "--out: expected a folder"),
        (
            ["--out", out, "--rows", file / "rows.json"],
            "--rows: expected a file to be written, got",
        ),
        (["--out", out, "--rows", tmp_path], "--rows: expected a file to be written"),
        (["--out", out, "--rows", other_rows], "found some of 'collapse'"),
        (["--out", out, "--max-steps", 2, "--rows", whole_rows], "no more than a look"),
    ):
        found = colaworld("study", "tiny", *more)
        assert found.status == 2 and said in found.plain, found.plain
    assert not out.exists()
    assert colaworld("study", "tiny", "--out", out, "--budget", "0.000000001s").status == 0
    other = colaworld("study", "quick", "--out", out, "--status")
    assert other.status == 2 and "holds a study with study 'tiny', asked for 'quick'" in other.plain
    (out / "scene/naive").mkdir(parents=True)
    (out / "scene/naive/seed-0.json").write_text("{")
    broken = colaworld("study", "tiny", "--out", out, "--resume")
    assert broken.status == 2 and "seed-0.json: not valid JSON" in broken.plain
    assert "delete it: --resume makes it again" in broken.plain and "train" not in broken.out


RECORDED = """
from colaworld.studies import Arm, DataSet, Study, register_study

record = ("scene", "--episodes", "6", "--steps", "8", "--size", "24")
register_study(Study("tiny", "Is it shared?", arms=(Arm("naive", "nano.naive_joint"),),
                     data=(DataSet("scene", record=record),), reference="naive"))
"""


def test_data_of_another_study_are_taken_or_refused_before_anything_begins(
    tmp_path, from_outside, colaworld
) -> None:
    file = tmp_path / "plugin_tiny.py"
    file.write_text(RECORDED)
    from_outside(file)
    share, out = tmp_path / "share", tmp_path / "out"
    call = [
        "study",
        "tiny",
        "--seeds",
        1,
        "--budget",
        "0.000000001s",
        "--out",
        out,
        "--share",
        share,
    ]
    unknown = share / "scene/data"
    unknown.mkdir(parents=True)
    refused = colaworld(*call)
    assert refused.status == 2 and not list(out.iterdir())
    assert "it is not known how it was made" in refused.plain and "--share" in refused.plain
    file_in_place = tmp_path / "file"
    file_in_place.write_text("")
    wrong = colaworld(*call[:-1], file_in_place)
    assert wrong.status == 2 and "--share: expected a folder, there or to be made" in wrong.plain
    unknown.rmdir()
    assert colaworld(*call).status == 0
    made = {"scene/data": ["record", "scene", "--episodes", "6", "--steps", "8", "--size", "25"]}
    unknown.mkdir()
    (share / "scene/data.json").write_text(json.dumps({"calls": made}))
    resumed = colaworld(*call[:-2], "--resume")  # it is remembered
    assert (
        resumed.status == 2
        and "made by 'record scene --episodes 6 --steps 8 --size 25'" in resumed.plain
    )


def test_the_precision_is_told_at_once_and_goes_on(tmp_path, from_outside, colaworld) -> None:
    file, out = tmp_path / "plugin_tiny.py", tmp_path / "out"
    file.write_text(RECORDED)
    from_outside(file)
    call = ["study", "tiny", "--budget", "0.000000001s", "--out", out]
    assert colaworld(*call, "--seeds", 1, "--autocast", "bf16").status == 0
    there = json.loads((out / "study.json").read_text())
    assert there["autocast"] == "bf16"
    (out / "study.json").write_text(json.dumps(there | {"note": "of mine"}))
    assert colaworld("study", "tiny", "--out", out, "--status").status == 0
    other = colaworld(*call, "--resume", "--autocast", "none")
    assert other.status == 2 and "--autocast: the study in" in other.plain
    assert colaworld(*call, "--resume").status == 0
    assert json.loads((out / "study.json").read_text())["autocast"] == "bf16"


def test_factors_of_equal_flops_are_told(study, colaworld, monkeypatch) -> None:
    told = {"warmup": 1.0, "joint": 2.0}  # of a clip, in place of traced steps
    monkeypatch.setattr("colaworld.studies.flops._of_clip", lambda text, height, width: told)
    out = study(budget="flops")
    call = ["study", "tiny", "--out", out, "--seeds", 1, "--budget", "0.000000001s"]
    said = colaworld(*call)
    assert said.status == 0, said.plain
    # cola: 850 x 1 + 850 x 2; naive: 1700 x 2
    assert "to take as many FLOPs as cola, times cola 1.000, naive 0.750" in said.plain


@pytest.mark.parametrize(
    ("device", "count", "named", "expected"),
    [
        ("auto", 3, None, ["0", "1", "2"]),
        ("cuda", 2, "GPU-a, 5", ["GPU-a", "5"]),
        ("auto", 1, "5", []),
        ("cuda:1", 3, None, []),
        ("cpu", 3, None, []),
    ],
)
def test_gpus_are_named_as_processes_see_them(device, count, named, expected, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert several_gpus(device) == expected
