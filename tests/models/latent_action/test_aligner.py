"""The aligner: the change of latents from the earlier frame and the actions between, and from nothing else."""

from __future__ import annotations

import pytest
import torch

from colaworld.models.latent_action.aligner import Aligner
from colaworld.models.latent_action.config import AlignerConfig

CONFIG = AlignerConfig(depth=1, width=16, heads=2)


def build(randomised, r: int = 1) -> Aligner:
    return randomised(Aligner(CONFIG, channels=3, actions_per_frame=r, tokens=2, dim=5))


def inputs(r: int = 1, length: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 3, length, 4, 6, generator=generator)
    return latents, torch.randn(2, r * (length - 1), 2, 5, generator=generator)


@pytest.mark.parametrize("r", [1, 2])
def test_each_change_hangs_on_the_earlier_frame_and_its_actions_alone(r, randomised):
    model = build(randomised, r)
    latents, codes = inputs(r)
    with torch.no_grad():
        change = model(latents, codes)
        assert change.shape == (2, 3, 3, 4, 6)
        for frame in range(4):
            other = latents.clone()
            other[0, :, frame] += 1
            moved = (model(other, codes) - change).abs().amax((1, 3, 4)) > 1e-5
            assert moved.tolist() == [[frame == t for t in range(3)], [False] * 3]
        for step in range(3 * r):
            other = codes.clone()
            other[0, step, 1] += 1
            moved = (model(latents, other) - change).abs().amax((1, 3, 4)) > 1e-5
            assert moved.tolist() == [[step // r == t for t in range(3)], [False] * 3]


def test_gradients_reach_codes_and_parameters(randomised):
    model = build(randomised)
    latents, codes = inputs()
    model(latents, codes.requires_grad_()).square().mean().backward()
    assert (codes.grad.abs().amax(-1) > 0).all()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_what_does_not_fit_is_refused(randomised):
    model = build(randomised, 2)
    latents, codes = inputs(2)
    with pytest.raises(ValueError, match="expected 6 actions for 4 latent frames, got 5"):
        model(latents, codes[:, 1:])
    with pytest.raises(ValueError, match="latents 3x6 are not whole patches of 2"):
        model(latents[:, :, :, 1:], codes)
