"""I3D against the published implementation on fixed inputs; which weights make a distance an FVD."""

from __future__ import annotations

import logging
import math
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from colaworld.files import FileError
from colaworld.metrics import video_encoder
from colaworld.metrics.frechet import Gaussian, frechet_distance
from colaworld.metrics.i3d import I3D, MIN_FRAMES
from colaworld.metrics.video_encoder import (
    BLACK_TO_WHITE,
    TOLERANCE,
    VideoEncoder,
    black_to_white,
    load_video_encoder,
    prepare,
)


def noise(shape, number):
    """Of mean 0 and deviation 1 over the elements of a shape, by a formula."""
    i = torch.arange(math.prod(shape), dtype=torch.float64) + 1000 * number
    return (
        (12**0.5 * ((43758.5453 * torch.sin(12.9898 * i)).frac().abs() - 0.5))
        .reshape(shape)
        .float()
    )


def weights():
    """Weights by a formula, under the published keys."""
    made = {}
    with torch.device("meta"):
        shapes = I3D().state_dict()
    for i, (key, value) in enumerate(shapes.items()):
        if key.endswith("num_batches_tracked"):
            continue
        gain, middle = (0.2, 0.0)
        if value.ndim == 5:
            gain = (2 / value[0].numel()) ** 0.5
        elif key.endswith(("running_var", "bn.weight")):
            middle = 1.0
        made[key] = middle + gain * noise(value.shape, i)
    return made


def clip(frames):
    """[1, 3, T, 224, 224] in [-1, 1]"""
    return noise((1, 3, frames, 224, 224), 400) / 2


@pytest.mark.slow
def test_equals_the_published_implementation():
    """The first logits of cd-fvd 0.1.1's InceptionI3d(400) in evaluation mode, with `weights` and `clip`;
    torch 2.13, a CPU. There the two were equal in every digit, at 13 frames, too."""
    network = I3D()
    made = weights()
    assert len(made) == 287
    network.load_state_dict(made, strict=False)
    published = [-0.46903315, 5.24716663, -1.56236708, -3.39828682]
    assert network(clip(MIN_FRAMES))[0, :4].tolist() == pytest.approx(published, abs=1e-3)
    with pytest.raises(RuntimeError, match="smaller than kernel"):
        network(clip(MIN_FRAMES - 1)[..., :224, :224])


def test_frames_are_rounded_resized_and_centred():
    clips = torch.rand(2, 3, 3, 28, 56, generator=torch.Generator().manual_seed(0))
    found = prepare(clips)
    assert found.shape == (2, 3, 3, 224, 224)
    rows = (clips[1, 2, 0, :, 0] * 255).round() / 255
    # the centre of row 11 of 224 lies at 11.5 / 8 - 0.5 = 15/16 of the way from row 0 to row 1 of 28
    wanted = 2 * float(rows[0] + 15 * rows[1]) / 16 - 1
    assert float(found[1, 0, 2, 11, 0]) == pytest.approx(wanted, abs=1e-6)
    white = prepare(torch.ones(1, 2, 3, 8, 8))
    assert torch.allclose(white, torch.ones(1)) and prepare(torch.zeros(1, 2, 3, 8, 8)).eq(-1).all()


class Means(nn.Module):
    """400 features: the mean of a clip times 0, 1, 2 ..., in place of I3D."""

    def forward(self, x):
        return x.mean(dim=(1, 2, 3, 4))[:, None] * torch.arange(400)


