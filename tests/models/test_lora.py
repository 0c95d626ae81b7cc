"""LoRA: nothing at the start, the merged weights afterwards, in every way that a model is run."""

from __future__ import annotations

import pytest
import torch

from colaworld.config import ConfigError
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.lora import LoRAConfig
from colaworld.models.low_rank import merged
from colaworld.models.world_model import WorldModel
from colaworld.training.blocks import compile_blocks, recompute_blocks

BACKBONES = {
    "stdit3": STDiT3Config(depth=1, width=32, heads=1),
    "wan": WanConfig(layers=1, heads=1, head_dim=32, ffn=64),
}
PARTS = ("idm", "quantizer", "conditioner")


def made(kind: str, *, lora: LoRAConfig | None) -> WorldModel:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BACKBONES[kind],
        idm=IDMConfig(depth=1, width=32, heads=1),
        conditioner=ConditionerConfig(depth=1, heads=1),
        parts={} if lora is None else {"lora": lora},
    )
    model = WorldModel(config, parts=PARTS if lora is None else (*PARTS, "lora"))
    for name, parameter in model.backbone.named_parameters():  # no layer starts at zero here
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def velocity(model: WorldModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, model.backbone.channels, 3, 4, 4, generator=generator)
    return model.velocity(latents, torch.full((1, 3), 0.5))


def trained(model: WorldModel) -> WorldModel:
    for added in model.lora.layers.values():
        torch.nn.init.normal_(added.b, generator=torch.Generator().manual_seed(2), std=0.1)
    return model


@pytest.mark.parametrize("kind", BACKBONES)
def test_it_is_nothing_at_the_start_and_the_merged_weights_afterwards(kind) -> None:
    lora = LoRAConfig(rank=3, alpha=6.0)
    plain, model = made(kind, lora=None), made(kind, lora=lora)
    assert plain.backbone.state_dict().keys() == model.backbone.state_dict().keys()
    linear = [m for m in plain.backbone.modules() if isinstance(m, torch.nn.Linear)]
    assert len(model.lora.layers) == len(linear) > 5
    with torch.no_grad():
        assert torch.equal(velocity(model), velocity(plain))
        out = velocity(trained(model))
        assert (out - velocity(plain)).abs().max() > 0.05
        weights = merged(model.state_dict(), lora)
        plain.load_state_dict(weights)  # no key of LoRA is left
        torch.testing.assert_close(velocity(plain), out, atol=1e-4, rtol=1e-4)


def test_one_layer_by_hand() -> None:
    weights = {
        "backbone.x.weight": torch.tensor([[1.0, 2.0]]),
        "lora.layers.x.a": torch.tensor([[3.0, 4.0]]),
        "lora.layers.x.b": torch.tensor([[0.5]]),
    }
    found = merged(weights, LoRAConfig(rank=1, alpha=2.0))
    assert found.keys() == {"backbone.x.weight"}
    assert found["backbone.x.weight"].tolist() == [[4.0, 6.0]]  # 1 + 2 * .5 * 3, 2 + 2 * .5 * 4
    with pytest.raises(ValueError, match=r"lora: an addition to backbone\.x\.weight"):
        merged({k: v for k, v in weights.items() if k.startswith("lora")}, LoRAConfig(rank=1))


@pytest.mark.parametrize("way", [recompute_blocks, "compile"])
def test_its_gradients_are_the_same_where_blocks_are_recomputed_or_compiled(way) -> None:
    """Compiled up to the graph that torch takes, which is run as it is: rounding does not differ."""
    found = []
    for wrapped in (False, True):
        model = trained(made("stdit3", lora=LoRAConfig(rank=2)))
        model.backbone.requires_grad_(False)
        if wrapped and way == "compile":
            compile_blocks(model, backend="aot_eager")
        elif wrapped:
            way(model)
        velocity(model).square().mean().backward()
        found.append({name: p.grad for name, p in model.lora.named_parameters()})
    assert all(grad is not None and grad.abs().max() > 0 for grad in found[0].values())
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=name)


def test_compiled_whole_it_is_in_the_graph() -> None:
    model = trained(made("stdit3", lora=LoRAConfig(rank=2)))
    wanted = velocity(model)
    model.backbone.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(velocity(model), wanted)
    with torch.no_grad():
        for added in model.lora.layers.values():
            added.b.zero_()
    assert not torch.allclose(velocity(model), wanted)  # its values are read, not baked in


def test_a_rank_of_none() -> None:
    with pytest.raises(ConfigError, match=r"model\.parts\.lora\.rank"):
        LoRAConfig(rank=0)
