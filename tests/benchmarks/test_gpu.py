"""The commands for a GPU: budgets, processes that fail or hang, what is kept, and a dry run of it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import rows as store
from benchmarks import timing
from benchmarks.case import Case
from benchmarks.gpu import cases, stages, workers

command = import_module("benchmarks.gpu.__main__")
dry = stages.beside_tests("stand_ins")
Stage = command.Stage
ROOT = command.ROOT
VERBS = list(command.PLAN)


@pytest.mark.parametrize("verb", VERBS)
def test_the_shares_of_the_stages_stay_below_the_total(verb) -> None:
    total, listed = command.PLAN[verb]
    assert sum(stage.seconds for stage in listed) <= total - 3
    assert {"A": 170, "B": 420, "rest": 540}[verb] == total
    own = {stage.name for stage in listed if stage.name != "pytest"}
    assert own <= set(stages.STAGES) | set(stages.OTHERS)


def test_no_stage_stands_in_two_plans() -> None:
    names = [stage.name for _, listed in command.PLAN.values() for stage in listed]
    assert len(set(names)) == len(names)


def process(code: str) -> Stage:
    return Stage("probe", 60, lambda usual: [sys.executable, "-c", code])


def test_a_stage_that_fails_hangs_or_cannot_run_is_told(tmp_path, capsys) -> None:
    def run(stage: Stage) -> str | None:
        return command.run(stage, tmp_path, workers=1, dry=False)

    assert run(process("print('hello')")) is None
    assert "hello" in capsys.readouterr().out
    assert run(process("exit(3)")) == "ended with 3"
    assert run(Stage("x", 60, lambda usual: "no such tool")) == "not run: no such tool"
    hangs = "import time; print('begun', flush=True); time.sleep(60)"
    assert run(Stage("x", 1, lambda usual: [sys.executable, "-c", hangs])) == "stopped after 1 s"
    assert "hello" in (tmp_path / "logs" / "probe.log").read_text()


def test_what_a_stage_leaves_running_is_ended_with_it(tmp_path) -> None:
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
    assert command.run(process(code), tmp_path, workers=1, dry=True) is None
    number = int((tmp_path / "logs" / "probe.log").read_text())
    for _ in range(500):  # a killed process needs a moment to go
        if not Path(f"/proc/{number}").exists() or state_of(number) == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"process {number} lives on: {state_of(number)}")


def state_of(number: int) -> str:
    try:
        return Path(f"/proc/{number}/stat").read_text().split()[2]
    except OSError:  # gone in between
        return "Z"


def test_stages_from_one_on_the_report_and_the_archive(tmp_path, capsys, monkeypatch) -> None:
    plan = (Stage("one", 9), Stage("two", 9), Stage("three", 9))
    monkeypatch.setitem(command.PLAN, "A", (30, plan))
    ran = []

    def run(stage, folder, **_):
        ran.append(stage.name)
        store.note(folder, "failed" if stage.name == "three" else "ok", stage.name, "a reason")
        return None

    monkeypatch.setattr(command, "run", run)
    arguments = ["A", "--out", str(tmp_path), "--work", str(tmp_path / "work"), "--dry-run"]
    assert command.main([*arguments, "--from", "two"]) == 1 and ran == ["two", "three"]
    said = capsys.readouterr().out
    assert "FAILED three: a reason" in said and "1 ok, 0 missing, 0 skipped, 1 failed" in said
    assert said.count("more are not measured so far") == 2
    with tarfile.open(tmp_path / command.ARCHIVE) as archive:
        assert set(archive.getnames()) == {"gpu/notes.jsonl", "gpu/rows.json"}
    with pytest.raises(SystemExit, match="--from: expected one of one, two, three, got 'four'"):
        command.main([*arguments, "--from", "four"])


def test_rows_of_this_code_are_kept_and_come_back(tmp_path, row, monkeypatch) -> None:
    folder = tmp_path / "work"
    for p50 in (1.0, 2.0):  # the second one is the later measurement of the same
        store.add(folder, row(p50=p50))
    (folder / "cache").mkdir()
    (folder / "cache" / "large").write_text("left out")
    archive = store.pack(folder, tmp_path / "gpu.tar.gz")
    assert [r["p50_ms"] for r in store.read(folder / "rows.json")] == [2.0]
    store.unpack(archive, tmp_path / "other")
    assert store.measured(tmp_path / "other") == {("adaln/nano.block/float32/fwd", "cpu")}
    assert not (tmp_path / "other" / "cache").exists()
    with (folder / store.ROWS).open("a") as file:
        file.write('{"op": "cut')  # its process was killed
    assert len(store.kept(folder)) == 1
    monkeypatch.setattr(store, "digest", lambda: "of other code")
    assert store.kept(folder) == [] and len(store.every_row(folder)) == 1


def options(folder: Path, seconds: float = 60.0) -> cases.Options:
    return cases.Options(out=folder, seconds=seconds, samples=1, dry=True)


def toy(called: list[str]) -> Case:
    def provider(name: str):
        return lambda: [lambda: called.append(name)]

    return Case(
        suite="ops", op="toy", shape="any", sizes={"n": 1}, dtype="float32", mode="fwd",
        providers={name: provider(name) for name in ("eager", "cpu")},
    )  # fmt: skip


def test_what_has_a_row_is_not_measured_again(tmp_path, row, capsys) -> None:
    called: list[str] = []
    kept: list = []
    store.add(tmp_path, row(op="toy", shape="any", impl="eager"))
    stages.measure([(toy(called), ())], options(tmp_path), kept.append)
    assert [one["impl"] for one in kept] == ["cpu"] and set(called) == {"cpu"}
    store.add(tmp_path, row(op="toy", shape="any", impl="cpu"))
    stages.measure([(toy(called), ())], options(tmp_path), kept.append)
    assert "there already: toy/any/float32/fwd" in capsys.readouterr().out and len(kept) == 1


def test_what_does_not_fit_into_the_time_is_not_begun(tmp_path) -> None:
    kept: list = []
    late = cases.Options(out=tmp_path, seconds=stages._CASE_SECONDS - 1, dry=False)
    stages.measure([(toy([]), ())], late, kept.append)
    assert [one.label for one in kept] == ["toy/any/float32/fwd"] and "s are left" in kept[0].reason


@pytest.mark.parametrize(("strict", "code"), [("0", 0), ("1", 1)])
def test_a_skip_on_a_gpu_is_a_failure_but_for_memory(tmp_path, strict, code) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "gpu" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_missing(): pytest.skip('triton refuses: not here')\n"
        "def test_small(): pytest.skip('needs 40 GB of free GPU memory, 8 are free')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, env={**os.environ, "FAIL_WITHOUT_CUDA": strict}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    failed = "FAIL_WITHOUT_CUDA is set, and test_missing was skipped: Skipped: triton refuses"
    assert (failed in done.stdout) == (strict == "1")
    assert ("1 failed, 1 skipped" in done.stdout) == (strict == "1")


# --- workers --------------------------------------------------------------------------------------

WORKER = """
import os, sys, time
from benchmarks.gpu import workers

