"""The Frechet distance between two sets of features, each taken as a Gaussian.

    d = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr (S1^1/2 S2 S1^1/2)^1/2

(Dowson and Landau 1982; of video features FVD, Unterthiner et al. 2018, arXiv 1812.01717). Both roots
are of symmetric matrices, taken by eigenvalues in float64; the usual root of the product S1 S2, which
is not symmetric, fails where a covariance is singular. Not here: features (`video_encoder.py`).
Shape legend: N samples, D features.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of N samples, float64."""

    mean: np.ndarray
    covariance: np.ndarray
    samples: int

    @classmethod
    def of(cls, features: np.ndarray) -> Gaussian:
        """Of features [N, D], N >= 2; the covariance has N - 1 below the line."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise ValueError(
                f"features: expected finite numbers [N, D] of N >= 2 samples, got {features.shape}"
            )
        centred = features - features.mean(axis=0)
        covariance = centred.T @ centred / (len(features) - 1)
        return cls(features.mean(axis=0), covariance, len(features))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The squared distance of two Gaussians over the same D features: >= 0, and the same both ways.

    From fewer samples than features a covariance is singular. The distance exists all the same, and
    is too large: the spread that few samples miss counts as a difference. This is warned of with the
    number of samples; such numbers are comparable at one number of samples only.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"expected the same features on both sides, got {first.mean.shape} and "
            f"{second.mean.shape}"
        )
    few = min(first.samples, second.samples)
    if few <= first.mean.size:
        log.warning(
            "Frechet distance of %d samples of %d features: the covariance is singular and the distance "
            "too large; compare it at this number of samples only",
            few,
            first.mean.size,
        )
    root = _root(first.covariance)
    product = np.linalg.eigvalsh(root @ second.covariance @ root)
    shared = np.sqrt(product.clip(min=0)).sum()  # rounding makes zeros slightly negative
    gap = np.square(first.mean - second.mean).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance) - 2 * shared
    return float(gap + max(spread, 0.0))


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix [D, D]."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
