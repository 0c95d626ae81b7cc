"""What every backbone promises (`backbones.backbone`), asked of all of them and of one from outside.

What is one backbone's own (formulas, published names and sizes) stands in its own tests.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from colaworld import registry
from colaworld.cli.command_line import from_command_line
from colaworld.config import ConfigError, from_dict, load_yaml, to_dict, to_yaml
from colaworld.models.backbones import (
    BackboneConfig,
    build_backbone,
    published_config,
    register_backbone,
)
from colaworld.models.backbones.backbone import BACKBONES
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.backbones.weights import WeightsError, load_weights
from colaworld.models.config import ConditionerConfig, ModelConfig
from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.quantizers import VQConfig
from colaworld.models.layers.attention import use_backend
from colaworld.models.world_model import WorldModel
from colaworld.runs.weights import load_backbone


def toy():
    """The file imported, and what it registered taken out: other tests know nothing of it."""
    path = Path(__file__).with_name("plugin_backbone.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    with registry.from_outside():
        spec.loader.exec_module(module)
        return module.ToyConfig, BACKBONES["toy"]


ToyConfig, TOY = toy()
STDIT3 = STDiT3Config(depth=2, width=24, heads=2, caption_width=10, caption_length=3)
WAN = WanConfig(layers=2, heads=2, head_dim=14, ffn=40, freq_dim=16, text_width=10)
CONFIGS: dict[str, BackboneConfig] = {
    "stdit3": replace(STDIT3, predict_sigma=True),
    "stdit3 with the null caption": replace(STDIT3, text="null"),
    "stdit3 with text": replace(STDIT3, text="full"),
    "wan": WAN,
    "wan with text": replace(WAN, text="full"),
    "toy": ToyConfig(),
}
PUBLISHED = ("stdit3", "wan")


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setitem(BACKBONES, "toy", TOY)


@pytest.fixture(params=CONFIGS)
def config(request) -> BackboneConfig:
    return CONFIGS[request.param]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip(config: BackboneConfig, *, frames: int = 4, batch: int = 1) -> dict[str, Any]:
    """The arguments of `velocity`."""
    blocks = build_on_meta(config).modulated_blocks
    given = {
        "latents": drawn(batch, config.in_channels, frames, 4, 6),
        "times": drawn(batch, frames, seed=2).sigmoid(),
        "modulation": 0.3 * drawn(batch, frames, blocks, 6 * config.width, seed=3),
    }
    if config.text == "full":
        given["text"] = drawn(batch, 5, 10, seed=4)
    return given


def part(given: dict[str, Any], frames: slice) -> dict[str, Any]:
    """Those frames of a clip."""
    return given | {
        "latents": given["latents"][:, :, frames],
        "times": given["times"][:, frames],
        "modulation": given["modulation"][:, frames],
    }


def build_on_meta(config: BackboneConfig) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(config)


def blocks(model: nn.Module) -> list[nn.Module]:
    """In the order of their modulation."""
    lists = (getattr(model, name) for name in model.block_lists)
    return [block for together in zip(*lists, strict=True) for block in together]


def relative(made: Tensor, expected: Tensor) -> float:
    return ((made - expected).norm() / expected.norm()).item()


def close(made: Tensor, expected: Tensor) -> None:
    assert relative(made, expected) <= 1e-5


def test_configuration_and_module_say_the_same(config) -> None:
    model = build_on_meta(config)
    assert model.config == config and isinstance(config, BackboneConfig)
    assert (model.width, model.channels, model.patch) == (
        config.width,
        config.in_channels,
        config.patch,
    )
    assert config.width % config.heads == 0
    assert len(blocks(model)) == model.modulated_blocks
    assert set(config.identity_keys) <= set(to_dict(config))
    assert model.time_shift(4, 4, 6) > 0


def test_a_saved_configuration_reads_back(config) -> None:
    saved = {"backbone": to_dict(config)}
    assert from_dict(ModelConfig, saved).backbone == config
    with pytest.raises(ConfigError, match=r"unknown key 'backbone\.colour'"):
        from_dict(ModelConfig, {"backbone": saved["backbone"] | {"colour": 1}})


@pytest.mark.parametrize("causal", [True, False])
def test_causal_velocity_does_not_see_later_frames(config, causal, randomised) -> None:
    """Frame 2's latent, its time or its action changes: frames 0 and 1 do not, bit for bit."""
    model = randomised(build_backbone(replace(config, causal=causal)))
    given = clip(config)
    with torch.no_grad():
        before = model.velocity(**given)
        assert before.dtype == torch.float32 and before.shape == given["latents"].shape
        for which in ("latents", "times", "modulation"):
            changed = given[which].clone()
            changed[(slice(None), slice(None), 2) if which == "latents" else (slice(None), 2)] += (
                0.5
            )
            after = model.velocity(**given | {which: changed})
            moved = (after - before).abs().amax((0, 1, 3, 4))
            assert (moved[2:] > 0).all() if not causal or which == "latents" else moved[2] > 0
            assert (moved[:2] == 0).all() if causal else (moved[:2] > 1e-6).all(), which


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1), (2, 3), (3, 1, 1), (4, 1)])
def test_cached_equals_uncached(config, chunks, randomised) -> None:
    """A clip given in parts, each behind the cached ones, has the velocity of the whole clip."""
    model = randomised(build_backbone(config))
    given = clip(config, frames=5, batch=2)
    with torch.no_grad():
        whole = model.velocity(**given)
        cache, parts, first = model.new_cache(), [], 0
        for count in chunks:
            now = part(given, slice(first, first + count))
            # a look that stores nothing leaves no trace: denoising steps may come before the store
            model.velocity(**now | {"latents": now["latents"] + 1}, cache=cache)
            assert cache.frames == first
            parts.append(model.velocity(**now, cache=cache, store=True))
            first += count
            assert cache.frames == first
    close(torch.cat(parts, dim=2), whole)


