"""The one command for a GPU: its stages, their budget, and that a bad stage is named."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import gpu


def test_the_stages_fit_their_budget() -> None:
    for quick, minutes in ((True, 3), (False, 9)):
        stages = list(gpu.stages(quick=quick, root=Path("root"), out=Path("out")))
        assert sum(stage.seconds for stage in stages) <= 60 * minutes
        assert stages[0].name == "tests" and stages[0].environment == {"FAIL_WITHOUT_CUDA": "1"}
        assert any("--device" in stage.command for stage in stages[1:])


def test_without_a_checkout_there_are_no_tests() -> None:
    names = [stage.name for stage in gpu.stages(quick=False, root=None, out=Path("out"))]
    assert names == ["bench ops", "bench models", "bench training"]


def test_a_stage_that_fails_or_hangs_is_told() -> None:
    assert gpu.run(gpu.Stage("good", [sys.executable, "-c", "pass"], 60)) is None
    assert gpu.run(gpu.Stage("bad", [sys.executable, "-c", "exit(3)"], 60)) == "ended with 3"
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu.run(gpu.Stage("slow", sleep, 1)) == "did not end within 1 s"


def test_without_a_gpu_nothing_runs(monkeypatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
