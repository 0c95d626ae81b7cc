"""Killed or interrupted anywhere through the command itself, a run resumes to the same rows and
the same bytes. Deaths at chosen moments happen in forked processes of deaths.py, others from
outside at whatever moment it is."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import colaworld as package

SCRIPT = Path(__file__).with_name("deaths.py")
STEPS = 6  # of each phase
WEIGHTS = Path("weights") / "model.safetensors"


@pytest.fixture(scope="module")
def call(scene, tiny) -> list[str]:
    """nano.cola in steps short enough to be killed in; a checkpoint every other step."""
    at = tiny.index("--training.max-steps")
    rest = [*tiny[:at], *tiny[at + 2 :], "--training.ema-decay", "0.9"]
    every = ["--training.max-steps", str(STEPS), "--training.checkpoint-every", "2"]
    start = ["--model.quantizer.unquantized-steps", "3"]  # the codebook starts within warm-up
    # As in the recipe, also for a run that is longer than the reference.
    ramps = [f"--phases.{phase}.lr-warmup-steps=50" for phase in ("warmup", "joint")]
    ramps += ["--phases.joint.cooldown-steps", "0"]
    return ["train", "nano.cola", "--data", str(scene), *rest, *every, *start, *ramps]


def environment() -> dict[str, str]:
    home = str(Path(package.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": home, "OMP_NUM_THREADS": "1"}


def deaths(out: Path, call: list[str], *specs: str) -> tuple[list[str], str]:
    """What happened at each moment, and all that was printed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), *specs, "--", *call],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    happened = [
        line.split(maxsplit=2)[2] for line in done.stdout.splitlines() if line[:5] == "DEATH"
    ]
    assert len(happened) == len(specs), done.stdout + done.stderr
    return happened, done.stdout + done.stderr


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "save_stall", "speed")}
        for line in lines
    ]


def check(out: Path, reference: Path) -> None:
    assert rows(out) == rows(reference)
    assert [(r["phase"], r["step"]) for r in rows(out)] == [
        (phase, step) for phase in ("warmup", "joint") for step in range(1, STEPS + 1)
    ]
    assert (out / WEIGHTS).read_bytes() == (reference / WEIGHTS).read_bytes()
    left = [p.name for p in (out / "checkpoints").iterdir() if not p.name.startswith("step_")]
    assert left == []


@pytest.fixture(scope="module")
def reference(tmp_path_factory, call) -> Path:
    """The undisturbed run."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert deaths(out, call, "none")[0] == ["exit 0"]
    return out


def test_killed_in_warmup_in_a_checkpoint_and_in_joint(tmp_path, call, reference) -> None:
    """Also before the first checkpoint. A checkpoint has four files: model, optimizer, rng, ema."""
    out = tmp_path / "run"
    moments = ["row:2", "row:4", "half:1", "save:6", "row:4", "none"]
    happened, _ = deaths(out, call, *moments)
    assert happened == ["killed"] * 5 + ["exit 0"]
    check(out, reference)


@pytest.mark.slow
def test_sigterm_saves_exits_0_and_tells_how_to_resume(tmp_path, call, reference) -> None:
    """A real process and the real signal; the command it prints is run as it stands."""
    out = tmp_path / "a run"
    command = [sys.executable, "-m", "colaworld", *call, "--out", str(out)]
    # Enough steps to be interrupted in; the first six of a phase do not depend on how many follow.
    longer = [*command, "--training.max-steps", "100000", "--phases.warmup.steps", str(STEPS)]
    longer += ["--phases.joint.steps", "100000"]
    process = subprocess.Popen(
        longer, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert wait_for_rows(out, STEPS + 3, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    message = said[said.index("SIGTERM: saved joint step ") :].splitlines()
    done = int(message[0].split("joint step ")[1].split()[0])
    assert message[0].endswith("Resume with:") and said.count("Resume with:") == 1
    assert len(rows(out)) == STEPS + done
    assert rows(out)[: STEPS + 3] == rows(reference)[: STEPS + 3]
    resume = shlex.split(message[1])
    assert resume == [*longer, "--resume"]
    resume[resume.index("100000")] = str(done + 2)  # else it would run for an hour
    more = subprocess.run(resume, env=environment(), capture_output=True, text=True, timeout=900)
    assert more.returncode == 0, more.stderr
    assert [r["step"] for r in rows(out)][STEPS:] == list(range(1, done + 3))
    assert (out / WEIGHTS).is_file()


def test_ctrl_c_and_sigterm_then_resume_are_invisible(tmp_path, call, reference) -> None:
    out = tmp_path / "run"
    happened, said = deaths(out, call, "term:3", "term:5", "none")
    assert happened == ["exit 0"] * 3
    assert "SIGTERM: saved warmup step 3" in said and "SIGTERM: saved joint step 2" in said
    check(out, reference)


def wait_for_rows(out: Path, count: int, process: subprocess.Popen[str]) -> bool:
    """Until metrics.jsonl has `count` rows; False if the process ended before."""
    end = time.monotonic() + 900  # only so that a broken run does not hang the tests
    while time.monotonic() < end:
        file = out / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    raise AssertionError(f"no {count} rows in {out}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_from_outside_at_any_moment(seed, tmp_path, call, reference) -> None:
    out, rng = tmp_path / "run", random.Random(seed)
    command = [sys.executable, "-m", "colaworld", *call, "--out", str(out), "--resume"]
    command += ["--training.checkpoint-every", "1"]
    kills = 0
    for count in sorted(rng.sample(range(1, 2 * STEPS), 4)):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        if wait_for_rows(out, count, process):
            time.sleep(0.02 * rng.random())
            process.kill()
            kills += process.wait() == -signal.SIGKILL
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kills >= 2
    check(out, reference)


@pytest.mark.slow
def test_killed_at_every_step_and_every_file(tmp_path, call, reference) -> None:
    """Each process gets one step or one file further than the one before it could."""
    out = tmp_path / "rows"
    happened, _ = deaths(out, call, *["row:3"] * 7, "none")
    assert happened.count("killed") >= 5 and happened[-1] == "exit 0"
    check(out, reference)
    out = tmp_path / "files"
    moments = [f"{kind}:{n}" for n in range(1, 5) for kind in ("half", "save")]
    happened, _ = deaths(out, call, *moments, "none")
    assert happened.count("killed") >= 6 and happened[-1] == "exit 0"
    check(out, reference)