def test_forks_of_a_history_are_the_clips_they_would_be(config, randomised) -> None:
    """One history, three ways on: at once, and from copies that do not see each other."""
    model = randomised(build_backbone(config))
    given = clip(config, frames=4, batch=3)
    given["latents"][:, :, :2] = given["latents"][:1, :, :2].clone()
    for name in ("times", "modulation"):
        given[name][:, :2] = given[name][:1, :2].clone()
    if "text" in given:
        given["text"] = given["text"][:1].repeat(3, 1, 1)
    with torch.no_grad():
        whole = model.velocity(**given)[:, :, 2:]
        history = model.new_cache()
        one = {name: value[:1] for name, value in given.items()}
        model.velocity(**part(one, slice(2)), cache=history, store=True)
        close(model.velocity(**part(given, slice(2, 4)), cache=history), whole)
        for row in range(3):
            fork = history.copy()
            its = {name: value[row : row + 1] for name, value in given.items()}
            made = [
                model.velocity(**part(its, slice(at, at + 1)), cache=fork, store=True)
                for at in (2, 3)
            ]
            close(torch.cat(made, dim=2), whole[row : row + 1])
            assert (history.frames, fork.frames) == (2, 4)


def test_gradients_with_a_cache_are_those_of_the_last_frame(config, randomised) -> None:
    model = randomised(build_backbone(config))
    given = clip(config, frames=3)
    grads = []
    for cached in (False, True):
        last = given["latents"][:, :, 2:].clone().requires_grad_()
        if cached:
            cache = model.new_cache()
            with torch.no_grad():
                model.velocity(**part(given, slice(2)), cache=cache, store=True)
            out = model.velocity(**part(given, slice(2, 3)) | {"latents": last}, cache=cache)
        else:
            latents = torch.cat([given["latents"][:, :, :2], last], dim=2)
            out = model.velocity(**given | {"latents": latents})[:, :, 2:]
        (out * drawn(*out.shape, seed=5)).sum().backward()
        grads.append(last.grad)
    close(grads[1], grads[0])


def test_caches_that_do_not_fit(config) -> None:
    given = clip(config, batch=2)
    model, whole = build_backbone(config), build_backbone(replace(config, causal=False))
    with pytest.raises(ValueError, match=r"a cache needs .*causal"):
        whole.new_cache()
    with pytest.raises(ValueError, match=r"a cache needs .*causal"):
        whole.velocity(**given, cache=model.new_cache())
    with pytest.raises(ValueError, match=r"store=True without a cache"):
        model.velocity(**given, store=True)
    more, name = model.new_cache(), "depth" if config.kind == "stdit3" else "layers"
    other = build_backbone(replace(config, **{name: 3})).new_cache()
    with pytest.raises(ValueError, match=rf"expected {len(more.layers)} layers, got 3"):
        model.velocity(**given, cache=other)
    cache = model.new_cache()
    with torch.no_grad():
        model.velocity(**given, cache=cache, store=True)
    with pytest.raises(ValueError, match=r"expected 4 tokens per frame of 2 clips .* holds 6 of 2"):
        model.velocity(**given | {"latents": given["latents"][..., :4]}, cache=cache)
    with pytest.raises(ValueError, match=r"expected 6 tokens per frame of 1 clips .* holds 6 of 2"):
        model.velocity(**{name: value[:1] for name, value in given.items()}, cache=cache)


