"""At the first step the world model is the video model it was given: its conditioning starts at zero."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colaworld.flow.config import SamplerConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel

BACKBONES = {
    "stdit3": STDiT3Config(depth=2, width=24, heads=2),
    "stdit3 with the null caption": STDiT3Config(
        depth=2, width=24, heads=2, text="null", caption_width=6, caption_length=3
    ),
    "wan": WanConfig(layers=2, heads=2, head_dim=12, ffn=32),
    "wan, all frames at once": WanConfig(layers=2, heads=2, head_dim=12, ffn=32, causal=False),
}


@pytest.fixture(params=BACKBONES)
def world(request, randomised) -> WorldModel:
    """A generator with weights as if trained, and everything CoLA-World adds as it starts."""
    config = ModelConfig(
        backbone=BACKBONES[request.param],
        idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=2),
        quantizer=VQConfig(codebook_size=4, unquantized_steps=0),
        conditioner=ConditionerConfig(depth=1, heads=2),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WorldModel(config)
    randomised(model.backbone)
    return model.eval()


@pytest.mark.parametrize("level", [0.0, 0.3], ids=["clean history", "noised history"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_rollout_is_the_generators(world, level, guidance) -> None:
    """Guidance between equal velocities changes nothing either, but for rounding."""
    history = torch.rand(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    codes = torch.randn(1, 5, 2, 2, generator=torch.Generator().manual_seed(3))
    sampler = SamplerConfig(steps=2, guidance=guidance, context_noise=level)
    made, plain = (
        World(world, replace(sampler, guidance=1.0 if given is None else guidance))
        .rollout(history, given, generator=torch.Generator().manual_seed(4), frames=6)
        .frames
        for given in (codes, None)
    )
    torch.testing.assert_close(made, plain, atol=1e-5, rtol=1e-5)
    if guidance == 1.0:
        assert torch.equal(made, plain)


def test_an_opened_conditioner_does_steer(world) -> None:
    """The equality above is the start's, not a path that leads nowhere."""
    with torch.no_grad():
        world.conditioner.out.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(5))
        latents = torch.randn(1, 12, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        codes = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(6))
        times = torch.full((1, 4), 0.5)
        plain = world.backbone.velocity(latents, times)
        assert (world.velocity(latents, times, codes) - plain).abs().max() > 1e-3
