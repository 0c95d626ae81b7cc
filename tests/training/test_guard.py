"""Which updates the guard refuses, and when it gives up."""

from __future__ import annotations

import json
import math

from colaworld.training.config import TrainingConfig
from colaworld.training.guard import LossGuard


def guard(**more):
    return LossGuard(TrainingConfig(**more))


def test_not_finite_is_refused_at_once():
    g = guard()
    assert g.judge(1.0, 1.0) is None
    assert "loss is nan" in g.judge(math.nan, 1.0)
    assert "loss is inf" in g.judge(math.inf, 1.0)
    assert "gradient norm is nan" in g.judge(1.0, math.nan)
    assert (g.skipped, g.in_a_row) == (3, 3)
    assert g.judge(1.0, 1.0) is None
    assert (g.skipped, g.in_a_row) == (3, 0)


def test_a_spike_is_measured_against_the_median():
    g = guard(spike_factor=4.0, spike_window=11)
    for loss in [1.0] * 6 + [2.0] * 4:  # median of the first ten is 1
        assert g.judge(loss, 1.0) is None
    assert "4 times its median 1" in g.judge(4.1, 1.0)
    assert g.judge(3.9, 1.0) is None


def test_no_spike_before_the_median_is_trusted_or_when_off():
    g = guard(spike_factor=4.0)
    assert all(g.judge(loss, 1.0) is None for loss in [1.0] * 9 + [1e6])
    g = guard(spike_factor=0.0)
    assert all(g.judge(loss, 1.0) is None for loss in [1.0] * 30 + [1e6])


def test_a_refused_loss_does_not_enter_the_median():
    g = guard(spike_factor=4.0, spike_window=10)
    for _ in range(10):
        g.judge(1.0, 1.0)
    for _ in range(20):
        assert g.judge(100.0, 1.0) is not None


def test_gives_up_after_a_row_or_a_sum():
    g = guard(max_consecutive_skips=3)
    for expected in (False, False, True):
        g.judge(math.nan, 1.0)
        assert g.exhausted is expected
    g = guard(max_consecutive_skips=3, max_skips=4)
    seen = []
    for _ in range(4):
        g.judge(math.nan, 1.0)
        seen.append(g.exhausted)
        g.judge(1.0, 1.0)
    assert seen == [False, False, False, True]


def test_state_survives_json():
    one, two = guard(spike_factor=4.0), guard(spike_factor=4.0)
    for _ in range(12):
        one.judge(1.0, 1.0)
    one.judge(math.nan, 1.0)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.judge(5.0, 1.0) == one.judge(5.0, 1.0) is not None
    assert (two.skipped, two.in_a_row) == (2, 2)