def test_one_modulation_serves_all_blocks_and_none_changes_nothing(config, randomised) -> None:
    model = randomised(build_backbone(config))
    given = clip(config, batch=2)
    all_blocks = given.pop("modulation")
    one = all_blocks[:, :, :1]
    with torch.no_grad():
        shared = model.velocity(**given, modulation=one)
        each = model.velocity(**given, modulation=one.expand_as(all_blocks))
        assert torch.equal(shared, each)
        plain = model.velocity(**given)
        assert torch.equal(model.velocity(**given, modulation=torch.zeros_like(one)), plain)
        assert torch.equal(model.velocity(**given, modulation=torch.zeros_like(all_blocks)), plain)


@pytest.mark.parametrize("name", PUBLISHED)
def test_modulation_of_a_block_acts_as_its_own_table(name, randomised) -> None:
    model = randomised(build_backbone(CONFIGS[name]))
    given = clip(model.config)
    six = 0.5 * drawn(6, model.width, seed=6)
    for index, block in enumerate(blocks(model)):
        modulation = torch.zeros_like(given["modulation"])
        modulation[:, :, index] = six.flatten()
        plain = {"latents": given["latents"], "times": given["times"]}
        with torch.no_grad():
            through_action = model.velocity(**plain, modulation=modulation)
            block.scale_shift_table += six
            through_table = model.velocity(**plain)
            block.scale_shift_table -= six
            assert (through_table - model.velocity(**plain)).abs().max() > 1e-3
        close(through_action, through_table)


def test_modulation_is_per_frame(config, randomised) -> None:
    """In the last block after attention nothing mixes frames: only the modulated one moves."""
    model = randomised(build_backbone(config))
    given = clip(config)
    modulation = torch.zeros_like(given.pop("modulation")).unflatten(3, (6, -1))
    modulation[:, 1, -1, 3:] = 0.5  # frame 1, last block, shift, scale and gate of its MLP
    with torch.no_grad():
        difference = model.velocity(**given, modulation=modulation.flatten(3))
        difference = (difference - model.velocity(**given)).abs().amax((0, 1, 3, 4))
    assert (difference > 0).tolist() == [False, True, False, False]


def test_every_parameter_gets_a_gradient(config, randomised) -> None:
    model = randomised(build_backbone(config))
    given = clip(config)
    given["modulation"].requires_grad_()
    model.velocity(**given).square().mean().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    unread = {"y_embedder.y_embedding"} if config.text == "full" else set()  # a caption was given
    assert without <= unread
    assert (given["modulation"].grad.abs().amax(-1) > 0).all()  # every frame and block


