"""Killed with signal 9 anywhere, also while a checkpoint is written, a run resumes to the same
rows and the same bytes. The deaths happen in forked processes of toy_run.py."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import colaworld

SCRIPT = Path(__file__).with_name("toy_run.py")


def die(out: Path, *specs: str) -> list[str]:
    """Try each death in turn, then finish; returns what happened to each."""
    home = str(Path(colaworld.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), *specs, "none"],
        env={**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    happened = [line.split()[-1] for line in done.stdout.splitlines() if line.split()[0] in specs]
    assert len(happened) == len(specs), done.stdout
    return happened


@pytest.fixture(scope="module")
def reference(tmp_path_factory, read_run):
    """Undisturbed, in the same kind of process: sums depend on the number of threads."""
    out = tmp_path_factory.mktemp("reference") / "run"
    die(out)
    run = read_run(out)
    ends = [(end["phase"], end["steps"], end["reason"]) for end in run.state["progress"]["ended"]]
    assert ends == [("warmup", 10, "gate"), ("joint", 10, "steps")]
    assert sum(row["metrics"]["reseeded"] for row in run.rows) > 5
    return run


def check(out: Path, reference, read_run) -> None:
    run = read_run(out)
    steps = [(row["phase"], row["step"]) for row in run.rows]
    assert len(set(steps)) == len(steps)
    assert run.rows == reference.rows
    assert run.last == reference.last
    assert run.state["files"] == reference.state["files"]  # sizes and hashes of all tensors
    assert run.state == reference.state  # gate, alarm, meters, loader, counters
    assert run.weights == reference.weights
    hidden = [p.name for p in (out / "checkpoints").iterdir() if not p.name.startswith("step_")]
    assert hidden == []


def test_killed_in_each_phase_and_while_writing(tmp_path, reference, read_run):
    out = tmp_path / "run"
    specs = [
        "loss:3",  # warm-up, before any checkpoint: begins anew
        "loss:12",  # warm-up, after the checkpoint of step 4
        "fsync:4",  # while the next checkpoint is written
        "replace:3",  # before it appears
        "replaced:4",  # right after the phase's last one appeared
        "loss:6",  # the second phase
        "held:4",  # while training went on beside a checkpoint that was half written
        "rmtree:2",  # while an old checkpoint is deleted
        "fsync:9",
    ]
    assert die(out, *specs) == ["killed"] * len(specs)
    check(out, reference, read_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "calls"), [("fsync", 54), ("replace", 14), ("replaced", 14), ("rmtree", 6)]
)
def test_killed_at_every_call(kind, calls, tmp_path, reference, read_run):
    """At the calls an undisturbed run makes (every 4th fsync), each in a run of its own."""
    for number in range(1, calls + 1, 1 if calls < 20 else 4):
        out = tmp_path / f"run{number}"
        die(out, f"{kind}:{number}")
        check(out, reference, read_run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_moments(seed, tmp_path, reference, read_run):
    draw = random.Random(seed)
    specs = [
        f"{draw.choice(['fsync', 'replace', 'replaced', 'rmtree', 'loss'])}:{draw.randint(1, 20)}"
        for _ in range(15)
    ]
    die(tmp_path / "run", *specs)
    check(tmp_path / "run", reference, read_run)
