"""What adaptation minimises, by another formula; and what moves and what stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from colaworld.contracts import ClipBatch, to_float
from colaworld.models.adapters import ActionHeadConfig, MLPAdapterConfig, TableAdapterConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.lora import LoRAConfig
from colaworld.models.world_model import WorldModel
from colaworld.rng import ClipGenerator
from colaworld.training.adaptation import (
    AdaptedLamObjective,
    AdaptedObjective,
    AdapterObjective,
)
from colaworld.training.config import OBJECTIVES, ObjectiveConfig
from colaworld.training.phases import Phase, enter_phase

PARTS = ("idm", "quantizer", "conditioner", "adapter", "action_head")
CONFIG = ObjectiveConfig(history=(1, 2), augment=False, start_clips=4)


def world(adapter, *, lora: bool = False) -> WorldModel:
    torch.manual_seed(0)
    shared = {"discrete": adapter.discrete, "size": adapter.size}
    shared |= {"mean": adapter.mean, "std": adapter.std}
    parts = {"adapter": adapter, "action_head": ActionHeadConfig(hidden=8, **shared)}
    config = ModelConfig(
        backbone=STDiT3Config(depth=1, width=32, heads=1),
        idm=IDMConfig(depth=1, width=32, heads=1),
        conditioner=ConditionerConfig(depth=1, heads=1, dropout=0.0),
        parts=parts | ({"lora": LoRAConfig(rank=2)} if lora else {}),
    )
    model = WorldModel(config, parts=(*PARTS, "lora") if lora else PARTS)
    for module in (model.conditioner.out, model.backbone.final_layer.linear):
        torch.nn.init.normal_(module.weight, std=0.1)  # zero at the start: nothing would pass
    return model


def batch(*, discrete: bool, seed: int = 0) -> ClipBatch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (2, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    number = torch.zeros(2, dtype=torch.int64)
    actions = torch.randn(2, 3, 2, generator=generator) * 3 + 1
    if discrete:
        actions = torch.randint(0, 3, (2, 3), generator=generator)
    return ClipBatch(frames, episode=number, start=number, actions=actions)


def draws(seed: int = 0) -> ClipGenerator:
    return ClipGenerator("cpu", seed, clips=2, slots=range(2))


def moved(model: WorldModel, objective, clips: ClipBatch, train: tuple[str, ...]) -> set[str]:
    """Parts that a gradient reaches."""
    enter_phase(model, Phase("p", "adapted", train, steps=1))
    loss, _ = objective.loss(clips, generator=draws())
    loss.backward()
    return {
        name
        for name, part in model.named_children()
        if any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
    }


def test_numbers_are_matched_to_the_inferred_codes_and_back() -> None:
    model = world(MLPAdapterConfig(size=2, mean=(1.0, 1.0), std=(3.0, 3.0), hidden=8))
    clips = batch(discrete=False)
    loss, metrics = AdapterObjective(model, CONFIG).loss(clips, generator=draws())
    inferred = model.infer_actions(to_float(clips.frames)).codes
    match = (model.adapter(clips.actions) - inferred).square().mean()
    head = (model.action_head(inferred) - (clips.actions - 1) / 3).square().mean()
    torch.testing.assert_close(metrics["match"], match)
    torch.testing.assert_close(metrics["head"], head)
    torch.testing.assert_close(loss, match + head)
    assert metrics["indices"].shape == (2, 3, model.tokens)
    train = ("adapter", "action_head")
    assert moved(model, AdapterObjective(model, CONFIG), clips, train) == set(train)


def test_classes_are_told_back_by_cross_entropy() -> None:
    model = world(MLPAdapterConfig(size=3, discrete=True, hidden=8))
    clips = batch(discrete=True)
    _, metrics = AdapterObjective(model, CONFIG).loss(clips, generator=draws())
    logits = model.action_head(model.infer_actions(to_float(clips.frames)).codes)
    wanted = -F.log_softmax(logits, -1).gather(-1, clips.actions[..., None]).mean()
    torch.testing.assert_close(metrics["head"], wanted)


def test_a_table_starts_from_the_means_over_the_first_clips() -> None:
    model = world(TableAdapterConfig(size=3))
    seeds = iter(range(9))
    given = []

    def supply():
        given.append(batch(discrete=True, seed=next(seeds)))
        return given[-1], draws()

    AdapterObjective(model, CONFIG).before_phase(supply, generator=torch.Generator())
    assert len(given) == 2  # four clips, two at a time
    codes = torch.cat([model.infer_actions(to_float(b.frames)).codes for b in given]).flatten(0, 1)
    classes = torch.cat([b.actions for b in given]).flatten()
    for number in range(3):
        mean = codes[classes == number].mean(0)
        torch.testing.assert_close(model.adapter(torch.tensor([[number]]))[0, 0], mean)


def test_fine_tuning_reaches_the_adapter_through_the_video_model_and_not_the_frozen_ones() -> None:
    model, clips = world(MLPAdapterConfig(size=2, hidden=8)), batch(discrete=False)
    objective = AdaptedObjective(model, CONFIG)
    parts = {"adapter", "conditioner", "backbone"}
    assert moved(model, objective, clips, tuple(parts)) == parts
    made = objective.forward(clips, generator=draws())
    under = objective.forward(clips, generator=draws())
    assert torch.equal(made.velocity, under.velocity)  # all its randomness is given
    assert torch.equal(made.indices, model.nearest(model.adapter(clips.actions)))


def test_with_lora_the_video_model_itself_stays() -> None:
    model, clips = world(MLPAdapterConfig(size=2, hidden=8), lora=True), batch(discrete=False)
    parts = {"adapter", "conditioner", "lora"}
    assert moved(model, AdaptedObjective(model, CONFIG), clips, tuple(parts)) == parts
    frozen = ObjectiveConfig(history=(1, 1), frozen_history=(3, 3), augment=False)
    made = AdaptedObjective(model, frozen).forward(clips, generator=draws())
    assert made.predict[0].tolist() == [False, True, True, True]  # it learns: `history` counts


def test_where_the_latent_action_model_goes_on_learning_both_ways_count() -> None:
    model, clips = world(MLPAdapterConfig(size=2, hidden=8)), batch(discrete=False)
    objective = AdaptedLamObjective(model, CONFIG)
    parts = {"adapter", "conditioner", "backbone", "idm", "quantizer", "action_head"}
    assert moved(model, objective, clips, tuple(parts)) == parts
    loss, metrics = objective.loss(clips, generator=draws())
    names = {"flow", "flow_inferred", "quantizer", "head"}
    assert names | {"indices"} == metrics.keys()
    assert loss.item() == pytest.approx(sum(metrics[name].item() for name in names), rel=1e-5)
    alone = AdaptedObjective(model, CONFIG).loss(clips, generator=draws())[0]
    torch.testing.assert_close(metrics["flow"], alone.detach())  # the same noise and times


def test_they_are_known_to_phases_and_ask_for_actions() -> None:
    for name in ("adapter", "adapted", "adapted_lam"):
        assert OBJECTIVES[name].uses_actions and set(PARTS) == set(OBJECTIVES[name].needs)
    model = world(TableAdapterConfig(size=3))
    clips = batch(discrete=True)
    bare = ClipBatch(clips.frames, clips.episode, clips.start)
    with pytest.raises(ValueError, match=r"learns from recorded actions; the loader gave none"):
        AdaptedObjective(model, CONFIG).loss(bare, generator=draws())
