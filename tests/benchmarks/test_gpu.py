"""The one command for a GPU: its stages, their budget, and that a bad stage is named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gate, gpu, rows


def listed(**options) -> list:
    return list(gpu.stages(**{"quick": False, "root": Path("root"), "out": Path("out")} | options))


def names(stages: list) -> list[str]:
    return [stage.name for stage in stages if isinstance(stage, gpu.Stage)]


@pytest.mark.parametrize(("quick", "seconds"), [(True, 3 * 60), (False, 9 * 60)])
def test_the_stages_fit_their_budget(monkeypatch, quick, seconds) -> None:
    monkeypatch.setattr(gpu, "sanitizer", lambda: "/bin/compute-sanitizer")
    stages = [one for one in listed(quick=quick) if isinstance(one, gpu.Stage)]
    assert sum(stage.seconds for stage in stages) <= seconds - 10
    assert (gpu.QUICK_BUDGET if quick else gpu.BUDGET) < seconds
    by_name = {stage.name: stage for stage in stages}
    assert by_name["tests"].environment == {"FAIL_WITHOUT_CUDA": "1"}
    for name in ("ceilings", "ops", "attention"):
        command = by_name[name].command
        told = float(command[command.index("--seconds") + 1])
        assert told < by_name[name].seconds, "a stage ends by itself before it is stopped"
        assert ("--quick" in command) == quick
    assert names(stages)[:2] == ["ceilings", "tests"]
    if not quick:
        assert names(stages) == [
            "ceilings", "tests", "memory", "tune", "ops", "attention", "generator", "kernels",
        ]  # fmt: skip
        assert "--write" in by_name["tune"].command
        assert by_name["memory"].command[0] == "/bin/compute-sanitizer"


def test_what_cannot_run_is_named_with_its_reason(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "sanitizer", lambda: None)
    left = {one.name: one.reason for one in listed(root=None) if isinstance(one, gpu.Left)}
    assert "an installed package has none" in left["tests"]
    assert "no compute-sanitizer" in left["memory"]
    assert "tests" not in names(listed(root=None)) and "--write" not in str(listed(root=None))


def test_the_sanitizer_is_found_where_toolkits_are(monkeypatch, tmp_path) -> None:
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu.sanitizer() == str(tool)


def test_a_stage_is_built_for_this_card_when_asked() -> None:
    first = listed(build=True)[0]
    assert first.name == "build" and first.environment["COLAWORLD_CUDA_ARCHITECTURES"].isdigit()
    assert "--no-deps" in first.command  # nothing is downloaded


def test_a_stage_that_fails_or_hangs_is_told() -> None:
    assert gpu.run(gpu.Stage("good", [sys.executable, "-c", "pass"], 60)) is None
    assert gpu.run(gpu.Stage("bad", [sys.executable, "-c", "exit(3)"], 60)) == "ended with 3"
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu.run(gpu.Stage("slow", sleep, 1)) == "did not end within 1 s"


def test_the_rest_goes_on_and_nothing_begins_without_time(monkeypatch) -> None:
    ran = []

    def run(stage, *, cwd):
        ran.append((stage.name, stage.seconds))
        return "ended with 1" if stage.name == "first" else None

    monkeypatch.setattr(gpu, "run", run)
    stages = [gpu.Stage(name, [], 60) for name in ("first", "second", "third")]
    stages.insert(1, gpu.Left("tool", "not here"))
    clock = iter([0.0, 0.0, 50.0, 97.0])
    wrong, left_out = gpu.run_all(iter(stages), 100, cwd=None, now=lambda: next(clock))
    assert wrong == ["first: ended with 1"]
    assert ran == [("first", 60), ("second", 50)]
    assert left_out == ["tool: not here", "third: 3 s of 100 are left"]


@pytest.mark.parametrize(("strict", "code"), [("0", 0), ("1", 1)])
def test_a_skip_on_a_gpu_is_a_failure_but_for_memory(tmp_path, strict, code) -> None:
    root = gate.repository()
    if root is None:
        pytest.skip("an installed package has no tests folder")
    (tmp_path / "conftest.py").write_text((root / "tests" / "gpu" / "conftest.py").read_text())
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


def test_only_what_this_run_wrote_is_reported(tmp_path, row, capsys) -> None:
    rows.write(tmp_path / "ops_cuda.json", [row()])
    assert len(gpu.collected(tmp_path, time.time() - 60)) == 1
    assert gpu.collected(tmp_path, time.time() + 60) == []
    gpu.report(tmp_path, time.time() + 60)
    said = capsys.readouterr().out
    assert said.count("goal: ") == 9 and "not measured" in said


def test_without_a_gpu_nothing_runs(monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_a_run_from_end_to_end_names_what_went_wrong(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    made = [gpu.Stage("bad", [sys.executable, "-c", "exit(1)"], 60), gpu.Left("tool", "none")]
    monkeypatch.setattr(gpu, "stages", lambda **_: iter(made))
    assert gpu.main() == 1
    said = capsys.readouterr().out
    assert "gpu: WRONG bad: ended with 1" in said and "gpu: not run: tool: none" in said
