"""Adapters: what goes in, what comes out, and where a table starts. Values worked out by hand."""

from __future__ import annotations

import logging

import pytest
import torch

from colaworld.action_contract import ActionContract, Normaliser
from colaworld.config import ConfigError, to_dict
from colaworld.models.adapters import (
    ActionHeadConfig,
    AttentionAdapterConfig,
    MLPAdapterConfig,
    TableAdapterConfig,
)
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.world import World
from colaworld.models.world_model import WorldModel

PARTS = ("idm", "quantizer", "conditioner", "adapter", "action_head")


def world(adapter, head=None) -> WorldModel:
    torch.manual_seed(0)
    head = head or ActionHeadConfig(discrete=adapter.discrete, size=adapter.size)
    config = ModelConfig(
        backbone=STDiT3Config(depth=1, width=32, heads=1),
        idm=IDMConfig(depth=1, width=32, heads=1, tokens=2, dim=3),
        conditioner=ConditionerConfig(depth=1, heads=1),
        parts={"adapter": adapter, "action_head": head},
    )
    return WorldModel(config, parts=PARTS)


def test_a_table_starts_from_class_means_and_an_unseen_class_from_the_mean_of_all() -> None:
    table = world(TableAdapterConfig(size=3)).adapter
    sums = torch.tensor([[[1.0, 2, 3], [0, 0, 0]], [[4.0, 0, 0], [2, 2, 2]], [[0.0] * 3] * 2])
    table.start(sums, torch.tensor([1.0, 3.0, 0.0]))
    codes = table(torch.tensor([[0, 1, 2]]))
    assert codes.shape == (1, 3, 2, 3)
    assert torch.equal(codes[0, 0], torch.tensor([[1.0, 2, 3], [0, 0, 0]]))
    torch.testing.assert_close(codes[0, 1], torch.tensor([[4 / 3, 0, 0], [2 / 3] * 3]))
    torch.testing.assert_close(codes[0, 2], torch.tensor([[5 / 4, 2 / 4, 3 / 4], [2 / 4] * 3]))


def test_numbers_are_standardised_and_a_constant_channel_is_only_shifted() -> None:
    given = MLPAdapterConfig(size=2, mean=(1.0, 5.0), std=(2.0, 0.0), hidden=8)
    adapter = world(given).adapter
    actions = torch.tensor([[[3.0, 5.0], [-1.0, 6.0]]])
    wanted = adapter.mlp(torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]])).unflatten(-1, (2, 3))
    torch.testing.assert_close(adapter(actions), wanted)
    assert {"scale.mean", "scale.std"} <= adapter.state_dict().keys()


def test_classes_enter_an_mlp_one_hot() -> None:
    adapter = world(MLPAdapterConfig(size=3, discrete=True, hidden=8)).adapter
    hot = torch.tensor([[[0.0, 0, 1], [1, 0, 0]]])
    assert torch.equal(adapter(torch.tensor([[2, 0]])), adapter.mlp(hot).unflatten(-1, (2, 3)))


def test_attention_sees_the_frame_before_each_action_and_no_later_one() -> None:
    model = world(AttentionAdapterConfig(size=2))
    frames, actions = torch.rand(1, 3, 3, 16, 16), torch.rand(1, 2, 2)
    codes = model.encode_actions(actions, frames).codes
    last = frames.clone()
    last[:, 2] = 0  # led into by the second action, and seen by none
    assert torch.equal(model.encode_actions(actions, last).codes, codes)
    second = frames.clone()
    second[:, 1] = 0
    changed = model.encode_actions(actions, second).codes
    assert torch.equal(changed[:, 0], codes[:, 0]) and not torch.allclose(
        changed[:, 1], codes[:, 1]
    )


def test_under_a_temporal_stride_actions_see_the_last_frame_that_is_there() -> None:
    model = world(AttentionAdapterConfig(size=2))
    model.tokenizer.temporal_stride = 2
    frames = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(1, 5, 3, 8, 8)
    seen = model.seen_frames(frames)
    assert seen[0, :, 0, 0, 0].tolist() == [0, 0, 2, 2]


def test_the_nearest_entries_are_those_of_a_search_by_hand_and_quantising_takes_them() -> None:
    model = world(MLPAdapterConfig(size=2, quantise=True, hidden=8)).eval()
    actions = torch.randn(2, 3, 2)
    free = model.adapter(actions)
    made = model.encode_actions(actions)
    table = model.quantizer.codebook
    for index, code, out in zip(
        made.indices.flatten(), free.flatten(0, -2), made.codes.flatten(0, -2), strict=True
    ):
        assert index == (table - code).square().sum(1).argmin()
        torch.testing.assert_close(out, table[index])
    made.codes.sum().backward()  # straight through: the gradient of a sum is one
    bias = model.adapter.mlp.fc2.bias.grad
    torch.testing.assert_close(bias, torch.full_like(bias, 6.0))  # 2 x 3 transitions


