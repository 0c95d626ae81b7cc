"""Codebook health against values worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from colaworld.metrics.codebook import KEYS, CodebookMeter, codebook_health


def test_uniform_codes_are_exactly_healthy():
    k = 8
    indices = torch.cartesian_prod(torch.arange(k), torch.arange(k))  # every pair once
    health = codebook_health(indices, codebook_size=k)
    for part in (health, *health["positions"]):
        assert part["utilisation"] == 1.0
        assert part["max_usage"] == pytest.approx(1 / k)
        assert part["entropy_normalised"] == pytest.approx(1.0)
        assert part["perplexity"] == pytest.approx(k)
    assert health["joint"]["perplexity"] == pytest.approx(k * k)
    assert health["joint"]["entropy_normalised"] == pytest.approx(1.0)


def test_one_code_is_exactly_collapsed():
    health = codebook_health(torch.full((100, 2), 3), codebook_size=16)
    expected = {"max_usage": 1.0, "entropy_normalised": 0.0, "perplexity": 1.0}
    for part in (health, *health["positions"], health["joint"]):
        assert {key: part[key] for key in expected} == expected
    assert health["utilisation"] == 1 / 16
    assert health["joint"]["utilisation"] == 1 / 100  # of the 100 pairs a sample of 100 could show


def test_a_skewed_sample_by_hand():
    # position 0: codes 0, 0, 0, 1 of 4; position 1: always 2
    indices = torch.tensor([[0, 2], [0, 2], [0, 2], [1, 2]])
    health = codebook_health(indices, codebook_size=4)
    h = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    first = health["positions"][0]
    assert first["utilisation"] == 0.5
    assert first["max_usage"] == 0.75
    assert first["entropy_normalised"] == pytest.approx(h / math.log(4))
    assert first["perplexity"] == pytest.approx(math.exp(h))
    assert health["entropy_normalised"] == pytest.approx(h / math.log(4) / 2)  # mean of h and 0
    assert health["joint"]["utilisation"] == 0.5  # 2 pairs of min(16, 4)
    assert health["joint"]["entropy_normalised"] == pytest.approx(h / (2 * math.log(4)))


def test_correlated_tokens_show_only_in_the_joint_numbers():
    codes = torch.arange(8).repeat(10)
    health = codebook_health(torch.stack([codes, codes], dim=1), codebook_size=8)
    assert health["entropy_normalised"] == pytest.approx(1.0)
    assert health["joint"]["entropy_normalised"] == pytest.approx(0.5)
    assert health["joint"]["perplexity"] == pytest.approx(8.0)


def test_many_tokens_do_not_overflow():
    indices = torch.stack([torch.zeros(40, dtype=torch.int64), torch.full((40,), 1023)])
    health = codebook_health(indices, codebook_size=1024)  # 1024^40 combinations
    assert health["joint"]["perplexity"] == pytest.approx(2.0)


def test_health_is_json_with_exact_keys():
    health = json.loads(json.dumps(codebook_health(torch.tensor([[0], [1]]), codebook_size=2)))
    assert set(health) == {*KEYS, "positions", "joint"}
    assert set(health["joint"]) == set(health["positions"][0]) == set(KEYS)


def test_codebook_of_one_is_not_a_division_by_zero():
    assert codebook_health(torch.zeros(3, 1, dtype=torch.int64), codebook_size=1) == {
        "utilisation": 1.0,
        "max_usage": 1.0,
        "entropy_normalised": 0.0,
        "perplexity": 1.0,
        "positions": [
            {"utilisation": 1.0, "max_usage": 1.0, "entropy_normalised": 0.0, "perplexity": 1.0}
        ],
        "joint": {
            "utilisation": 1.0,
            "max_usage": 1.0,
            "entropy_normalised": 0.0,
            "perplexity": 1.0,
        },
    }


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"\[M, N\]"),
        (torch.zeros(3, 1), "integers"),
        (torch.tensor([[4]]), r"\[0, 4\)"),
        (torch.tensor([[-1]]), r"\[0, 4\)"),
        (torch.zeros(0, 2, dtype=torch.int64), "at least one"),
    ],
)
def test_wrong_indices_are_named(indices, message):
    with pytest.raises(ValueError, match=message):
        codebook_health(indices, codebook_size=4)


def test_meter_counts_the_latest_window_only():
    meter = CodebookMeter(4, 1, window=4)
    with pytest.raises(ValueError, match="update"):
        meter.health()
    meter.update(torch.tensor([[0], [0], [0]]))
    assert len(meter) == 3
    assert meter.health()["perplexity"] == 1.0
    meter.update(torch.tensor([[1], [2], [3]]))  # window: 0 1 2 3
    assert len(meter) == 4
    assert meter.health()["utilisation"] == 1.0
    assert meter.counts().tolist() == [[1, 1, 1, 1]]
    meter.update(torch.tensor([[2]] * 9))  # longer than the window
    assert meter.health()["max_usage"] == 1.0


def test_meter_equals_the_health_of_the_tail():
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(0, 16, (301, 2), generator=generator)
    meter = CodebookMeter(16, 2, window=100)
    for chunk in stream.split(7):
        meter.update(chunk)
    assert meter.health() == codebook_health(stream[-100:], codebook_size=16)


@pytest.mark.parametrize("before", [0, 3, 23])
def test_a_restored_meter_goes_on_identically(before):
    generator = torch.Generator().manual_seed(before)
    meter = CodebookMeter(8, 2, window=10)
    if before:
        meter.update(torch.randint(0, 8, (before, 2), generator=generator))
        meter.update(torch.randint(0, 8, (4, 2), generator=generator))
    other = CodebookMeter(8, 2, window=10)
    other.update(torch.zeros(5, 2, dtype=torch.int64))
    other.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    assert len(other) == len(meter)
    more = torch.randint(0, 8, (5, 2), generator=generator)
    meter.update(more)
    other.update(more)
    assert meter.health() == other.health()
    assert meter.state_dict() == other.state_dict()


def test_a_meter_refuses_the_state_of_another_shape():
    state = CodebookMeter(8, 2, window=10).state_dict()
    with pytest.raises(ValueError, match="codebook_size"):
        CodebookMeter(4, 2, window=10).load_state_dict(state)
