"""The two ways a gradient passes a choice: exact values, gradients by hand."""

from __future__ import annotations

import math

import pytest
import torch

from colaworld.config import ConfigError, from_dict
from colaworld.models.config import ModelConfig
from colaworld.models.latent_action.quantizers import (
    QUANTIZERS,
    build_quantizer,
    rotation,
    straight_through,
)


def draw(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(estimator, z, codes, grad) -> torch.Tensor:
    z = z.clone().requires_grad_()
    estimator(z, codes).backward(grad)
    return z.grad


def matrix(z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """The rotation in the plane of z and code [d] that turns one onto the other, and the scale.

    Built from an orthonormal basis of that plane and its angle, not from the paper's formula.
    """
    e, q = z / z.norm(), code / code.norm()
    v = q - (q @ e) * e
    v = v / v.norm()
    cos, sin = q @ e, q @ v
    plane = torch.stack([e, v], 1)  # [d, 2]
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=z.dtype)
    full = torch.eye(len(z), dtype=z.dtype) + plane @ (turn - torch.eye(2, dtype=z.dtype)) @ plane.T
    return code.norm() / z.norm() * full


@pytest.mark.parametrize("estimator", [straight_through, rotation])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_is_that_of_the_codes_to_the_last_bit(estimator, dtype):
    z, codes = draw(500, 7, dtype=dtype).requires_grad_(), draw(500, 7, seed=1, dtype=dtype)
    assert torch.equal(estimator(z, codes), codes)


def test_rotation_in_the_plane_by_hand():
    """z along x, its code along y and twice as long: the gradient turns by -90 degrees, doubled."""
    z, code = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 6.0]])
    for grad, expected in [((0.0, 1.0), (2.0, 0.0)), ((1.0, 0.0), (0.0, -2.0))]:
        made = gradient(rotation, z, code, torch.tensor([grad]))
        torch.testing.assert_close(made, torch.tensor([expected]))


def test_rotation_is_the_transpose_of_the_map_from_z_to_its_code():
    z, codes, grad = draw(20, 5), draw(20, 5, seed=1), draw(20, 5, seed=2)
    made = gradient(rotation, z, codes, grad)
    for row in range(20):
        turn = matrix(z[row], codes[row])
        torch.testing.assert_close(turn @ z[row], codes[row])
        torch.testing.assert_close(made[row], turn.T @ grad[row])


def test_rotation_keeps_the_angle_of_a_gradient_to_its_vector():
    z, codes, grad = draw(50, 6), draw(50, 6, seed=1), draw(50, 6, seed=2)
    made = gradient(rotation, z, codes, grad)
    cos = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cos(made, z), cos(grad, codes))
    torch.testing.assert_close(
        made.norm(dim=1), grad.norm(dim=1) * codes.norm(dim=1) / z.norm(dim=1)
    )


def test_rotation_of_a_latent_on_its_code_is_straight_through():
    z, grad = draw(10, 4), draw(10, 4, seed=1)
    torch.testing.assert_close(gradient(rotation, z, z.clone(), grad), grad)


def test_rotation_where_it_is_not_defined():
    grad = draw(3, 4, seed=1)
    assert torch.equal(gradient(rotation, torch.zeros(3, 4), draw(3, 4).float(), grad.float()),
                       grad.float())  # fmt: skip
    z = draw(3, 4)
    made = gradient(rotation, z, -2 * z, grad)  # opposite: a reflection along z, twice as long
    e = z / z.norm(dim=1, keepdim=True)
    expected = 2 * (grad - 2 * (grad * e).sum(1, keepdim=True) * e)
    torch.testing.assert_close(made, expected)
    assert not gradient(rotation, z, torch.zeros(3, 4).double(), grad).any()  # a code at zero


def test_rotation_gives_codes_no_gradient_and_keeps_rows_apart():
    z, codes = draw(6, 3).requires_grad_(), draw(6, 3, seed=1).requires_grad_()
    rotation(z, codes).sum().backward()
    assert codes.grad is None
    spoiled = draw(6, 3)
    spoiled[2] = math.nan
    other = gradient(rotation, spoiled, codes.detach(), torch.ones(6, 3).double())
    keep = [0, 1, 3, 4, 5]
    assert torch.equal(other[keep], z.grad[keep]) and other[2].isnan().all()


@pytest.mark.parametrize("kind", ["vq", "ema", "residual"])
def test_quantizers_use_the_estimator_they_are_told(kind):
    z, grad = draw(12, 1, 4, dtype=torch.float32), draw(12, 1, 4, seed=1, dtype=torch.float32)
    grads, codes = {}, {}
    for estimator in ("straight_through", "rotation"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = QUANTIZERS[kind].config(normalise=False, estimator=estimator)
            quantizer = build_quantizer(config, 4)
        quantizer.start(draw(64, 1, 4, seed=5, dtype=torch.float32),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
        leaf = z.clone().requires_grad_()
        codes[estimator] = quantizer(leaf).codes
        codes[estimator].backward(grad)
        grads[estimator] = leaf.grad
    assert torch.equal(codes["rotation"], codes["straight_through"])
    assert torch.equal(grads["straight_through"], grad)
    expected = gradient(rotation, z, codes["rotation"].detach(), grad)
    assert torch.equal(grads["rotation"], expected) and not torch.equal(expected, grad)


@pytest.mark.parametrize("kind", ["nsvq", "fsq", "gaussian", "none"])
def test_where_an_estimator_means_nothing_it_is_refused(kind):
    with pytest.raises(ConfigError, match=r"unknown key 'quantizer.estimator'"):
        from_dict(ModelConfig, {"quantizer": {"kind": kind, "estimator": "rotation"}})
    with pytest.raises(ConfigError, match=r"estimator: expected one of 'straight_through', 'rota"):
        from_dict(ModelConfig, {"quantizer": {"kind": "vq", "estimator": "gumbel"}})
