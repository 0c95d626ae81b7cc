"""Attention along one axis of a video: which tokens meet, in which order, and which never do."""

from __future__ import annotations

import pytest
import torch

from colaworld.models.layers.attention import AxialAttention
from colaworld.models.layers.mlp import MLP

B, T, S, C = 2, 4, 3, 8


def changed(module, frame: int, place: int) -> torch.Tensor:
    """[T, S]: which outputs of clip 0 change when its token at (frame, place) does."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, T, S, C, generator=generator)
    other = x.clone()
    other[0, frame, place] += torch.randn(C, generator=generator)
    with torch.no_grad():
        difference = (module(x) - module(other)).abs().amax(-1)
    assert difference[1].max() == 0  # the other clip
    return difference[0] > 0


def test_spatial_attention_stays_in_its_frame(randomised):
    module = randomised(AxialAttention(C, 2, axis="spatial"))
    expected = torch.zeros(T, S, dtype=torch.bool)
    expected[2] = True
    assert torch.equal(changed(module, 2, 1), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_temporal_attention_stays_at_its_place(causal, randomised):
    module = AxialAttention(C, 2, axis="temporal", causal=causal, rope_theta=10_000.0)
    expected = torch.zeros(T, S, dtype=torch.bool)
    expected[2 if causal else 0 :, 1] = True
    assert torch.equal(changed(randomised(module), 2, 1), expected)


def test_only_rope_tells_the_order_of_frames(randomised, generator):
    x = torch.randn(1, T, S, C, generator=generator)
    for theta, same in ((None, True), (10_000.0, False)):
        module = randomised(AxialAttention(C, 2, axis="temporal", rope_theta=theta))
        with torch.no_grad():
            apart = (module(x.flip(1)).flip(1) - module(x)).abs().max().item()
        assert (apart < 1e-5) == same


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (6, 2)])
def test_heads_must_fit_the_width_in_pairs(width, heads):
    with pytest.raises(ValueError, match=rf"width {width} / heads {heads} must be an even whole"):
        AxialAttention(width, heads, axis="spatial")


def test_mlp_by_hand(randomised, generator):
    module = randomised(MLP(4, 6, 3))
    x = torch.randn(5, 4, generator=generator)
    h = x @ module.fc1.weight.T + module.fc1.bias
    inner = (2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)  # GELU in its tanh form
    expected = (0.5 * h * (1 + torch.tanh(inner))) @ module.fc2.weight.T + module.fc2.bias
    torch.testing.assert_close(module(x), expected)
    assert MLP(4, 6, zero_init=True)(x).abs().max() == 0
