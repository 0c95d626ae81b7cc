"""Which configurations count as the same run."""

from __future__ import annotations

import pytest

from colaworld.training.contracts import ResumeError
from colaworld.training.resuming import check_same_config, config_sha256

SAVED = """
data: {path: videos}
phases: [{name: warmup, steps: 10}, {name: joint, steps: 20}]
training: {seed: 0, max_steps: 5, betas: [0.9, 0.99]}
out: here
"""


def test_what_may_change():
    given = SAVED.replace("max_steps: 5", "max_steps: 50, checkpoint_every: 2")
    given = given.replace("out: here", "out: there")
    check_same_config(SAVED, given, where="x")
    assert config_sha256(SAVED) == config_sha256(given)


def test_what_differs_is_named_with_both_values():
    given = SAVED.replace("seed: 0", "seed: 1").replace("steps: 20", "steps: 30")
    given = given.replace("path: videos", "path: videos, fps: 5").replace("0.99]", "0.999]")
    with pytest.raises(ResumeError) as caught:
        check_same_config(SAVED, given, where="step_0_1")
    text = str(caught.value)
    assert "training.seed: saved 0, given 1" in text
    assert "phases.1.steps: saved 20, given 30" in text
    assert "data.fps: saved '(absent)', given 5" in text
    assert "training.betas: saved [0.9, 0.99], given [0.9, 0.999]" in text
    assert "max_steps:" not in text and "step_0_1" in text
    assert config_sha256(SAVED) != config_sha256(given)


def test_values_of_older_configurations_mean_what_they_meant():
    for old, new in (("true", "full"), ("false", "'no'")):
        saved = SAVED.replace("seed: 0", f"seed: 0, compile: {old}")
        given = SAVED.replace("seed: 0", f"seed: 0, compile: {new}, recompute: blocks")
        check_same_config(saved, given, where="x")
        assert config_sha256(saved) == config_sha256(given)
    given = SAVED.replace("seed: 0", "seed: 0, compile: blocks")
    with pytest.raises(ResumeError, match=r"training\.compile: saved 'no', given 'blocks'"):
        check_same_config(saved, given, where="x")
