"""What an adapted world is worth under recorded actions, on a world whose every PSNR is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from colaworld.contracts import ActionSpec, ClipBatch, LatentActions, Rollout
from colaworld.evaluation.adaptation import scores, summary, table
from colaworld.evaluation.evaluate import run_evaluation
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.evaluation.tables import headlines

ERRORS = {0: 0.1, 1: 0.01}  # a code adds its error to the next frame, which never changes


class Erring:
    """It infers code 1 always, so that inferred actions are at 40 dB; code 0 is at 20 dB."""

    codebook_size, tokens, dim, frame_size = 2, 1, 1, None
    obeys = True

    def infer_actions(self, frames):
        indices = torch.ones(*frames.shape[:2], 1, dtype=torch.int64)[:, 1:]
        return LatentActions(self.lookup(indices), indices)

    def lookup(self, indices):
        return indices[..., None].float()

    def rollout(self, history, codes, *, generator):
        h = history.shape[1]
        wrong = torch.where(codes[:, h - 1 :, 0, 0] > 0.5, ERRORS[1], ERRORS[0])
        made = history[:, -1:] + wrong[..., None, None, None]
        return Rollout(torch.cat([history, made], dim=1), h)

    def follow(self, history, actions, *, generator):
        return self.rollout(history, self.lookup(actions[..., None]), generator=generator)


def clips(actions) -> ClipBatch:
    actions = torch.as_tensor(actions)
    count, steps = actions.shape
    frames = torch.full((count, steps + 1, 3, 16, 16), 51, dtype=torch.uint8)
    return ClipBatch(frames, torch.arange(count), torch.zeros(count, dtype=torch.int64), actions)


CONFIG = EvaluationConfig(clips=4, probe_clips=4, horizon=2, batch_size=3, leakage_clips=0)
ACTIONS = [[0, 0], [1, 1], [0, 1], [1, 0]]


def test_evaluate_measures_real_actions_beside_the_inferred_ones():
    spec = ActionSpec("action", "discrete", 2)
    found = run_evaluation(Erring(), [clips(ACTIONS)], spec, CONFIG).result
    real = found["real_actions"]
    assert real["psnr"]["mean"] == pytest.approx(
        30, abs=1e-3
    )  # half of the steps at 20, half at 40
    assert real["psnr_by_horizon"] == pytest.approx([30, 30], abs=1e-3)
    assert real["over"]["inferred"]["mean"] == pytest.approx(-10, abs=1e-3)
    assert "none" not in real["over"]  # it has no null action
    (line,) = (h for h in headlines(found) if h.name == "PSNR under real actions")
    assert line.note == "-10.00 dB over inferred actions"
    assert "real" not in found["delta_psnr"]

    class Unadapted(Erring):
        obeys = False

    found = run_evaluation(Unadapted(), [clips(ACTIONS)], spec, CONFIG).result
    assert found["real_actions"] is None
    assert all(h.name != "PSNR under real actions" for h in headlines(found))


def test_the_table_of_adaptation():
    found = scores(Erring(), clips(ACTIONS), CONFIG, horizon=2)
    assert found["real"]["psnr"].tolist() == pytest.approx([20, 40, 30, 30], abs=1e-3)
    assert found["inferred"]["psnr"].tolist() == pytest.approx([40] * 4, abs=1e-3)
    assert set(found) == {"real", "inferred"} and set(found["real"]) == {"psnr", "ssim"}
    better = {"real": {k: v + 1 for k, v in found["real"].items()}}
    result = summary({"before": found, "after": better}, clips(ACTIONS).episode.numpy(), CONFIG)
    assert result["gain"]["psnr"]["mean"] == pytest.approx(1)
    assert result["before"]["real"]["lpips"] is None and result["before"]["real"]["fvd"] is None
    lines = table(result).splitlines()
    assert "30.00" in lines[2] and lines[2].split()[-2:] == ["-", "-"]


def test_the_distance_is_that_of_features_and_goes_by_its_name():
    found = scores(Erring(), clips(ACTIONS), CONFIG, horizon=2)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 2, generator=generator, dtype=torch.float64).numpy()
    found["truth"] = {"features": features}
    found["real"]["features"] = features + np.array([3.0, 4.0])  # moved by 5: the distance is 25
    result = summary({"after": found}, clips(ACTIONS).episode.numpy(), CONFIG)
    assert result["after"]["real"]["fvd"] == pytest.approx(25) and "truth" not in result["after"]
    assert math.isclose(result["after"]["inferred"]["psnr"]["mean"], 40, abs_tol=1e-3)
    found["real"]["features"] = np.where(np.arange(64)[:, None] == 3, np.nan, features)
    lost = summary({"after": found}, clips(ACTIONS).episode.numpy(), CONFIG)
    assert lost["after"]["real"]["fvd"] is None  # and the rest is told
    result["frechet_name"] = "Frechet distance (mine)"
    assert "Frechet distance (mine)" in table(result) and "25.00" in table(result)
