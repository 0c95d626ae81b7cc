"""AdamW per phase against the update written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from colaworld.models.latent_action.quantizers import QUANTIZERS, build_quantizer
from colaworld.training.config import TrainingConfig
from colaworld.training.optimizer import PhaseOptimizer
from colaworld.training.phases import Phase, enter_phase


def model():
    result = nn.Module()
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        layer = nn.Linear(3, 2)
        for parameter in layer.parameters():
            parameter.data.normal_(generator=generator)
        setattr(result, name, layer)
    return result


def fill(m, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in m.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient if parameter.requires_grad else None


TRAINING = TrainingConfig(weight_decay=0.1, betas=(0.9, 0.99))


def test_three_updates_equal_the_formula():
    m = model()
    phase = Phase("p", "flow", ("a", "b"), 9, 0.01, lr_warmup_steps=2, lr_multipliers=(("b", 0.5),))
    enter_phase(m, phase)
    optimizer = PhaseOptimizer(m, phase, TRAINING)
    want = {name: p.detach().double() for name, p in m.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in want.items()}
    second = {name: torch.zeros_like(p) for name, p in want.items()}
    for step in (1, 2, 3):
        fill(m, step)
        optimizer.step(step)
        for name, p in m.named_parameters():
            g = p.grad.double()
            rate = 0.01 * min(1, step / 2) * (0.5 if name.startswith("b") else 1)
            decay = 0.1 if name.endswith("weight") else 0.0
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.99 * second[name] + 0.01 * g * g
            m_hat = first[name] / (1 - 0.9**step)
            v_hat = second[name] / (1 - 0.99**step)
            want[name] = want[name] * (1 - rate * decay) - rate * m_hat / (v_hat.sqrt() + 1e-8)
    for name, p in m.named_parameters():
        torch.testing.assert_close(p.detach().double(), want[name], rtol=1e-5, atol=1e-6)


def test_moments_carry_over_for_what_continues():
    m = model()
    warm = Phase("warm", "flow", ("a",), 9, 0.01)
    joint = Phase("joint", "flow", ("a", "b"), 9, 0.01)
    enter_phase(m, warm)
    one = PhaseOptimizer(m, warm, TRAINING)
    fill(m, 1)
    one.step(1)
    enter_phase(m, joint)
    two = PhaseOptimizer(m, joint, TRAINING, moments=one.moments())
    assert set(two.moments()) == {"a.weight", "a.bias"}
    torch.testing.assert_close(
        two.moments()["a.weight"]["exp_avg"], 0.1 * m.a.weight.grad, rtol=1e-6, atol=0
    )
    fill(m, 2)
    two.step(1)
    assert float(two.moments()["a.weight"]["step"]) == 2
    assert float(two.moments()["b.weight"]["step"]) == 1
    assert float(one.moments()["a.weight"]["step"]) == 1  # a copy, not the same tensor


def test_frozen_parts_do_not_move():
    m = model()
    phase = Phase("p", "flow", ("a",), 9, 0.01)
    enter_phase(m, phase)
    before = m.b.weight.detach().clone()
    optimizer = PhaseOptimizer(m, phase, TRAINING)
    fill(m, 1)
    optimizer.step(1)
    assert torch.equal(m.b.weight, before)
    assert len(optimizer.gradients()) == 2 and len(optimizer.gradients("a")) == 2


def test_tied_parameters_are_stepped_once():
    m = model()
    m.b.weight = m.a.weight
    phase = Phase("p", "flow", ("a", "b"), 9, 0.01)
    enter_phase(m, phase)
    assert set(PhaseOptimizer(m, phase, TRAINING).parameters) == {"a.weight", "a.bias", "b.bias"}


def test_parts_without_parameters_are_named():
    m = model()
    m.c = nn.Identity()
    phase = Phase("p", "flow", ("c",), 9)
    with pytest.raises(ValueError, match=r"'p'.* c have no parameters"):
        PhaseOptimizer(m, phase, TRAINING)


class Codes(nn.Module):
    undecayed = ("codebook",)

    def __init__(self):
        super().__init__()
        self.codebook = nn.Parameter(torch.ones(4, 3))
        self.other = nn.Parameter(torch.ones(4, 3))


def with_codes():
    m = nn.Module()
    m.a = nn.Module()
    m.a.inner = Codes()
    return m


def test_what_a_module_names_undecayed_does_not_decay():
    m = with_codes()
    phase = Phase("p", "flow", ("a",), 9, 0.5, 0)
    optimizer = PhaseOptimizer(m, phase, TRAINING)
    for parameter in m.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(1)
    assert torch.equal(m.a.inner.codebook, torch.ones(4, 3))
    torch.testing.assert_close(m.a.inner.other.detach(), torch.full((4, 3), 1 - 0.5 * 0.1))


def test_no_codebook_of_a_quantizer_decays():
    for kind, count in [("vq", 1), ("nsvq", 1), ("residual", 2), ("ema", 0)]:
        m = nn.Module()
        m.quantizer = build_quantizer(QUANTIZERS[kind].config(), 4)
        m.matrix = nn.Linear(2, 2)
        phase = Phase("p", "flow", ("quantizer", "matrix"), 9)
        groups = PhaseOptimizer(m, phase, TRAINING).adamw.param_groups
        still = {id(p) for g in groups if not g["weight_decay"] for p in g["params"]}
        books = [p for n, p in m.quantizer.named_parameters() if n.endswith("codebook")]
        assert len(books) == count and all(id(p) in still for p in books)
        assert id(m.matrix.weight) not in still


def test_rows_that_moved_begin_again():
    m = with_codes()
    optimizer = PhaseOptimizer(m, Phase("p", "flow", ("a",), 9, 0.01, 0), TRAINING)
    fill(m, 1)
    optimizer.step(1)
    before = {name: {k: v.clone() for k, v in s.items()} for name, s in optimizer.moments().items()}
    optimizer.forget(m.a.inner.codebook, torch.tensor([1, 3]))
    optimizer.forget(nn.Parameter(torch.ones(2, 2)), torch.tensor([0]))  # trains elsewhere
    after = optimizer.moments()
    for kind in ("exp_avg", "exp_avg_sq"):
        value = after["a.inner.codebook"][kind]
        assert not value[[1, 3]].any()
        assert torch.equal(value[[0, 2]], before["a.inner.codebook"][kind][[0, 2]])
        assert torch.equal(after["a.inner.other"][kind], before["a.inner.other"][kind])
    assert float(after["a.inner.codebook"]["step"]) == 1
    # without the old mean a row follows its new gradient alone: (1 - .9) / sqrt(1 - .99) rates,
    # here times sqrt(1 - .99^2) / (1 - .9^2) for the bias of the second step
    start = m.a.inner.codebook.detach().clone()
    fill(m, 2)
    optimizer.step(2)
    moved = start - m.a.inner.codebook.detach()
    length = 0.01 * (0.1 / (1 - 0.9**2)) / (0.01 / (1 - 0.99**2)) ** 0.5
    expected = length * m.a.inner.codebook.grad.sign()
    torch.testing.assert_close(moved[[1, 3]], expected[[1, 3]], rtol=1e-4, atol=1e-6)
