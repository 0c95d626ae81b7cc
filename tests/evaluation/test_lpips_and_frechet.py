"""LPIPS and the Frechet distance of rollouts: given weights, without, and where they do not apply."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from colaworld.config import ConfigError
from colaworld.contracts import LatentActions
from colaworld.evaluation.measures import frechet as frechet_module
from colaworld.evaluation.measures import lpips as lpips_module
from colaworld.evaluation.measures.frechet import FrechetVideoDistance
from colaworld.evaluation.measures.lpips import PerceptualDistance
from colaworld.evaluation.measures.measure import Setting
from colaworld.evaluation.rollouts import Batch
from colaworld.evaluation.settings import EvaluationConfig
from colaworld.evaluation.tables import horizon_rows, paper_row, paper_rows
from colaworld.metrics.frechet import Gaussian, frechet_distance
from colaworld.metrics.video_encoder import VideoEncoder


def setting(**changes):
    config = EvaluationConfig(bootstrap_samples=50, **changes)
    return Setting(4, None, config, np.random.default_rng(0))


def grey(values, side=32):
    """[b, n] -> [b, n, 3, side, side]"""
    return torch.tensor(values)[:, :, None, None, None].expand(-1, -1, 3, side, side)


def batch(episodes, given, truth, predicted, side=32):
    """b clips of one grey value a frame, with one given frame."""
    start = grey([[g] for g in given], side)
    rollouts = {
        "inferred": torch.cat([start, grey(predicted, side)], 1),
        "copy": start.expand(-1, 1 + len(truth[0]), -1, -1, -1),
    }
    latent = LatentActions(torch.zeros(len(episodes), 2, 1, 1))
    frames = torch.zeros(len(episodes), 3, 3, 2, 2, dtype=torch.uint8)
    return Batch(
        first=0,
        frames=frames,
        episodes=np.array(episodes),
        latent=latent,
        actions=None,
        history=1,
        truth=grey(truth, side),
        rollouts=rollouts,
    )


class Gap(nn.Module):
    """The mean distance of pixels, in place of LPIPS."""

    def forward(self, x, y):
        return (x - y).abs().mean((-3, -2, -1))


@pytest.fixture
def gap(monkeypatch):
    """Makes LPIPS of a folder the distance of pixels; `published` is what is said of the files."""

    def make(published):
        monkeypatch.setattr(lpips_module, "load_lpips", lambda folder, trunk: (Gap(), published))

    return make


def lpips_of(*batches, **changes):
    measure = PerceptualDistance(setting(lpips="somewhere", **changes))
    for one in batches:
        measure.update(one)
    counts = {"episodes": 2, "horizon": 2}
    return measure, {**measure.result(), "counts": counts}


def test_lpips_by_hand(gap):
    gap(True)
    measure, result = lpips_of(
        batch([0], [0.0], [[0.5, 0.5]], [[0.4, 0.3]]),  # .1 .2, copy .5 .5
        batch([1], [0.5], [[0.5, 0.7]], [[0.6, 0.7]]),  # .1 .0, copy .0 .2
    )
    found = result["lpips"]
    assert found["name"] == "LPIPS (alex)" and result["lpips_skipped"] is None
    assert found["mean"] == pytest.approx(0.1)
    assert [found["low"], found["high"]] == pytest.approx([0.05, 0.15])  # an episode twice
    inferred, copy = (found["variants"][v] for v in ("inferred", "copy"))
    assert inferred["lpips_by_horizon"] == pytest.approx([0.1, 0.1])
    assert copy["lpips_by_horizon"] == pytest.approx([0.25, 0.35])
    assert inferred["lpips_low_by_horizon"] == pytest.approx([0.1, 0.0])
    assert inferred["lpips_high_by_horizon"] == pytest.approx([0.1, 0.2])
    assert found["over_copy"]["mean"] == pytest.approx(0.1 - 0.3)
    assert found["over_copy"]["high"] == pytest.approx(-0.05)
    headline = measure.headline(result)
    assert headline.text() == "0.100 [0.050, 0.150]" and headline.better == "lower"
    assert headline.note == "0.100 at step 1, 0.100 at step 2; copying the last frame 0.300"
    assert headline.judgement.word == "beats copying"
    values = measure.per_clip()
    assert headline.over(values) == pytest.approx(0.1) and values["lpips"].shape == (2,)


def test_lpips_by_other_weights_says_so_and_is_not_the_papers(gap):
    gap(False)
    _, result = lpips_of(batch([0, 1], [0.0, 0.1], [[0.5]] * 2, [[0.4]] * 2))
    assert result["lpips"]["name"] == "LPIPS (alex, other weights)"
    row = {"rollout": {"psnr": {"mean": 20.0}, "ssim": {"mean": 0.5}}, **result}
    assert paper_row(row)["lpips_x100"] is None


def test_lpips_that_cannot_be_measured_says_why(gap):
    gap(True)
    plain = PerceptualDistance(setting())
    plain.update(batch([0], [0.0], [[0.5]], [[0.5]]))
    assert plain.result() == {
        "lpips": None,
        "lpips_skipped": "no weights given (--evaluation.lpips)",
    }
    assert plain.per_clip() == {}
    headline = plain.headline(plain.result())
    assert headline.text() == "-" and headline.note == "no weights given (--evaluation.lpips)"
    assert headline.judgement is None and headline.over is None
    measure, result = lpips_of(batch([0], [0.0], [[0.5]], [[0.5]], side=24))
    assert result["lpips_skipped"] == "frames of 24 x 24, below the 31 pixels of alex"
    assert measure.per_clip() == {} and measure.headline({}) is None


@pytest.fixture
def encoder(monkeypatch):
    """Makes I3D two features: brightness of the first and of the last frame."""

    def call(clips):  # [B, 3, T, 224, 224] in [-1, 1]
        shades = clips.mean((1, 3, 4))
        return torch.stack([shades[:, 0], shades[:, -1]], 1)

    class Small(VideoEncoder):
        def features(self, clips, **_):
            return self.call(2 * clips.transpose(1, 2) - 1)

    def make(distance):
        monkeypatch.setattr(
            frechet_module,
            "load_video_encoder",
            lambda path: Small(distance, nn.Identity(), call, path),
        )

    return make


def shades(seed, clips, frames):
    return np.random.default_rng(seed).random((clips, frames)).astype(np.float32).tolist()


def test_frechet_by_horizon_equals_that_of_the_features(encoder):
    encoder("FVD")
    truth, predicted = shades(0, 6, 20), shades(1, 6, 20)
    measure = FrechetVideoDistance(setting(fvd="somewhere"))
    for rows in (slice(0, 4), slice(4, 6)):
        count = len(truth[rows])
        measure.update(batch([0] * count, [0.0] * count, truth[rows], predicted[rows], side=4))
    result = measure.result()
    found = result["frechet"]
    sides = [2 * np.array(side)[:, [0, -1]] - 1 for side in (predicted, truth)]
    first = [2 * np.array(side)[:, [0, 15]] - 1 for side in (predicted, truth)]
    assert found["by_horizon"]["20"] == found["value"]
    assert found["value"] == pytest.approx(frechet_distance(*map(Gaussian.of, sides)), rel=1e-5)
    assert found["by_horizon"]["16"] == pytest.approx(
        frechet_distance(*map(Gaussian.of, first)), rel=1e-5
    )
    assert (found["name"], found["clips"], found["features"]) == ("FVD", 6, 2)
    headline = measure.headline(result)
    assert headline.text() == f"{found['value']:.2f}"
    assert (
        headline.note == f"{found['by_horizon']['16']:.2f} over 16 frames; 6 clips for 2 features"
    )
    few = {"frechet": {**found, "clips": 2}}
    assert measure.headline(few).note.endswith("; too large: 2 clips for 2 features")


def test_frechet_of_other_weights_is_no_fvd(encoder):
    encoder("Frechet distance (mine)")
    measure = FrechetVideoDistance(setting(fvd="mine.pt"))
    measure.update(batch([0] * 3, [0.0] * 3, shades(0, 3, 9), shades(1, 3, 9), side=4))
    result = measure.result()
    assert measure.headline(result).name == "Frechet distance (mine)"
    row = {"rollout": {"psnr": {"mean": 20.0}, "ssim": {"mean": 0.5}}, **result}
    assert paper_row(row)["fvd"] is None


def test_frechet_that_cannot_be_measured_says_why(encoder):
    encoder("FVD")
    plain = FrechetVideoDistance(setting())
    plain.update(batch([0], [0.0], shades(0, 1, 9), shades(1, 1, 9), side=4))
    assert plain.result()["frechet_skipped"] == "no weights given (--evaluation.fvd)"
    assert plain.headline(plain.result()).text() == "-" and plain.headline({}) is None
    short = FrechetVideoDistance(setting(fvd="somewhere"))
    short.update(batch([0] * 2, [0.0] * 2, shades(0, 2, 8), shades(1, 2, 8), side=4))
    says = "needs 9 predicted frames, got 8 (--evaluation.horizon)"
    assert short.result() == {"frechet": None, "frechet_skipped": says}
    astray = FrechetVideoDistance(setting(fvd="somewhere"))
    drawn = shades(1, 2, 9)
    astray.update(batch([0] * 2, [0.0] * 2, shades(0, 2, 9), drawn, side=4))
    drawn[1][3] = math.nan
    astray.update(batch([0] * 2, [0.0] * 2, shades(0, 2, 9), drawn, side=4))
    says = "some rollouts hold values that are not finite"
    assert astray.result() == {"frechet": None, "frechet_skipped": says}


def test_weights_that_are_not_there_are_named_before_anything_runs(tmp_path):
    EvaluationConfig(lpips=tmp_path).check_weights()
    for key, path in (("lpips", tmp_path / "none"), ("fvd", tmp_path)):
        with pytest.raises(ConfigError, match=rf"evaluation\.{key}: expected a .* none at {path}"):
            EvaluationConfig(**{key: path}).check_weights()


def whole(horizon):
    """What the tables read of an evaluation."""
    steps = [float(step) for step in range(1, horizon + 1)]
    line = {
        f"{what}{end}_by_horizon": [factor * step + shift for step in steps]
        for what, factor in (("psnr", 1.0), ("ssim", 0.01))
        for end, shift in (("", 0.0), ("_low", -0.5), ("_high", 0.5))
    }
    return {
        "counts": {"horizon": horizon},
        "rollout": {
            "variants": {"inferred": line},
            "ssim_by_horizon": line["ssim_by_horizon"],
            "psnr": {"mean": 22.337},
            "ssim": {"mean": 0.81164},
        },
    }


def test_the_table_by_horizon():
    result = whole(17)
    assert [row[0] for row in horizon_rows(result)] == ["step", "1", "4", "8", "17"]
    assert horizon_rows(result)[2] == ["4", "4.00 [3.50, 4.50]", "0.040 [-0.460, 0.540]"]
    assert [row[0] for row in horizon_rows(whole(3))] == ["step", "1", "3"]
    old = whole(4)
    for name in [n for n in old["rollout"]["variants"]["inferred"] if n != "psnr_by_horizon"]:
        del old["rollout"]["variants"]["inferred"][name]  # as version 1 had it
    assert horizon_rows(old)[1:] == [["1", "1.00", "0.010"], ["4", "4.00", "0.040"]]
    lines = {"lpips_by_horizon": [0.1] * 17, "lpips_low_by_horizon": [None] * 17}
    result["lpips"] = {"name": "LPIPS (vgg)", "variants": {"inferred": lines}}
    result["frechet"] = {"name": "FVD", "by_horizon": {"16": 250.126, "17": 300.0}}
    header, *rows = horizon_rows(result)
    assert header == ["step", "PSNR, dB", "SSIM", "LPIPS (vgg)", "FVD"]
    assert [row[0] for row in rows] == ["1", "4", "8", "16", "17"]
    assert rows[0][3:] == ["0.100", "-"] and rows[3][3:] == ["0.100", "250.13"]


def test_the_papers_row():
    result = whole(4)
    assert paper_row(result) == {
        "psnr": 22.337,
        "ssim_x100": pytest.approx(81.164),
        "lpips_x100": None,
        "fvd": None,
    }
    full = {
        **result,
        "lpips": {"published": True, "mean": 0.1317},
        "frechet": {"name": "FVD", "value": 291.302},
    }
    assert paper_rows({"a": full, "b": result})[1:] == [
        ["a", "22.34", "81.16", "13.17", "291.30"],
        ["b", "22.34", "81.16", "-", "-"],
    ]


def test_what_is_not_finite_beats_nothing() -> None:
    assert lpips_module._judge({"mean": None, "low": -0.1, "high": -0.05}).tone == "open"
