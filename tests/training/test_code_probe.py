"""The probe while training: it tells what codes mean, the same every time, and touches nothing."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from colaworld.contracts import ActionSpec, ClipBatch
from colaworld.metrics.config import ProbeConfig
from colaworld.metrics.probe import cross_validated, linear_probe
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.world_model import WorldModel
from colaworld.training.code_probe import CodeProbe
from colaworld.training.config import TrainingConfig

SPEC = ActionSpec("action", "discrete", 2, ("dark", "bright"))


@pytest.fixture(scope="module")
def world() -> WorldModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = WorldModel(
            ModelConfig(
                backbone=STDiT3Config(depth=1, width=16, heads=2),
                idm=IDMConfig(depth=1, width=16, heads=2, tokens=1, dim=4),
                quantizer=VQConfig(codebook_size=4, unquantized_steps=10),
                conditioner=ConditionerConfig(depth=1, heads=2),
            )
        )
    return made.train()


def clips(count: int = 16, *, told: bool = True) -> ClipBatch:
    """Frames turn bright or dark, which is the action where it is `told`, else chance."""
    generator = torch.Generator().manual_seed(1)
    actions = torch.randint(0, 2, (count, 3), generator=generator)
    bright = torch.cat([torch.zeros(count, 1, dtype=torch.int64), actions], dim=1)
    frames = 60 + 120 * bright[..., None, None, None].expand(-1, -1, 3, 8, 8)
    if not told:
        actions = torch.randint(0, 2, (count, 3), generator=generator)
    number = torch.arange(count)
    return ClipBatch(frames.to(torch.uint8), number // 2, number, actions=actions)


def probe(of: WorldModel, batch: ClipBatch, *, size: int = 5) -> CodeProbe:
    return CodeProbe(of, batch, SPEC, TrainingConfig(batch_size=size), ProbeConfig())


def test_it_tells_meaning_from_chance_and_touches_nothing(world) -> None:
    random = torch.get_rng_state()
    weights = {key: value.clone() for key, value in world.state_dict().items()}
    told, untold = (probe(world, clips(told=told))() for told in (True, False))
    assert told["score"] > 0.9 and told["chance"] < 0.7
    assert untold["score"] < 0.75
    assert told == probe(world, clips())()
    assert torch.equal(torch.get_rng_state(), random)
    assert world.training and world.idm.training
    assert all(torch.equal(value, weights[key]) for key, value in world.state_dict().items())


def test_how_many_clips_a_pass_takes_changes_nothing(world) -> None:
    assert probe(world, clips(), size=1)() == pytest.approx(probe(world, clips(), size=16)())


def test_codes_that_are_not_finite_have_no_score_and_stop_no_run(world) -> None:
    broken = copy.deepcopy(world)
    with torch.no_grad():
        next(broken.idm.parameters()).fill_(math.nan)
    found = probe(broken, clips())()
    assert math.isnan(found["score"]) and found["chance"] == probe(world, clips()).chance


def test_what_cannot_be_probed_is_refused(world) -> None:
    batch = clips()
    with pytest.raises(ValueError, match="the recorded action never changes"):
        probe(world, replace(batch, actions=torch.zeros_like(batch.actions)))
    with pytest.raises(ValueError, match="rows of at least 2 episodes"):
        probe(world, replace(batch, episode=torch.zeros_like(batch.episode)))
    with pytest.raises(ValueError, match="expected clips with actions"):
        probe(world, replace(batch, actions=None))


def test_folds_share_no_episode_and_test_every_row_once(world) -> None:
    """Continuous actions too; a fold whose target does not vary has no R^2."""
    episodes = torch.tensor([3, 3, 5, 5, 8, 8, 9, 9, 11, 11]).numpy()
    features = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    actions = features @ torch.tensor([[1.0], [2.0]])
    tested = []

    def answer(train, test):
        assert not set(episodes[train]) & set(episodes[test])
        tested.extend(test.tolist())
        return linear_probe(
            features, actions, train, test, kind="continuous", config=ProbeConfig(ridge=1e-9)
        )

    assert cross_validated(answer, episodes, folds=4) == pytest.approx(1.0, abs=1e-4)
    assert sorted(tested) == list(range(10))
    actions[:4] = 0.5
    still = cross_validated(answer, episodes[:4], folds=9)
    assert still != still  # NaN
