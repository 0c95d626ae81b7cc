"""Averaged weights by hand."""

from __future__ import annotations

import torch
from torch import nn

from colaworld.training.ema import WeightAverage


def model():
    result = nn.Module()
    result.a, result.b = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)
    result.b.requires_grad_(False)
    return result


def test_average_by_hand_and_frozen_parts_live():
    m = model()
    m.a.weight.data.fill_(0.0)
    average = WeightAverage(m, decay=0.5)
    m.a.weight.data.fill_(1.0)
    m.b.running_mean.fill_(7.0)
    average.update()  # decay min(.5, 2/11)
    average.update()  # decay min(.5, 3/12)
    left = (2 / 11) * (3 / 12)
    weights = average.weights()
    torch.testing.assert_close(weights["a.weight"], torch.full((1, 1), 1 - left))
    assert weights["b.running_mean"].item() == 7.0
    assert set(weights) == set(m.state_dict())
    assert m.a.weight.item() == 1.0


def test_decay_reaches_its_value():
    m = model()
    m.a.weight.data.fill_(0.0)
    average = WeightAverage(m, decay=0.5)
    average.load(average.weights(), updates=1000)
    m.a.weight.data.fill_(1.0)
    average.update()
    assert average.weights()["a.weight"].item() == 0.5


def test_load_restores():
    m = model()
    one, two = WeightAverage(m, 0.9), WeightAverage(m, 0.9)
    m.a.weight.data.fill_(3.0)
    one.update()
    two.load(one.weights(), one.updates)
    m.a.weight.data.fill_(-1.0)
    one.update()
    two.update()
    assert torch.equal(one.weights()["a.weight"], two.weights()["a.weight"])
