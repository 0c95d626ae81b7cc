"""Probes on data with a known linear answer, scores by hand, and the split by episode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colaworld.metrics.config import ProbeConfig
from colaworld.metrics.mlp_probe import mlp_probe
from colaworld.metrics.probe import (
    ProbePrediction,
    accuracy,
    chance_probe,
    linear_probe,
    logistic_regression,
    macro_f1,
    pixel_differences,
    principal_components,
    r_squared,
    ridge_regression,
    split_by_episode,
)

CONFIG = ProbeConfig()


def test_scores_by_hand():
    predicted, target = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    assert accuracy(predicted, target) == 0.5
    # class 0: 2*1/(2+1); class 1: 2*1/(2+2); class 2: 0
    assert macro_f1(predicted, target) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    y = np.array([[0.0, 5.0], [2.0, 5.0]])  # the second dimension never varies: left out
    assert r_squared(np.array([[0.5, 0.0], [2.0, 0.0]]), y) == pytest.approx(1 - 0.25 / 2)
    assert r_squared(np.ones((2, 2)), y) == pytest.approx(0.0)
    assert np.isnan(r_squared(y[:, 1:], y[:, 1:]))


def test_no_episode_is_on_both_sides():
    episodes = np.repeat(np.arange(9), 5)
    train, test = split_by_episode(episodes, test_share=1 / 3, generator=np.random.default_rng(0))
    assert not set(episodes[train]) & set(episodes[test])
    assert len(set(episodes[test])) == 3
    assert sorted([*train, *test]) == list(range(45))
    with pytest.raises(ValueError, match="at least 2 episodes"):
        split_by_episode(np.zeros(5), test_share=0.5, generator=np.random.default_rng(0))


def test_ridge_regression_by_hand():
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    weight = ridge_regression(x, 3 * x, ridge=0.5)
    assert float(weight) == pytest.approx(3 / 1.5)


def test_a_linear_continuous_action_is_found():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    y = x @ torch.randn(6, 2, generator=generator) * 100 + 7
    rows = np.arange(400)
    found = linear_probe(x, y, rows[:200], rows[200:], kind="continuous", config=CONFIG)
    assert found.score() > 0.999
    assert found.l1() < 0.02
    chance = chance_probe(y, rows[:200], rows[200:], kind="continuous")
    assert -0.2 < chance.score() <= 0.0
    assert found.target.std() == pytest.approx(1.0, abs=0.15)  # standardised
    noise = linear_probe(
        torch.randn(400, 6, generator=generator),
        y,
        rows[:200],
        rows[200:],
        kind="continuous",
        config=CONFIG,
    )
    assert noise.score() < 0.05


def test_a_linear_discrete_action_is_found():
    generator = torch.Generator().manual_seed(1)
    centres = torch.eye(4) * 4
    y = torch.randint(0, 4, (300,), generator=generator)
    x = centres[y] + torch.randn(300, 4, generator=generator) * 0.3
    rows = np.arange(300)
    found = linear_probe(x, y, rows[:150], rows[150:], kind="discrete", config=CONFIG)
    assert found.score() == 1.0
    assert found.macro_f1() == 1.0
    assert found.score(np.array([0, 0, 1])) == 1.0


def test_chance_is_the_majority_of_the_training_rows():
    y = torch.tensor([2, 2, 0, 0, 0, 2])
    chance = chance_probe(y, np.array([0, 1, 2]), np.array([3, 4, 5]), kind="discrete")
    assert chance.predicted.tolist() == [2, 2, 2]
    assert chance.score() == pytest.approx(1 / 3)


def test_logistic_regression_reaches_its_optimum():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (100,), generator=generator)
    weight, bias = logistic_regression(x, y, classes=3, ridge=0.01, iterations=200)
    residual = torch.softmax(x @ weight + bias, -1) - torch.nn.functional.one_hot(y, 3)
    gradient = x.T @ residual / 100 + 2 * 0.01 * weight
    assert float(gradient.abs().max()) < 1e-5
    assert float(residual.mean(0).abs().max()) < 1e-5


def test_a_class_that_only_the_test_rows_have_is_simply_missed():
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 3, 3])
    found = linear_probe(x, y, np.arange(4), np.arange(4, 6), kind="discrete", config=CONFIG)
    assert found.score() == 0.0


def test_pixel_differences_by_hand():
    frames = torch.zeros(1, 2, 3, 4, 4)
    frames[0, 1, 0, 0, 0], frames[0, 1, 0, 0, 1] = 1.0, -1.0
    feature = pixel_differences(frames, grid=2).reshape(2, 3, 2, 2)
    assert float(feature[0, 0, 0, 0]) == 0.0  # signed: +1 and -1 cancel in the cell
    assert float(feature[1, 0, 0, 0]) == 0.5  # absolute: 2 of 4 pixels
    assert float(feature.abs().sum()) == 0.5
    assert pixel_differences(torch.zeros(2, 5, 3, 28, 36), grid=12).shape == (2, 4, 2 * 3 * 144)


def test_principal_components_keep_the_rank_only():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 2, generator=generator) @ torch.randn(2, 9, generator=generator)
    out = principal_components(x, np.arange(50), components=5)
    assert out.shape == (50, 2)
    assert float(out[:, 0].var()) > float(out[:, 1].var())
    total = float((x - x.mean(0)).square().sum())
    assert float(out.square().sum()) == pytest.approx(total, rel=1e-5)
    assert principal_components(torch.ones(4, 3), np.arange(4), components=2).shape == (4, 1)


@pytest.mark.parametrize(
    ("features", "actions", "kind", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4), "discrete", "integer classes"),
        (torch.zeros(4, 2), torch.zeros(4), "continuous", r"\[M, A\]"),
        (torch.zeros(3, 2), torch.zeros(4, 1), "continuous", "one row per action"),
        (torch.full((4, 2), torch.nan), torch.zeros(4, 1), "continuous", "finite"),
        (torch.zeros(4, 2), torch.zeros(4, 1), "other", "kind"),
    ],
)
def test_wrong_rows_are_named(features, actions, kind, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(features, actions, np.arange(2), np.arange(2, 4), kind=kind, config=CONFIG)


def network(x, y, *, kind, rows=400, seed=0):
    return mlp_probe(
        x,
        y,
        np.arange(rows // 2),
        np.arange(rows // 2, rows),
        episodes=np.arange(rows) // 20,
        kind=kind,
        config=CONFIG,
        generator=np.random.default_rng(seed),
    )


def test_a_network_reads_what_no_line_does():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 2, generator=generator)
    y = (x.prod(dim=1) > 0).long()  # the sign of a product: exclusive or
    rows = np.arange(800)
    line = linear_probe(x, y, rows[:400], rows[400:], kind="discrete", config=CONFIG)
    assert line.score() < 0.65
    found = network(x, y, kind="discrete", rows=800)
    assert found.score() > 0.93
    assert np.array_equal(network(x, y, kind="discrete", rows=800).predicted, found.predicted)
    other = network(x, y, kind="discrete", rows=800, seed=1)
    assert not np.array_equal(other.predicted, found.predicted) and other.score() > 0.93
    squares = network(x, 100 * x.square() + 7, kind="continuous", rows=800)
    assert squares.score() > 0.8  # no line reads anything of a square


def test_shuffled_actions_score_chance():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 4, generator=generator)
    y = x[:, :2].argmax(dim=1) + (x[:, 0] > 1).long()
    y = y[torch.randperm(400, generator=generator)]
    rows = np.arange(400)
    chance = chance_probe(y, rows[:200], rows[200:], kind="discrete").score()
    line = linear_probe(x, y, rows[:200], rows[200:], kind="discrete", config=CONFIG)
    assert line.score() == pytest.approx(chance, abs=0.1)
    assert network(x, y, kind="discrete").score() == pytest.approx(chance, abs=0.1)
    vectors = torch.randn(400, 2, generator=generator)
    assert -0.2 < network(x, vectors, kind="continuous").score() < 0.05


def test_a_network_needs_two_training_episodes():
    x, y = torch.randn(40, 2), torch.arange(40) % 2
    with pytest.raises(ValueError, match="at least 2 episodes"):
        network(x, y, kind="discrete", rows=40)


def test_parts_by_hand():
    found = ProbePrediction("discrete", np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), None)
    assert found.recall(0) == 0.5 and found.recall(1) == pytest.approx(2 / 3)
    assert np.isnan(found.recall(2)) and found.recall(1, np.array([1, 1, 2])) == pytest.approx(
        1 / 3
    )
    # a target of spread 3 in its units, read exactly up to the ridge; and one that never helps
    x = torch.linspace(-1, 1, 200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    y = torch.stack([3 * x / x.std(unbiased=False), x.square()], dim=1)
    rows = np.arange(200)
    both = linear_probe(x[:, None], y, rows[::2], rows[1::2], kind="continuous", config=CONFIG)
    assert both.spread == pytest.approx(y[::2].std(dim=0, unbiased=False).numpy())
    assert both.of_dimension(0).score() > 0.99 and abs(both.of_dimension(1).score()) < 0.1
    assert both.score() == pytest.approx(
        (both.of_dimension(0).score() + both.of_dimension(1).score()) / 2
    )
    assert both.of_dimension(1).spread == pytest.approx(both.spread[1:])