class Missing(Exception): pass

def fails(): raise AssertionError("off by one")
def misses(): raise Missing("no such card")
def dies(): os._exit(7)
def spoils(): globals().update(healthy=False); fails()

healthy = True
jobs = dict(good=lambda: print("a line"), fails=fails, misses=misses, dies=dies, spoils=spoils,
            pid=lambda: print("pid", os.getpid()), hangs=lambda: time.sleep(60))
workers.serve(jobs, lambda: healthy)
"""


def share(names: list[str], seconds: float = 60.0) -> tuple[dict, list[str]]:
    found: dict = {}
    late = workers.share_out(
        names, [sys.executable, "-c", WORKER], count=1, seconds=seconds,
        done=lambda name, *rest: found.__setitem__(name, rest),
    )  # fmt: skip
    return found, late


def test_jobs_that_fail_die_or_spoil_their_process_cost_themselves_alone(capsys) -> None:
    names = ["good", "fails", "misses", "dies", "spoils", "pid"]
    found, late = share(names)
    assert late == [] and list(found) == names
    assert found["good"] == ("ok", "") and found["pid"] == ("ok", "")
    assert found["fails"] == ("failed", "AssertionError: off by one")
    assert found["misses"] == ("missing", "no such card")
    assert found["dies"] == ("failed", "its process ended with 7")
    said = capsys.readouterr().out
    assert "[good] a line" in said and "[fails] Traceback" in said


def test_jobs_that_did_not_end_are_named() -> None:
    found, late = share(["hangs", "good"], seconds=3.0)
    assert found == {} and late == ["hangs", "good"]


# --- a dry run ------------------------------------------------------------------------------------


def test_a_stand_in_graph_repeats_what_it_saw() -> None:
    with dry.stand_ins(timing):
        x, graph = torch.ones(3), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = (2 * x).sum()
        x.fill_(5.0)
        assert y.item() == 6.0
        graph.replay()
        assert y.item() == 30.0
    assert torch.cuda.CUDAGraph is not dry.Graph


def test_the_goals_ops_are_timed_by_graphs(tmp_path) -> None:
    kept: list = []
    with dry.stand_ins(timing):
        listed = [
            one for one in cases.STAGES["goals"](options(tmp_path)) if one[0].op == "codebook_step"
        ]
        stages.measure(
            [(case, ("eager", "cpu")) for case, _ in listed], options(tmp_path), kept.append
        )
    rows = [one for one in kept if isinstance(one, dict)]
    assert rows and all(r["timed"] == "graph" and r["launches"] == 1 for r in rows)


BLOCKED = """
import runpy, sys
ALLOWED = {"torch", "triton", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe",
           "filelock", "fsspec", "typing_extensions", "torchgen", "functorch", "colaworld",
           "benchmarks", "gpu_checks", "gpu_stand_ins"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        there = top in sys.stdlib_module_names or top in ALLOWED or top.startswith("_")
        return self.finder.find_spec(name, path, target) if there else None

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
sys.argv[:] = ["stages", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu.stages", run_name="__main__")
"""


@pytest.mark.parametrize("stage", ["probe", "ceilings", "step8"])
def test_torch_and_numpy_are_enough_for_the_ops(tmp_path, stage) -> None:
    arguments = [sys.executable, "-c", BLOCKED, stage, "--dry", "--out", str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if stage == "step8":  # recipes need more packages
        (note,) = store.notes(tmp_path)
        assert note["label"] == "step8" and note["reason"].endswith("is not installed")
    else:
        assert store.kept(tmp_path) or "st_attention: reference" in done.stdout


@pytest.mark.slow
def test_a_dry_run_of_everything(tmp_path) -> None:
    """Every stage in its order, in its processes, to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for verb in VERBS:
        arguments = ["-W", "ignore", "-m", "benchmarks.gpu", verb, "--dry-run", "--workers", "2"]
        arguments += ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        assert "stopped after" not in done.stdout and "FAILED" not in done.stdout
    found = store.kept(tmp_path / "work")
    assert {"eager", "compile", "compile:flash", "default+compile"} <= {r["impl"] for r in found}
    ops_ = {"st_attention", "adaln", "codebook_step", "attention", "step", "copy", "launch"}
    assert ops_ <= {row["op"] for row in found}
    assert (tmp_path / "gpu.tar.gz").stat().st_size < 16 << 20
    outcomes = [json.loads(line)["outcome"] for line in (tmp_path / "work" / store.NOTES).open()]
    assert outcomes.count("ok") > 40
