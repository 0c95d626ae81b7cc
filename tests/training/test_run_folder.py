"""Two processes in one run folder; which configurations count as the same run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from colaworld.files import FolderLock
from colaworld.training.protocols import ResumeError, RunFolderError
from colaworld.training.run_folder import RunFolder
from colaworld.training.same_run import check_same_config, config_sha256

HOLD = """
import sys, pathlib
from colaworld.files import FolderLock
held = FolderLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another process is training in this folder"):
            RunFolder(tmp_path).take("", resume=False)
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path)
    finally:
        first.kill()
        first.wait()
    FolderLock(tmp_path).close()
    FolderLock(tmp_path).close()
    assert not list(tmp_path.iterdir())


def test_a_forked_child_does_not_keep_the_folder(tmp_path) -> None:
    lock = FolderLock(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # waits for the parent, with a copy of the lock's descriptor
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        lock.close()
        FolderLock(tmp_path).close()
    finally:
        os.close(writer)
        os.waitpid(child, 0)


# -- is it the same run? -----------------------------------------------------------------------

SAVED = """
data: {path: videos}
phases: [{name: warmup, steps: 10}, {name: joint, steps: 20}]
training: {seed: 0, max_steps: 5, betas: [0.9, 0.99]}
out: here
"""


def test_what_may_change():
    given = SAVED.replace("max_steps: 5", "max_steps: 50, checkpoint_every: 2")
    given = given.replace("out: here", "out: there").replace("steps: 20", "steps: 30")
    given += "sampler: {steps: 3}\nevaluation: {clips: 4}\n"  # previews read it, no step does
    check_same_config(SAVED, given, where="x")
    assert config_sha256(SAVED) == config_sha256(given)


def test_fields_of_a_part_may_not_change_whatever_they_are_called():
    saved = SAVED + "model: {parts: {adapter: {out: 3}}}\n"
    with pytest.raises(ResumeError, match=r"model\.parts\.adapter\.out: saved 3, given 4"):
        check_same_config(saved, saved.replace("out: 3", "out: 4"), where="x")


def test_what_differs_is_named_with_both_values():
    given = SAVED.replace("seed: 0", "seed: 1").replace("name: joint", "name: other")
    given = given.replace("path: videos", "path: videos, fps: 5").replace("0.99]", "0.999]")
    with pytest.raises(ResumeError) as caught:
        check_same_config(SAVED, given, where="step_0_1")
    text = str(caught.value)
    assert "training.seed: saved 0, given 1" in text
    assert "phases.1.name: saved 'joint', given 'other'" in text
    for free in (
        "phases.*.steps",
        "phases.*.gate.missed",
        "data.unlike_actions",
        "how many passes",
    ):
        assert free in text.partition("(only ")[2]
    assert "data.fps: saved '(absent)', given 5" in text
    assert "training.betas: saved [0.9, 0.99], given [0.9, 0.999]" in text
    assert "max_steps:" not in text and "step_0_1" in text
    assert config_sha256(SAVED) != config_sha256(given)


def test_fields_that_came_later_say_what_was_done_before():
    early = SAVED + "model: {backbone: {fps: 24.0}}\nobjective: {augment: true}\n"
    later = SAVED.replace("path: videos", "path: videos, actions: as_recorded") + (
        "model: {backbone: {fps: 24.0, clip_fps: false, round_times: false}, quantizer: {scale_floor: 0.0}}\n"
        "objective: {augment: true, average: frames, frozen_history: null}\n"
    )
    assert "as_recorded" in later
    check_same_config(early, later, where="x")
    assert config_sha256(early) == config_sha256(later)
    with pytest.raises(ResumeError, match=r"objective\.average: saved '\(absent\)', given 'clips'"):
        check_same_config(early, later.replace("frames", "clips"), where="x")
    with pytest.raises(ResumeError, match=r"data\.actions: saved '\(absent\)', given 'relative'"):
        check_same_config(early, later.replace("as_recorded", "relative"), where="x")
    with pytest.raises(ResumeError, match=r"scale_floor: saved '\(absent\)', given 0\.1"):
        check_same_config(early, later.replace("floor: 0.0", "floor: 0.1"), where="x")


def test_values_of_older_configurations_mean_what_they_meant():
    for old, new in (("true", "full"), ("false", "'no'")):
        saved = SAVED.replace("seed: 0", f"seed: 0, compile: {old}")
        given = SAVED.replace("seed: 0", f"seed: 0, compile: {new}, recompute: blocks")
        check_same_config(saved, given, where="x")
        assert config_sha256(saved) == config_sha256(given)
    given = SAVED.replace("seed: 0", "seed: 0, compile: blocks")
    with pytest.raises(ResumeError, match=r"training\.compile: saved 'no', given 'blocks'"):
        check_same_config(saved, given, where="x")


def test_an_update_may_be_cut_into_other_passes():
    """Its clips stay as many; another machine may hold fewer at once."""
    saved = SAVED.replace("seed: 0", "seed: 0, batch_size: 16, accumulate: 1")
    cut = SAVED.replace("seed: 0", "seed: 0, batch_size: 4, accumulate: 4")
    check_same_config(saved, cut, where="here")
    fewer = SAVED.replace("seed: 0", "seed: 0, batch_size: 4, accumulate: 1")
    with pytest.raises(ResumeError, match=r"batch_size x training\.accumulate: saved 16, given 4"):
        check_same_config(saved, fewer, where="here")
