"""PSNR and SSIM against hand values and a slow, direct SSIM."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from colaworld.metrics.image import PSNR_CAP, gaussian_window, psnr, ssim


def direct_ssim(x: np.ndarray, y: np.ndarray, window_h: int, window_w: int) -> float:
    """The definition, place by place: [C, H, W] float64."""

    def weights(size):
        g = [math.exp(-((i - size // 2) ** 2) / (2 * 1.5**2)) for i in range(size)]
        return np.array(g) / sum(g)

    w = np.outer(weights(window_h), weights(window_w))
    values = []
    for a, b in zip(x, y, strict=True):
        for i in range(a.shape[0] - window_h + 1):
            for j in range(a.shape[1] - window_w + 1):
                p, q = a[i : i + window_h, j : j + window_w], b[i : i + window_h, j : j + window_w]
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
                cov = (w * (p - mp) * (q - mq)).sum()
                values.append(
                    (2 * mp * mq + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
                )
    return float(np.mean(values))


def test_psnr_by_hand():
    target = torch.zeros(2, 3, 4, 5)
    prediction = torch.stack([torch.full((3, 4, 5), 0.1), torch.full((3, 4, 5), 1.0)])
    assert psnr(prediction, target).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)


def test_psnr_is_per_frame_and_capped():
    frames = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = frames.clone()
    other[1, 2] = (other[1, 2] * 0).add(0.5)
    value = psnr(frames, other)
    assert value.shape == (2, 3)
    expected = -10 * math.log10(float((frames[1, 2] - 0.5).square().mean()))
    assert float(value[1, 2]) == pytest.approx(expected, abs=1e-4)
    assert float(value[0, 0]) == pytest.approx(PSNR_CAP) == pytest.approx(58.92, abs=0.01)


@pytest.mark.parametrize(
    ("height", "width", "window"), [(16, 13, (11, 11)), (11, 20, (11, 11)), (6, 14, (5, 11))]
)
def test_ssim_equals_the_direct_definition(height, width, window):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, height, width, generator=generator)
    y = (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    pairs = zip(x.double().numpy(), y.double().numpy(), strict=True)
    expected = [direct_ssim(a, b, *window) for a, b in pairs]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-5)


def test_both_equal_scikit_image():
    """peak_signal_noise_ratio(data_range=1) and structural_similarity(data_range=1, channel_axis=0,
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False) of scikit-image 0.26.0, in float64."""
    shape = (2, 3, 40, 48)
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    x = 0.5 + 0.5 * torch.sin(0.37 * i).reshape(shape).float()
    y = (x + 0.3 * torch.sin(1.9 * i).reshape(shape).float()).clamp(0, 1)
    assert psnr(x, y).tolist() == pytest.approx([14.80484437, 14.79073773], abs=1e-5)
    assert ssim(x, y).tolist() == pytest.approx([0.86076935, 0.86034656], abs=1e-6)


def test_ssim_of_two_flat_images_by_hand():
    x, y = torch.full((3, 12, 12), 0.2), torch.full((3, 12, 12), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)  # no variance: luminance only
    assert float(ssim(x, y)) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_equal_and_of_inverted_images():
    x = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(2))
    assert float(ssim(x, x)) == pytest.approx(1.0, abs=1e-6)
    assert float(ssim(x, 1 - x)) < -0.5


def test_gaussian_window_sums_to_one_and_is_symmetric():
    window = gaussian_window(11, 1.5)
    assert float(window.sum()) == pytest.approx(1.0)
    assert torch.equal(window, window.flip(0))
    assert float(window[5] / window[6]) == pytest.approx(math.exp(1 / 4.5))


@pytest.mark.parametrize("function", [psnr, ssim])
def test_wrong_images_are_named(function):
    with pytest.raises(ValueError, match="one shape"):
        function(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9))
    with pytest.raises(ValueError, match="divide uint8 by 255"):
        function(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8))
