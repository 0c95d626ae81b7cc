"""Control on held-out clips: 0 where codes are not listened to, and the same numbers every time."""

from __future__ import annotations

import pytest
import torch

from colaworld.contracts import ClipBatch
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world_model import WorldModel
from colaworld.training.config import ObjectiveConfig, TrainingConfig
from colaworld.training.control import ControlMeter, others


def model(*, deaf: bool) -> WorldModel:
    config = ModelConfig(
        backbone=STDiT3Config(depth=1, width=16, heads=2),
        idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=2),
        quantizer=VQConfig(codebook_size=4),
        conditioner=ConditionerConfig(depth=1, heads=2),
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = WorldModel(config)
        for name, parameter in made.named_parameters():
            if not (deaf and name.startswith("conditioner")):
                parameter.add_(0.3 * torch.randn(parameter.shape))
        # Codes far apart, one for each side of zero: clips get different ones.
        made.quantizer.codebook.copy_(torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]]) * 0.1)
    return made


def clips(count: int = 6) -> ClipBatch:
    frames = torch.randint(0, 256, (count, 4, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    number = torch.arange(count)
    return ClipBatch(frames.to(torch.uint8), number // 2, number)


def meter(of: WorldModel, *, batch: int = 4) -> ControlMeter:
    training = TrainingConfig(batch_size=batch)
    return ControlMeter(of, clips(), ObjectiveConfig(history=(1, 1), augment=False), training)


def test_an_untrained_conditioner_says_nothing():
    found = meter(model(deaf=True))()
    assert found["control"] == 0
    assert found["inferred"] == found["shuffled"] == found["null"] > 0


def test_by_hand_and_again():
    world = model(deaf=False)
    world.train()
    random = torch.get_rng_state()
    found = meter(world)()
    assert found == meter(world)()  # the same clips, noise and times
    assert len({found["inferred"], found["shuffled"], found["null"]}) == 3
    assert found["control"] == pytest.approx(1 - found["inferred"] / found["shuffled"])
    assert world.training and world.idm.training
    assert torch.equal(torch.get_rng_state(), random)


def test_how_many_clips_a_pass_takes_changes_nothing():
    world = model(deaf=False)
    whole = meter(world, batch=6)()
    for batch in (1, 4):
        assert meter(world, batch=batch)() == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_others_are_of_other_episodes():
    episodes = torch.tensor([0, 0, 0, 1, 1, 2])
    chosen = others(episodes)
    assert (episodes[chosen] != episodes).all()
    assert others(torch.tensor([0, 1, 2, 3])).tolist() == [2, 3, 0, 1]
    with pytest.raises(ValueError, match="2 episodes or more, got 3 of one"):
        others(torch.tensor([4, 4, 4]))
