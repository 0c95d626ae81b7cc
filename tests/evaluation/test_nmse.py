"""NMSE by hand, on frames of one grey value each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colaworld.contracts import LatentActions
from colaworld.evaluation.measures.measure import Setting
from colaworld.evaluation.measures.nmse import NMSE
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import EvaluationConfig

SETTING = Setting(4, None, EvaluationConfig(bootstrap_samples=50), np.random.default_rng(0))


def grey(values):
    """[b, n] -> [b, n, 3, 2, 2]"""
    return torch.tensor(values)[:, :, None, None, None].expand(-1, -1, 3, 2, 2)


def measured(*batches):
    """The result over batches of (episodes, given, truth, predicted)."""
    measure = NMSE(SETTING)
    for episodes, given, truth, predicted in batches:
        given = grey([[g] for g in given])
        rollouts = {
            "inferred": torch.cat([given, grey(predicted)], 1),
            "copy": given.expand(-1, 1 + len(truth[0]), -1, -1, -1),
        }
        latent = LatentActions(torch.zeros(len(episodes), 2, 1, 1))
        frames = torch.zeros(len(episodes), 3, 3, 2, 2, dtype=torch.uint8)
        measure.update(Batch(0, frames, np.array(episodes), latent, None, 1, grey(truth), rollouts))
    return measure.result()


def test_by_hand():
    found = measured(
        ([0], [0.0], [[0.5, 0.5]], [[0.4, 0.3]]),  # errors .01 .04, motion .25 .25
        ([1], [0.5], [[0.5, 0.7]], [[0.6, 0.7]]),  # errors .01 .00, motion .00 .04
    )["nmse"]
    assert found["mean"] == pytest.approx(0.06 / 0.54)
    assert found["by_horizon"] == pytest.approx([0.02 / 0.25, 0.04 / 0.29])
    assert found["low"] == pytest.approx(0.05 / 0.50)  # the first episode twice
    assert found["high"] == pytest.approx(0.01 / 0.04)  # the second


def test_copying_scores_one_and_nothing_is_said_where_nothing_moves():
    copied = measured(([0, 1], [0.1, 0.2], [[0.3, 0.4]] * 2, [[0.1, 0.1], [0.2, 0.2]]))
    assert copied["nmse"]["mean"] == pytest.approx(1)
    assert NMSE.headline(copied).judgement.word == "not clear"
    still = measured(([0, 1], [0.5, 0.5], [[0.5, 0.5]] * 2, [[0.4, 0.5]] * 2))
    assert np.isnan(still["nmse"]["mean"])


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.2, 0.4, "beats copying"),
        (0.8, 1.1, "not clear"),
        (1.1, 1.4, "loses"),
        (None, None, "open"),
    ],
)
def test_the_words_follow_the_interval(low, high, word):
    found = {"mean": 0.3, "low": low, "high": high, "by_horizon": [0.2, 0.4]}
    headline = NMSE.headline({"nmse": found})
    assert headline.better == "lower" and headline.judgement.word == word
    assert "0.20 at step 1, 0.40 at step 2" in headline.note


def test_an_older_evaluation_has_no_such_number():
    assert NMSE.headline({"delta_psnr": {}}) is None
    unknown = NMSE.headline(
        {"nmse": dict.fromkeys(("mean", "low", "high")) | {"by_horizon": [None]}}
    )
    assert unknown.value is None and "do not move" in unknown.judgement.text
