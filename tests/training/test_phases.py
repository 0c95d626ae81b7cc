"""Phases: what they check, and what entering one freezes."""

from __future__ import annotations

import pytest
from torch import nn

from colaworld.config import ConfigError
from colaworld.training.config import AlarmConfig, GateConfig
from colaworld.training.phases import Phase, check_phases, enter_phase


def phase(name="warmup", train=("a",), **more):
    return Phase(name, "flow", train, 10, **more)


def model():
    result = nn.Module()
    result.a = nn.Linear(2, 2)
    result.b = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    return result


def test_ramp_is_linear_then_constant():
    p = Phase("p", "flow", ("a",), 1000, lr_warmup_steps=4)
    assert [p.lr_factor(n) for n in (1, 2, 3, 4, 5, 100)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert phase(lr_warmup_steps=0).lr_factor(1) == 1


def test_cooldown_falls_to_a_tenth_at_the_last_step():
    p = Phase("p", "flow", ("a",), 100, lr_warmup_steps=0, cooldown_steps=10)
    assert [p.lr_factor(n) for n in (1, 90, 95, 100)] == pytest.approx([1, 1, 0.55, 0.1])


def test_a_capped_phase_cools_down_at_its_own_end():
    p = Phase("p", "flow", ("a",), 100, lr_warmup_steps=0, cooldown_steps=10)
    assert p.capped(None) == p.capped(100) == p
    assert [p.capped(20).lr_factor(n) for n in (10, 15, 20)] == pytest.approx([1, 0.55, 0.1])
    assert p.capped(4).cooldown_steps == 4


def test_rate_of_a_part():
    p = phase(train=("a", "b"), learning_rate=2e-3, lr_multipliers=(("b", 0.1),))
    assert p.rate("a") == 2e-3
    assert p.rate("b") == pytest.approx(2e-4)


def test_entering_freezes_and_thaws():
    m = model()
    enter_phase(m, phase(train=("a",)))
    assert m.a.training and not m.b.training and not m.b[1].training
    assert all(p.requires_grad for p in m.a.parameters())
    assert not any(p.requires_grad for p in m.b.parameters())
    enter_phase(m, phase(train=("b",)))
    assert m.b[1].training and not m.a.training
    assert all(p.requires_grad for p in m.b.parameters())
    assert not any(p.requires_grad for p in m.a.parameters())


def test_what_does_not_fit_is_named():
    m = model()
    check_phases([phase()], m, ["flow"])
    rollback = AlarmConfig(action="rollback", rewarm_phase="nowhere")
    for phases, match in (
        ([], "at least one"),
        ([phase(), phase()], "unique"),
        ([phase(train=("idm",))], "no part 'idm'; its parts: a, b"),
        ([Phase("w", "cola", ("a",), 1)], "no objective 'cola'; known: flow"),
        ([phase(alarm=rollback)], "nowhere"),
    ):
        with pytest.raises(ConfigError, match=match):
            check_phases(phases, m, ["flow"])
    with pytest.raises(ConfigError, match=r"cooldown_steps: expected 0 .. steps \(10\), got 11"):
        check_phases([phase(cooldown_steps=11)], m, ["flow"])
    m.own = nn.Parameter(m.a.bias.detach().clone())
    with pytest.raises(ConfigError, match="own"):
        check_phases([phase()], m, ["flow"])


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"train": ()}, "train"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"lr_warmup_steps": -1}, "lr_warmup_steps"),
        ({"cooldown_steps": -1}, "cooldown_steps"),
        ({"lr_multipliers": (("b", 0.1),)}, "lr_multipliers.*'b'"),
    ],
)
def test_bad_phases_are_named(more, match):
    with pytest.raises(ConfigError, match=match):
        phase(**more)


def test_a_codebook_that_starts_anew_needs_a_phase_that_trains_it():
    m = model()
    m.quantizer = nn.Linear(2, 2)
    first = phase("one", gate=GateConfig(missed="reseed"))
    check_phases([first, phase("two", ("a", "quantizer"))], m, ["flow"])
    with pytest.raises(ConfigError, match="'two' does not train the quantizer"):
        check_phases([first, phase("two")], m, ["flow"])