def test_features_do_not_depend_on_how_many_are_taken_at_once():
    encoder = VideoEncoder("FVD", Means(), Means(), Path("here"))
    clips = torch.rand(5, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(encoder.features(clips), encoder.features(clips, at_once=1))
    wanted = 4 * sum(i**2 for i in range(400))  # from -1 to 1
    assert black_to_white(encoder, 3) == pytest.approx(wanted)
    broken = VideoEncoder("FVD", Means(), lambda x: x.mean((2, 3, 4)), Path("here"))
    with pytest.raises(FileError, match=r"here: expected features \[5, 400\], got \[5, 3\]"):
        broken.features(clips)


def test_only_the_published_weights_give_an_fvd(tmp_path, monkeypatch, caplog):
    path = tmp_path / "mine.pt"
    made = weights()
    torch.save(made, path)
    factor = 1.0
    monkeypatch.setattr(video_encoder, "black_to_white", lambda _, n: factor * BLACK_TO_WHITE[n])
    assert load_video_encoder(path).distance == "FVD" and not caplog.text
    factor = 1 + 1.1 * TOLERANCE
    with caplog.at_level(logging.WARNING):
        assert load_video_encoder(path).distance == "Frechet distance (mine)"
    assert "mine.pt: not the published I3D weights" in caplog.text
    key = "Mixed_4d.b2b.conv3d.weight"
    torch.save({**made, key: made[key][:, :1]}, path)
    with pytest.raises(FileError, match=rf"mine\.pt: {key}: expected floats \[64, 24, 3, 3, 3\]"):
        load_video_encoder(path)
    with pytest.raises(FileError, match=r"none\.pt: expected a file of weights, found none"):
        load_video_encoder(tmp_path / "none.pt")


class Script(nn.Module):
    """What StyleGAN-V's archive can be asked."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool):
        factor = 1.0 if return_features and not rescale and not resize else 0.0
        return factor * x.mean(dim=(1, 2, 3, 4)).unsqueeze(1).expand(-1, 400)


def test_an_archive_of_code_is_run_only_when_it_is_the_published_one(tmp_path, monkeypatch):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Script()).save(path)
    opened = []
    load = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: opened.append(a) or load(*a, **k))
    with pytest.raises(
        FileError, match=r"is code, and only StyleGAN-V's .* expected sha256 bec6519f"
    ):
        load_video_encoder(path)
    assert not opened
    known = sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(video_encoder, "TORCHSCRIPT_SHA256", known)
    encoder = load_video_encoder(path)
    assert encoder.distance == "FVD" and opened
    assert encoder.features(torch.ones(2, 9, 3, 16, 16)).eq(1).all()


@pytest.mark.skipif(
    "COLAWORLD_I3D" not in os.environ,
    reason="COLAWORLD_I3D names no i3d_pretrained_400.pt or i3d_torchscript.pt",
)
def test_the_published_weights_give_published_values():
    """FVD of black against white clips, see BLACK_TO_WHITE."""
    encoder = load_video_encoder(Path(os.environ["COLAWORLD_I3D"]))
    assert encoder.distance == "FVD"
    for frames, wanted in {**BLACK_TO_WHITE, 30: 151.26}.items():
        assert black_to_white(encoder, frames) == pytest.approx(wanted, rel=TOLERANCE), frames


@pytest.mark.skipif(
    "COLAWORLD_CDFVD" not in os.environ,
    reason="COLAWORLD_CDFVD names no folder with cd-fvd's weights, example videos and statistics",
)
def test_the_example_of_cd_fvd():
    """3383.967 by I3D, as its author and a user report (songweige/content-debiased-fvd, issue 2).

    The folder holds i3d_pretrained_400.pt; example_videos.npy, uint8 [B, 16, H, W, 3], the videos of
    cd-fvd's example as its `load_videos` gives them; and ucf101.npz with raw_mean, raw_cov and num_items
    of its statistics of UCF-101 (i3d_ucf101_full_res128_len16_skip1_seed0). Both covariances have N
    below the line, as cd-fvd takes them.
    """
    folder = Path(os.environ["COLAWORLD_CDFVD"])
    with np.load(folder / "ucf101.npz", allow_pickle=False) as stored:
        count = int(stored["num_items"])
        mean = stored["raw_mean"] / count
        real = Gaussian(mean, stored["raw_cov"] / count - np.outer(mean, mean), count)
    videos = torch.from_numpy(np.load(folder / "example_videos.npy", allow_pickle=False))
    encoder = load_video_encoder(folder / "i3d_pretrained_400.pt")
    features = encoder.features(videos.permute(0, 1, 4, 2, 3).float() / 255).double().numpy()
    covariance = np.cov(features, rowvar=False, bias=True)
    made = Gaussian(features.mean(axis=0), covariance, len(features))
    assert frechet_distance(made, real) == pytest.approx(3383.967, rel=1e-4)
