"""The warm-up gate and the collapse alarm on sequences whose answer is known; health over a phase."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from colaworld.config import ConfigError
from colaworld.training.codebook_monitor import CollapseAlarm, HealthMeter, WarmupGate, fitted_slope
from colaworld.training.config import AlarmConfig, GateConfig


def opens_at(entropies, config, every=10):
    gate = WarmupGate(config)
    for check, entropy in enumerate(entropies, start=1):
        if gate.update(check * every, entropy):
            return check * every
    return None


def test_fitted_slope_of_a_line_and_by_hand():
    assert fitted_slope([(x, 3 * x - 1) for x in range(5)]) == pytest.approx(3)
    # means (1, 2): ((-1)(-1) + 0 + (1)(2)) / 2 with y - mean = -1, -1, 2 -> (1 + 2) / 2
    assert fitted_slope([(0, 1), (1, 1), (2, 4)]) == pytest.approx(1.5)
    assert fitted_slope([(4, 1), (4, 9)]) == 0


def test_high_and_level_opens_when_the_window_is_full():
    config = GateConfig(entropy=0.8, window=50, max_drift=0.02, min_steps=0)
    assert opens_at([0.9] * 20, config) == 60  # first check at 10, a window of 50 after it


def test_never_before_the_minimum():
    config = GateConfig(entropy=0.8, window=50, max_drift=0.02, min_steps=120)
    assert opens_at([0.9] * 20, config) == 120


def test_low_or_moving_entropy_keeps_it_shut():
    config = GateConfig(entropy=0.8, window=50, max_drift=0.02, min_steps=0)
    assert opens_at([0.7] * 50, config) is None
    assert opens_at([0.8 + 0.005 * i for i in range(40)], config) is None  # drift .025 a window
    rising = [0.02 * i for i in range(45)] + [0.9] * 20  # up to .88 at step 450, level after it
    opened = opens_at(rising, config)
    assert 480 <= opened <= 510
    assert opens_at([0.9] * 5 + [0.5] + [0.9] * 2, config) is None


def test_gate_state_survives_json():
    config = GateConfig(entropy=0.8, window=50, max_drift=0.02, min_steps=0)
    one, two = WarmupGate(config), WarmupGate(config)
    for step in (10, 20, 30, 40, 50):
        assert not one.update(step, 0.9)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert one.update(60, 0.9) is True
    assert two.update(60, 0.9) is True
    assert two.passed


def test_alarm_counts_checks_in_a_row():
    alarm = CollapseAlarm(AlarmConfig(floor=0.3, checks=3, action="stop"))
    answers = [alarm.update(e) for e in (0.2, 0.2, 0.31, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)]
    assert answers == [None] * 5 + ["stop", None, None, "stop"]


def test_alarm_state_survives_json():
    config = AlarmConfig(floor=0.3, checks=3, action="rollback")
    one, two = CollapseAlarm(config), CollapseAlarm(config)
    one.update(0.1)
    one.update(0.1)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.update(0.1) == "rollback"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: GateConfig(entropy=1.5), "gate.entropy"),
        (lambda: GateConfig(window=0), "gate.window"),
        (lambda: AlarmConfig(checks=0), "alarm.checks"),
        (lambda: AlarmConfig(action="panic"), "alarm.action"),
    ],
)
def test_bad_settings_are_named(make, name):
    with pytest.raises(ConfigError, match=name):
        make()


def test_health_is_kept_between_checks_and_resumes():
    meter = HealthMeter(4, 1, window=4)
    assert meter.measure() is None and meter.latest is None
    meter.update(torch.tensor([[0], [1]]))
    assert not meter.full
    assert meter.measure()["entropy_normalised"] == pytest.approx(math.log(2) / math.log(4))
    meter.update(torch.tensor([[2], [3]]))
    assert meter.full
    assert meter.latest["perplexity"] == pytest.approx(2)  # not measured again yet
    other = HealthMeter(4, 1, window=4)
    other.load_state_dict(meter.state_dict())
    assert other.latest == meter.latest and other.full
    assert other.measure()["perplexity"] == pytest.approx(4)
    assert other.counts().tolist() == [[1, 1, 1, 1]]


def test_a_gate_on_control_waits_for_it():
    config = GateConfig(entropy=0.8, window=20, max_drift=0.02, min_steps=0, control=0.1)
    gate = WarmupGate(config)
    assert not any(gate.update(step, 0.9, 0.09) for step in range(10, 110, 10))
    assert gate.update(110, 0.9, 0.11)
    ignoring = WarmupGate(replace(config, control=0.0))
    assert [ignoring.update(step, 0.9, -0.01) for step in (10, 20, 30)] == [False, False, True]
    unmeasured = WarmupGate(config)
    assert [unmeasured.update(step, 0.9) for step in (10, 20, 30)] == [False, False, True]


def test_what_counts_as_collapsed_at_the_end_of_a_phase():
    gate = WarmupGate(GateConfig(floor=0.3, control_floor=0.01))
    for control in (0.0, -0.01):  # not looked at: noise around nothing is below 0, too
        assert WarmupGate(GateConfig()).collapsed(0.9, control) is None
    assert gate.collapsed(0.31) is None and gate.collapsed(0.31, 0.02) is None
    assert "entropy 0.290 is under gate.floor 0.3" in gate.collapsed(0.29, 0.5)
    assert "control 0.0090 is under gate.control_floor 0.01" in gate.collapsed(0.9, 0.009)


def test_codes_that_steer_nothing_raise_the_alarm_however_even():
    alarm = CollapseAlarm(AlarmConfig(floor=0.3, checks=2, control_floor=0.05, action="stop"))
    assert [alarm.update(0.9, c) for c in (0.04, 0.06, 0.01, 0.02)] == [None, None, None, "stop"]
    control_alone = CollapseAlarm(
        AlarmConfig(floor=0.0, checks=1, control_floor=0.05, action="stop")
    )
    assert control_alone.update(0.0, 0.06) is None and control_alone.update(0.9, 0.04) == "stop"
    ignoring = CollapseAlarm(AlarmConfig(floor=0.3, checks=1, action="stop"))
    assert ignoring.update(0.9, 0.0) is None and ignoring.update(0.9, -0.01) is None


def test_the_last_control_survives_json():
    one, two = HealthMeter(4, 1, 8), HealthMeter(4, 1, 8)
    one.control = 0.25
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.control == 0.25
    early = one.state_dict()
    del early["control"]  # of a checkpoint before it was measured
    two.load_state_dict(early)
    assert two.control is None
