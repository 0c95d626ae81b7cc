"""PSNR and SSIM of images with values in [0, 1].

Not here: learned distances (`lpips.py`), and distances between sets of videos (`frechet.py`).
Shape legend: ... any leading dimensions, C channels, H W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# dB of equal images, so that means stay finite and no single still frame decides them: the error of
# rounding to 8 bits, 1 / (12 * 255^2). Below it two videos of bytes cannot be told apart.
PSNR_CAP = 10.0 * math.log10(12 * 255**2)  # 58.92
SSIM_WINDOW = 11  # Wang et al. 2004, "Image quality assessment: from error visibility ..."
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def _check_pair(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.shape != target.shape or prediction.ndim < 3:
        raise ValueError(
            f"expected two images of one shape [..., C, H, W], got {tuple(prediction.shape)} "
            f"and {tuple(target.shape)}"
        )
    for name, image in (("prediction", prediction), ("target", target)):
        if not image.is_floating_point():
            raise ValueError(
                f"{name}: expected float values in [0, 1], got {image.dtype}; divide uint8 by 255"
            )
    return prediction.float(), target.float()


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB (peak 1), at most `PSNR_CAP`.

    Args:
        prediction, target: [..., C, H, W] float in [0, 1].

    Returns:
        [...] float32: 10 log10(1 / mean squared error over C, H, W). For a number per clip, take
        the mean over frames (the mean of dB values, as video prediction papers report it).
    """
    prediction, target = _check_pair(prediction, target)
    error = (prediction - target).square().mean(dim=(-3, -2, -1))
    return -10.0 * torch.log10(error.clamp_min(10.0 ** (-PSNR_CAP / 10.0)))


def gaussian_window(size: int, sigma: float) -> Tensor:
    """[size] Gaussian weights centred on the middle, which sum to 1."""
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    return weights / weights.sum()


def _window_size(side: int, window: int) -> int:
    """The largest odd window that fits `side` pixels and is at most `window`."""
    size = min(window, side)
    return size if size % 2 == 1 else size - 1


def ssim(
    prediction: Tensor, target: Tensor, *, window: int = SSIM_WINDOW, sigma: float = SSIM_SIGMA
) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), 1 when equal.

    The local means, variances and covariance are weighted by a Gaussian of `window` x `window`
    pixels (11 and sigma 1.5 in the paper) at every place where the whole window fits; the map is
    averaged over places and channels. Where an image is smaller than the window, the window
    shrinks to the largest odd size that fits, per side, and sigma stays: numbers on such images
    are comparable among themselves only.

    Args:
        prediction, target: [..., C, H, W] float in [0, 1].

    Returns:
        [...] float32 in [-1, 1].
    """
    prediction, target = _check_pair(prediction, target)
    *lead, channels, height, width = prediction.shape
    if height < 1 or width < 1:
        raise ValueError(f"expected images of at least 1 x 1 pixels, got {height} x {width}")
    # float64 on CPU: variances are small differences of large numbers
    dtype = torch.float64 if prediction.device.type == "cpu" else torch.float32
    x = prediction.reshape(-1, 1, height, width).to(dtype)
    y = target.reshape(-1, 1, height, width).to(dtype)
    column = gaussian_window(_window_size(height, window), sigma).to(x).view(1, 1, -1, 1)
    row = gaussian_window(_window_size(width, window), sigma).to(x).view(1, 1, 1, -1)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, column), row)

    mean_x, mean_y = blur(x), blur(y)
    var_x = blur(x * x) - mean_x**2
    var_y = blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(dim=(-2, -1)).reshape(*lead, channels).mean(dim=-1).float()
