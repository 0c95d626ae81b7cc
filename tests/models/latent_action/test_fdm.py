"""The forward dynamics model of the two-stage baseline."""

from __future__ import annotations

import pytest
import torch

from colaworld.models.latent_action.config import FDMConfig
from colaworld.models.latent_action.fdm import ForwardDynamicsModel

CONFIG = FDMConfig(depth=2, width=16, heads=2, patch=2)


def inputs():
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(2, 3, 3, 4, 6, generator=generator)
    return frames, torch.randn(2, 3, 2, 5, generator=generator)


def test_next_frames_have_the_shape_of_frames(randomised):
    model = randomised(ForwardDynamicsModel(CONFIG, dim=5))
    assert model(*inputs()).shape == (2, 3, 3, 4, 6)


def test_each_step_sees_its_own_frame_and_action_alone(randomised):
    model = randomised(ForwardDynamicsModel(CONFIG, dim=5))
    for which in range(2):
        changed = [value.clone() for value in inputs()]
        changed[which][0, 1] += 0.5
        with torch.no_grad():
            moved = (model(*inputs()) - model(*changed)).abs().amax((2, 3, 4))
        assert (moved > 1e-5).tolist() == [[False, True, False], [False, False, False]]


def test_patches_come_back_in_their_places(randomised):
    """With values passing straight through, the prediction is the frame itself."""
    model = randomised(ForwardDynamicsModel(FDMConfig(depth=0, width=12, heads=2, patch=2), dim=5))
    frames, codes = inputs()
    model.norm = torch.nn.Identity()
    with torch.no_grad():
        for layer in (model.embed, model.out):
            layer.weight.copy_(torch.eye(12))
            layer.bias.zero_()
        with_position = model(frames, codes)
        offset = model(torch.full_like(frames, 0.5), codes) - 0.5  # the position embedding alone
    torch.testing.assert_close(with_position - offset, frames, atol=1e-6, rtol=1e-6)


def test_gradients_reach_codes_frames_and_parameters(randomised):
    model = randomised(ForwardDynamicsModel(CONFIG, dim=5))
    frames, codes = (value.requires_grad_() for value in inputs())
    model(frames, codes).square().mean().backward()
    assert (codes.grad.abs().amax(-1) > 0).all()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_frames_that_are_not_whole_patches():
    with pytest.raises(ValueError, match=r"frames 4x5 are not whole patches of 2 px"):
        ForwardDynamicsModel(CONFIG, dim=5)(torch.rand(1, 2, 3, 4, 5), torch.rand(1, 2, 1, 5))
