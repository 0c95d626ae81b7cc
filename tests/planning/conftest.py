"""A world that is small enough to plan in."""

from __future__ import annotations

import pytest
import torch

from colaworld.flow.config import SamplerConfig
from colaworld.models.adapters import ActionHeadConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel

PARTS = ("idm", "quantizer", "conditioner")


def _small(adapter=None, quantizer=None) -> World:
    """Random weights in every part; 8x8 px; four codes in two tokens."""
    torch.manual_seed(0)
    extra = {}
    if adapter is not None:
        head = ActionHeadConfig(discrete=adapter.discrete, size=adapter.size)
        extra = {"adapter": adapter, "action_head": head}
    config = ModelConfig(
        backbone=STDiT3Config(depth=1, width=16, heads=2),
        idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=4),
        quantizer=quantizer or VQConfig(codebook_size=4),
        conditioner=ConditionerConfig(depth=1, heads=2),
        window=4,
        parts=extra,
    )
    model = WorldModel(config, parts=(*PARTS, *extra)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )
    return World(model, SamplerConfig(steps=2), frame_size=(8, 8))


@pytest.fixture(scope="session")
def small():
    """Makes one: small(), small(adapter), small(quantizer=...)."""
    return _small
