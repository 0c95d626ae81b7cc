"""The Frechet distance against closed forms and scipy's matrix root."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colaworld.metrics.video import frechet_distance


def test_of_a_set_with_itself_is_zero():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)


def test_of_a_shifted_set_is_the_squared_shift():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64)
    assert frechet_distance(x, x + shift) == pytest.approx(25.0, abs=1e-8)


def test_of_scaled_one_dimensional_sets_by_hand():
    x = torch.tensor([[-1.0], [0.0], [1.0]])  # spread 1, scaled: spread 3
    assert frechet_distance(x, 3 * x) == pytest.approx((3 - 1) ** 2)


def _two_sets():
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(6, 6, generator=generator)
    a = torch.randn(80, 6, generator=generator)
    b = torch.randn(90, 6, generator=generator) @ mix + 0.5
    return a.double(), b.double()


def test_equals_the_eigenvalues_of_the_plain_product():
    a, b = _two_sets()
    c1, c2 = np.cov(a.numpy().T), np.cov(b.numpy().T)
    roots = np.sqrt(np.linalg.eigvals(c1 @ c2).real)  # tr (C1 C2)^1/2, without symmetrising
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(c1 + c2) - 2 * roots.sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_equals_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = _two_sets()
    c1, c2 = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = np.real(linalg.sqrtm(c1 @ c2))
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(c1 + c2 - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_singular_covariances_are_fine():
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)


def test_wrong_features_are_named():
    with pytest.raises(ValueError, match="one width"):
        frechet_distance(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(torch.full((3, 2), float("nan")), torch.zeros(4, 2))