@pytest.mark.parametrize("causal", [True, False])
def test_an_untrained_conditioner_changes_nothing(config, causal, randomised) -> None:
    if config.text == "full":
        with pytest.raises(
            ValueError, match=r"model\.backbone\.text: a world model is given no cap"
        ):
            WorldModel(ModelConfig(backbone=config))
        return
    sizes = ModelConfig(
        backbone=replace(config, causal=causal),
        idm=IDMConfig(depth=1, width=16, heads=2, tokens=2, dim=2),
        quantizer=VQConfig(codebook_size=4, unquantized_steps=0),
        conditioner=ConditionerConfig(depth=1, heads=2),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WorldModel(sizes).eval()
    randomised(model.backbone)
    latents, codes = drawn(2, 12, 4, 4, 4), drawn(2, 3, 2, 2, seed=2)
    drop = torch.tensor([[True, False, False], [False, False, True]])
    for level in (0.0, 0.3):  # of the given frames
        times = torch.tensor([[level, level, 0.7, 0.7], [level, 0.4, 0.4, 0.4]])
        with torch.no_grad():
            plain = model.backbone.velocity(latents, times)
            assert plain.abs().max() > 0.1
            assert torch.equal(model.velocity(latents, times, codes), plain)
            assert torch.equal(model.velocity(latents, times, codes, drop), plain)


def test_published_keys_load_with_nothing_left_over(config, tmp_path) -> None:
    """From a file with text into a model with or without; another config.json is refused."""
    stored_as = replace(config, text="full") if hasattr(config, "caption_width") else config
    stored_as = replace(config, text="full") if hasattr(config, "text_width") else stored_as
    stored = build_backbone(stored_as)
    layout = build_on_meta(config).layout()
    state = {"toy." * (config.kind == "toy") + k: v for k, v in stored.state_dict().items()}
    save_file(
        state | {k: v.clone() for k, v in layout.constants.items()}, tmp_path / "a.safetensors"
    )
    model = build_on_meta(config)
    load_weights(model, tmp_path, layout, dtype=torch.bfloat16)
    held = stored.state_dict()
    for key, value in model.state_dict().items():
        assert value.dtype in (torch.bfloat16, torch.float32)
        assert torch.equal(value, held[key].to(value.dtype)), key
    load_backbone(build_backbone(config), str(tmp_path))
    save_file(state | {"left.over": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"left over left\.over"):
        load_weights(build_on_meta(config), tmp_path, layout)


def test_half_precision_stays_near(config, randomised) -> None:
    """bfloat16 weights, and float32 weights under autocast: 8 bits, some 1 % after two blocks."""
    model = randomised(build_backbone(config), scale=0.2)
    given = clip(config)
    with torch.no_grad():
        full = model.velocity(**given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model.velocity(**given)
        half = model.to(torch.bfloat16).velocity(**given)
    assert mixed.dtype == half.dtype == torch.float32
    assert 0 < relative(mixed, full) < 0.05
    assert 0 < relative(half, full) < 0.05


def test_meta_tensors_run(config) -> None:
    """What plans memory without weights."""
    given = {name: value.to("meta") for name, value in clip(config).items()}
    assert build_on_meta(config).velocity(**given).shape == given["latents"].shape


def test_attention_backends(config, randomised) -> None:
    model = randomised(build_backbone(config))
    given = clip(config)
    with torch.no_grad():
        expected = model.velocity(**given)
        use_backend(model, "sdpa")
        close(model.velocity(**given), expected)


@pytest.mark.parametrize("shape", [(1, 5, 4, 4, 4), (1, 12, 4, 4)])
def test_latents_that_do_not_fit(config, shape) -> None:
    given = clip(config) | {"latents": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"expected latents \[B, 12, T, h, w\].* got \[1, "):
        build_backbone(config).velocity(**given)


def test_modulation_that_does_not_fit(config) -> None:
    model, given = build_backbone(config), clip(config)
    _, T, slots, values = given["modulation"].shape
    message = rf"modulation: expected \[1, {T}, 1 or {slots}, {values}\], got"
    for shape in (
        (1, T, slots + 1, values),
        (1, 1, slots, values),
        (2, T, slots, values),
        (1, T, slots, model.width),
    ):
        with pytest.raises(ValueError, match=message):
            model.velocity(**given | {"modulation": torch.zeros(shape)})


def test_one_from_outside_on_the_command_line_and_in_a_saved_run(tmp_path) -> None:
    flags = ["--backbone.kind", "toy", "--backbone.layers", "3"]
    model = from_command_line(ModelConfig(), flags, program="x", description="")
    assert model.backbone == ToyConfig(layers=3, heads=3, width=96)  # what it shares stays
    (tmp_path / "config.yaml").write_text(to_yaml(model))
    assert load_yaml(tmp_path / "config.yaml", ModelConfig) == model
    described = {"architectures": ["ToyModel"], "depth": 1}
    assert published_config(described, causal=False) == ToyConfig(layers=1, causal=False)


def test_kinds_that_nobody_or_somebody_else_registered(monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"backbone 'toy': there is one of this name"):
        register_backbone(type("Another", (ToyConfig,), {}), TOY.build)
    monkeypatch.delitem(BACKBONES, "toy")
    with pytest.raises(ConfigError, match=r"expected one of stdit3, wan, got ToyConfig, which is"):
        build_backbone(ToyConfig())
    with pytest.raises(ConfigError, match=r"backbone\.kind: expected one of 'stdit3', 'wan', got"):
        from_dict(ModelConfig, {"backbone": {"kind": "toy"}})
    with pytest.raises(WeightsError, match=r"known: STDiT3, WanTransformer3DModel, WanModel, and"):
        published_config({"architectures": ["ToyModel"]})
