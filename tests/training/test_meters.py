"""Gradient norms per part and speed, against numbers by hand."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from colaworld.training.cards import card_of
from colaworld.training.config import TrainingConfig
from colaworld.training.meters import Moment, Pace, Throughput, Work, gradient_norms, memory_gib
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


class Three:
    """Two processes beside this one, as `Distributed` gathers from them."""

    def gather(self, value):
        seconds, host = value
        return [(2.0, "a"), (seconds, host), (3.0, "c")]


def test_the_process_that_all_wait_for_is_named_once(caplog):
    pace = Pace(Three(), every=2)
    own = [99.0, 1.0, 3.0, 3.9, 8.3, 10.0, 11.0]  # the first step of a session compiles
    told = [pace.update(seconds) for seconds in own]
    assert [one is not None for one in told] == [False, False, True, False, True, False, True]
    assert told[2] == {"rank": 2, "host": "c", "seconds": 3.0, "median": 2.0}
    assert told[4]["rank"] == 1 and told[4]["seconds"] == pytest.approx(6.1)
    assert told[4]["median"] == 3.0 and told[6]["seconds"] == 10.5
    (warned,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warned.startswith("rank 1 (") and "takes 6.10 s for its share" in warned


def test_moments_are_in_order():
    first = Moment(torch.device("cpu"))
    second = Moment(torch.device("cpu"))
    assert second.since(first) >= 0 >= first.since(second)


def test_speed_in_tokens_and_as_a_share_of_the_peak():
    work = Work(tokens=100, flops={"joint": 2e9}, peak=1e12)
    told = work.speed("joint", clips=50, seconds=0.5, devices=2)
    assert told == {"clips_per_second": 100, "tokens_per_second": 10_000, "mfu": 0.1}
    assert work.speed("warmup", 50, 0.5, 2).keys() == {"clips_per_second", "tokens_per_second"}
    assert Work().speed("joint", 50, 0.5, 1) == {"clips_per_second": 100}


def test_memory_of_this_process():
    before = memory_gib(torch.device("cpu"))
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert 0.2 < memory_gib(torch.device("cpu")) - before < 0.3 and held.sum() > 0


def test_cards_by_the_names_that_torch_gives_them():
    names = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB")
    assert [card_of(name).name for name in names] == ["h200", "h100", "h100-pcie", "a100"]
    assert card_of("NVIDIA A100-SXM4-40GB").memory == 40 and card_of("Tesla T4") is None
