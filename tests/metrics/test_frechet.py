"""The Frechet distance against Gaussians whose distance is known, and against scipy's root."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from colaworld.metrics.frechet import Gaussian, frechet_distance


def gaussian(mean, covariance, samples=10**6):
    return Gaussian(np.array(mean, float), np.array(covariance, float), samples)


def spread(seed, size):
    """A well-conditioned covariance [size, size]."""
    mixed = np.random.default_rng(seed).normal(size=(size, 3 * size))
    return mixed @ mixed.T / (3 * size)


def test_commuting_covariances_by_hand():
    """Diagonal: |m|^2 + sum (s1 - s2)^2 over deviations."""
    first = gaussian([1, 2, 0], np.diag([4.0, 9.0, 0.0]))
    second = gaussian([1, 0, 1], np.diag([1.0, 16.0, 25.0]))
    wanted = (0 + 4 + 1) + (2 - 1) ** 2 + (3 - 4) ** 2 + (0 - 5) ** 2
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-12)


def test_covariances_that_do_not_commute_by_hand():
    """In two dimensions tr (AB)^1/2 = sqrt(tr AB + 2 sqrt(det A det B)), by the eigenvalues of AB."""
    a, b = np.array([[5.0, 2.0], [2.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 4.0]])
    assert np.abs(a @ b - b @ a).max() > 1
    # tr AB = 5 - 1 - 1 + 12 = 15, det A = 11, det B = 3.75, tr A + tr B = 13
    wanted = 13 - 2 * math.sqrt(15 + 2 * math.sqrt(11 * 3.75)) + 2**2 + 3**2
    found = frechet_distance(gaussian([2, 0], a), gaussian([0, 3], b))
    assert found == pytest.approx(wanted, rel=1e-13)


def test_a_moved_turned_and_scaled_gaussian():
    """Both turned by one rotation: the distance stays. S against c^2 S: (1 - c)^2 tr S."""
    size = 24
    s = spread(0, size)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))
    zero = np.zeros(size)
    assert frechet_distance(gaussian(zero, s), gaussian(zero, 9 * s)) == pytest.approx(
        4 * np.trace(s), rel=1e-12
    )
    other = spread(2, size)
    plain = frechet_distance(gaussian(zero, s), gaussian(zero + 1, other))
    turned = frechet_distance(
        gaussian(zero, turn @ s @ turn.T), gaussian(turn @ (zero + 1), turn @ other @ turn.T)
    )
    assert plain == pytest.approx(turned, rel=1e-11)
    swapped = frechet_distance(gaussian(zero + 1, other), gaussian(zero, s))
    assert plain == pytest.approx(swapped, rel=1e-11)


def test_of_samples():
    features = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])
    found = Gaussian.of(features)
    assert found.mean.tolist() == [2, 1] and found.samples == 3
    assert found.covariance == pytest.approx(np.array([[1.0, 0.0], [0.0, 3.0]]))
    for wrong in (features[:1], features[0], np.full((3, 2), np.nan)):
        with pytest.raises(ValueError, match="expected finite numbers"):
            Gaussian.of(wrong)
    with pytest.raises(ValueError, match="the same features"):
        frechet_distance(found, gaussian([0], [[1]]))


def test_few_samples_are_warned_of_and_never_negative(caplog):
    """8 samples in 400 dimensions, where the root of the product has no meaning."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(8, 400)) * np.logspace(-4, 2, 400)
    same = Gaussian.of(features)
    with caplog.at_level(logging.WARNING):
        found = frechet_distance(same, same)
    assert "of 8 samples of 400 features" in caplog.text
    assert 0 <= found < 1e-5 * np.trace(same.covariance)
    for seed in range(5):
        near = Gaussian.of(
            features + 1e-9 * np.random.default_rng(seed).normal(size=features.shape)
        )
        assert frechet_distance(same, near) >= 0
    caplog.clear()
    frechet_distance(gaussian([0, 0], np.eye(2)), gaussian([0, 0], np.eye(2)))
    assert caplog.text == ""


def test_few_samples_give_too_large_a_distance():
    """What the docstring says: both sides from one distribution, the truth is 0."""
    rng = np.random.default_rng(4)
    distances = [
        frechet_distance(
            Gaussian.of(rng.normal(size=(n, 32))), Gaussian.of(rng.normal(size=(n, 32)))
        )
        for n in (8, 64, 1024)
    ]
    assert distances[0] > 3 * distances[1] > 3 * 3 * distances[2] > 0


def test_equals_the_root_of_the_product_by_scipy():
    """The form of published FVD code, on covariances that it can take."""
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    size = 50
    first, second = spread(5, size), spread(6, size)
    gap = np.linspace(-1, 1, size)
    root = linalg.sqrtm(first @ second)
    wanted = gap @ gap + np.trace(first) + np.trace(second) - 2 * np.trace(root).real
    found = frechet_distance(gaussian(gap, first), gaussian(np.zeros(size), second))
    assert found == pytest.approx(wanted, rel=1e-10)
