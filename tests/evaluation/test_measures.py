"""What the measures share, and what no whole evaluation shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colaworld.evaluation.measures import MEASURES
from colaworld.evaluation.measures.fidelity import by_motion, error_against_copy
from colaworld.evaluation.measures.measure import Headline, Measure, Setting
from colaworld.evaluation.rollouts import VARIANTS
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.metrics.image import PSNR_CAP

SETTING = Setting(4, None, EvaluationConfig(bootstrap_samples=20), np.random.default_rng(0))


def test_every_measure_asks_for_rollouts_that_exist():
    for measure in MEASURES.values():
        assert set(measure.variants) <= {*VARIANTS, "copy"}, measure


def test_an_empty_measure_adds_nothing():
    measure = Measure(SETTING)
    assert measure.result() == {} and measure.shown() == {} and measure.headline({}) is None


def test_rows_are_kept_in_order():
    measure = Measure(SETTING)
    measure.keep(a=np.array([1, 2]), b=np.zeros((2, 3)))
    measure.keep(a=np.array([3]))
    assert measure.kept("a").tolist() == [1, 2, 3] and measure.kept("b").shape == (2, 3)


def test_what_is_shared_is_made_and_held_once():
    setting = Setting(4, None, EvaluationConfig(), np.random.default_rng(0))
    one, two, made = Measure(setting), Measure(setting), []
    for first in (0, 2):
        for measure in (one, two):
            measure.share(
                first, a=lambda first=first: made.append(first) or torch.full((2,), first)
            )
    assert made == [0, 2]
    assert one.kept("a").tolist() == two.kept("a").tolist() == [0, 0, 2, 2]
    two.keep(a=np.array([5]))  # its own
    assert one.kept("a").size == 4 and two.kept("a").tolist() == [5]


def test_an_interval_of_its_own_generator_leaves_the_shared_one_alone():
    before = SETTING.rng.bit_generator.state
    values, episodes = np.arange(6.0), np.arange(6)
    of_values = SETTING.interval(values, episodes, rng=np.random.default_rng(1))
    of_rows = SETTING.interval(
        lambda rows: values[rows].mean(), episodes, rng=np.random.default_rng(1)
    )
    assert of_values == of_rows and of_values["mean"] == 2.5
    assert SETTING.rng.bit_generator.state == before


def test_squared_errors_are_pooled_and_nothing_is_said_where_nothing_moves():
    found, copy = np.array([[20.0], [10.0]]), np.array([[10.0], [10.0]])
    assert error_against_copy(found, copy) == pytest.approx(0.11 / 0.2)
    assert np.isnan(error_against_copy(found, np.full((2, 1), PSNR_CAP)))


def test_frames_where_the_view_stands_are_told_apart():
    found = np.array([[20.0, 18.0], [30.0, 19.0], [22.0, 17.0]])
    copy = np.array([[16.0, 12.0], [40.0, 25.0], [26.0, 14.0]])
    told = by_motion(found, copy)
    assert told["still"] == {
        "frames_by_horizon": [2, 0],
        "psnr_by_horizon": [26.0, None],
        "copy_psnr_by_horizon": [33.0, None],
    }
    assert told["moved"] == {
        "frames_by_horizon": [1, 3],
        "psnr_by_horizon": [20.0, 18.0],
        "copy_psnr_by_horizon": [16.0, 17.0],
    }


def test_a_headline_as_text():
    assert Headline("x", 1.5, 1.2, 1.8, "dB").text() == "1.50 dB [1.20, 1.80]"
    assert Headline("x", 0.12345, digits=4).text() == "0.1235"
    assert Headline("x", None, note="no such number").text() == "-"
