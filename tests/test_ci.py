"""The hosted workflow: whatever it names is there, and it decides nothing by itself.

Not here: running it.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
TEXT = WORKFLOW.read_text()
JOBS: dict[str, Any] = yaml.safe_load(TEXT)["jobs"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.M))


def commands(job: dict[str, Any]) -> list[str]:
    """Every command of a job, once for each value that its matrix gives `matrix.part`."""
    parts = job.get("strategy", {}).get("matrix", {}).get("part", [""])
    lines = [step["run"] for step in job["steps"] if "run" in step]
    return [line.replace("${{ matrix.part }}", part) for line in lines for part in parts]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_calls_one_target_or_script_that_exists(name: str) -> None:
    assert commands(JOBS[name])
    for command in commands(JOBS[name]):
        program, *arguments = shlex.split(command)
        assert len(arguments) <= 1, f"{command!r}: what it does belongs into the Makefile or .ci/"
        if program == "make":
            assert arguments[0] in TARGETS, f"the Makefile has no target {arguments[0]!r}"
            continue
        script = ROOT / program
        assert script.parent == ROOT / ".ci" and os.access(script, os.X_OK), command
        parts = re.search(r"^    (tests \|.*)\)$", script.read_text(), flags=re.M)
        assert parts is None or arguments[0] in parts[1].split(" | "), command


def test_lint_tests_and_the_nightly_parts_are_all_run() -> None:
    called = {command for job in JOBS.values() for command in commands(job)}
    nightly = {f".ci/nightly {part}" for part in ("tests", "sanitize", "oldest-torch")}
    assert called == {"make lint", "make test"} | nightly


def test_every_python_that_the_package_accepts_and_the_oldest_torch() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    low, high = map(int, re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project).groups())
    matrix = JOBS["test"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(low, high)]
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', project)
    assert [one["torch"] for one in matrix["include"]] == [f"torch=={oldest}.0"]
    assert matrix["torch"] == ["torch"]  # the newest


def test_only_the_two_public_actions_by_major_version_and_one_wheel_index() -> None:
    used = {step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step}
    assert {re.sub(r"@v\d+$", "", action) for action in used} == {
        "actions/checkout",
        "actions/setup-python",
    }
    assert re.findall(r"https?://\S+", TEXT) == ["https://download.pytorch.org/whl/cpu"]
