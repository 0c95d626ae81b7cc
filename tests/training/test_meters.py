"""Gradient norms per part and speed, against numbers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from colaworld.training.config import TrainingConfig
from colaworld.training.meters import Throughput, gradient_norms
from colaworld.training.optimizer import PhaseOptimizer
from colaworld.training.phases import Phase


def test_gradient_norms_by_hand():
    model = nn.Module()
    model.a, model.b = nn.Linear(2, 1), nn.Linear(1, 1)
    optimizer = PhaseOptimizer(model, Phase("p", "flow", ("a", "b"), 1), TrainingConfig())
    model.a.weight.grad = torch.tensor([[2.0, 3.0]])
    model.a.bias.grad = torch.tensor([6.0])
    assert gradient_norms(optimizer) == {"a": pytest.approx(7.0), "b": 0.0}


def test_throughput_over_a_window():
    speed = Throughput(window=2)
    assert speed.clips_per_second == 0
    for seconds, clips in ((100.0, 1), (0.5, 8), (1.5, 8)):
        speed.update(seconds, clips)
    assert speed.clips_per_second == pytest.approx(8.0)
