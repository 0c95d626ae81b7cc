"""Frechet distance between two sets of feature vectors.

Not here: the features. The distance is named after what it is computed on: it is an "FVD" only
with the features of the published I3D network, and this file never calls it one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _moments(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or features.shape[0] < 2:
        raise ValueError(
            f"{name}: expected at least two feature vectors [M, D], got {tuple(features.shape)}"
        )
    x = features.double()
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}: expected finite features, got NaN or infinity")
    mean = x.mean(dim=0)
    centred = x - mean
    return mean, centred.T @ centred / (x.shape[0] - 1)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)

    (Dowson & Landau 1982.) The inner product is symmetric, so both roots come from `eigh` in
    float64: no general matrix root, no imaginary remainder.

    Args:
        first: [M1, D] features; second: [M2, D]. M well above D, or the covariances are singular
            and the distance is biased upward.

    Returns:
        The distance, >= 0, in squared units of the features.
    """
    if first.ndim == 2 and second.ndim == 2 and first.shape[1] != second.shape[1]:
        raise ValueError(
            f"expected features of one width, got {first.shape[1]} and {second.shape[1]}"
        )
    mean_1, cov_1 = _moments(first, "first")
    mean_2, cov_2 = _moments(second, "second")
    values, vectors = torch.linalg.eigh(cov_1)
    root_1 = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root_1 @ cov_2 @ root_1
    trace_root = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * trace_root
    return max(0.0, float(distance))