def test_the_head_gives_actions_in_the_units_of_the_data() -> None:
    head = ActionHeadConfig(size=2, mean=(1.0, -1.0), std=(10.0, 0.5), hidden=0)
    model = world(MLPAdapterConfig(size=2), head)
    codes = torch.randn(1, 2, 2, 3)
    raw = model.action_head.map(codes.flatten(2))
    wanted = raw * torch.tensor([10.0, 0.5]) + torch.tensor([1.0, -1.0])
    torch.testing.assert_close(model.action_head.decode(codes), wanted)
    classes = world(TableAdapterConfig(size=4)).action_head
    assert torch.equal(classes.decode(codes), classes(codes).argmax(-1))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'table' needs classes, these actions are continuous"):
        TableAdapterConfig(size=2, discrete=False)
    with pytest.raises(ConfigError, match=r"adapter\.mean: expected 2 values, .* got 3"):
        MLPAdapterConfig(size=2, mean=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match=r"adapter\.mean: classes have none"):
        MLPAdapterConfig(size=2, discrete=True, mean=(1.0, 2.0))
    mlp = world(MLPAdapterConfig(size=2)).adapter
    for wrong in (torch.rand(1, 2, 3), torch.zeros(1, 2, 2, dtype=torch.int64), torch.rand(2, 2)):
        with pytest.raises(ValueError, match=r"adapter: expected floats \[B, T - 1, 2\], got"):
            mlp(wrong)
    with pytest.raises(ValueError, match=r"adapter: expected classes, integers"):
        world(TableAdapterConfig(size=2)).adapter(torch.rand(1, 2))
    with pytest.raises(ValueError, match=r"'attention' looks at the frame .* got None"):
        world(AttentionAdapterConfig(size=2)).adapter(torch.rand(1, 2, 2))


def test_a_configuration_comes_back_as_its_kind() -> None:
    given = ModelConfig(parts={"adapter": AttentionAdapterConfig(size=2, width=32)})
    again = ModelConfig(parts=to_dict(given)["parts"])
    assert again == given and isinstance(again.of("adapter"), AttentionAdapterConfig)
    assert isinstance(ModelConfig().of("adapter"), MLPAdapterConfig)
    with pytest.raises(ConfigError, match=r"model\.parts\.adapter\.kind: expected one of"):
        ModelConfig(parts={"adapter": {"kind": "mpl"}})


def test_a_world_that_looks_follows_actions_step_by_step() -> None:
    """By hand: each action is encoded on the frame that was generated last."""
    world_ = World(world(AttentionAdapterConfig(size=2)).eval())
    torch.nn.init.normal_(world_.model.conditioner.out.weight, std=0.1)
    frames, actions = torch.rand(1, 2, 3, 16, 16), torch.randn(1, 4, 2)

    def noise() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    found = world_.follow(frames, actions, generator=noise())
    assert found.history == 2 and found.frames.shape[1] == 5
    before = world_.encode_actions(actions[:, :1], frames[:, :1]).codes
    state, made = world_.begin(frames, before, generator=noise()), frames
    for step in range(1, 4):
        codes = world_.encode_actions(actions[:, step : step + 1], made[:, -1:]).codes
        made = torch.cat([made, state.step(codes)], dim=1)
    assert torch.equal(found.frames, made)
    with pytest.raises(ValueError, match=r"follow: actions: expected those of 1 clips"):
        world_.follow(frames, actions[:, :0], generator=noise())


def test_values_far_outside_what_was_recorded_are_warned_of(caplog) -> None:
    scale = Normaliser("mean_std", 9, (0.0, 0.0), (1.0, 1.0), low=(-1.0, -1.0), high=(1.0, 1.0))
    contract = ActionContract("action", "continuous", 2, ("x", "y"), normaliser=scale)
    world_ = World(world(MLPAdapterConfig(size=2)).eval(), actions=contract)
    with caplog.at_level(logging.WARNING):
        world_.encode_actions(torch.tensor([[[1.1, -1.1]]]))
        assert not caplog.records  # a tenth of the range is not far
        world_.encode_actions(torch.tensor([[[57.0, 0.0]]]))
    (record,) = caplog.records
    assert "x: values from 57 to 57, recorded were -1 to 1" in record.getMessage()
    with pytest.raises(
        ValueError, match=r"actions \(x, y\) \[B, T - 1, 2\], got some that are not"
    ):
        world_.encode_actions(torch.tensor([[[float("nan"), 0.0]]]))


def test_a_world_refuses_numbers_beyond_float32_and_another_contract() -> None:
    arm = World(world(MLPAdapterConfig(size=2)).eval())
    huge = torch.full((1, 2, 2), 1e300, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"actions: expected actions within float32"):
        arm.encode_actions(huge)
    takes = "World: actions: expected a contract of 2 numbers of a transition, .* got one of"
    for kind, size, said in (("continuous", 3, "3 numbers"), ("discrete", 2, "2 classes")):
        with pytest.raises(ValueError, match=f"{takes} {said}"):
            World(arm.model, actions=ActionContract("action", kind, size))
    with pytest.raises(ValueError, match=r"of 3 classes, .* got one of 4 classes"):
        model = world(TableAdapterConfig(size=3)).eval()
        World(model, actions=ActionContract("action", "discrete", 4))


def test_codes_go_where_the_head_is_to_be_decoded(monkeypatch) -> None:
    """On a machine with one device: the head stands on meta, codes come from the CPU."""
    arm = World(world(MLPAdapterConfig(size=2)).eval())
    codes = torch.randn(1, 3, 2, 3, requires_grad=True)
    assert not arm.decode_actions(codes).requires_grad
    arm.model.action_head.to("meta")
    assert arm.decode_actions(codes).device.type == "meta"


def test_classes_of_any_integers_are_taken() -> None:
    game = World(world(TableAdapterConfig(size=3)).eval())
    wanted = game.encode_actions(torch.tensor([[0, 2]])).codes
    for dtype in (torch.uint8, torch.uint16, torch.uint64, torch.int8):
        given = torch.tensor([[0, 2]], dtype=dtype)
        assert torch.equal(game.encode_actions(given).codes, wanted)
    with pytest.raises(ValueError, match=r"expected classes 0 \.\. 2, .* got 18446744073709551615"):
        game.encode_actions(torch.tensor([[2**64 - 1]], dtype=torch.uint64))
