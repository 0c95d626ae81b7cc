"""Wan against diffusers' WanTransformer3DModel with random weights: outputs, gradients, files.

The same formulas are checked without diffusers in `test_wan.py`.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colaworld.models.backbones.published import published_config
from colaworld.models.backbones.wan import Wan, WanConfig
from colaworld.models.backbones.wan.keys import to_original
from colaworld.models.backbones.weights import load_weights

TOLERANCE = 1e-5  # largest difference over the largest value, float32


@dataclass(frozen=True)
class Case:
    config: WanConfig
    size: tuple[int, int, int]  # T, h, w of the latents
    batch: int
    words: int


def sized(layers: int, heads: int, head_dim: int, ffn: int, **named: Any) -> WanConfig:
    return WanConfig(
        layers=layers, heads=heads, head_dim=head_dim, ffn=ffn, text="full", causal=False, **named
    )


CASES = {
    "one token per frame": Case(sized(1, 1, 12, 20, in_channels=3, text_width=7), (1, 2, 2), 1, 1),
    "odd grid": Case(
        sized(2, 3, 20, 50, in_channels=5, freq_dim=34, text_width=9), (3, 10, 6), 2, 7
    ),
    "wide heads": Case(sized(2, 2, 128, 300, in_channels=16, text_width=64), (5, 6, 14), 1, 11),
    "a row": Case(sized(3, 5, 18, 31, in_channels=4, text_width=6, eps=1e-5), (7, 2, 18), 2, 3),
    "no norm before text": Case(
        sized(2, 2, 24, 40, in_channels=4, text_width=6, cross_attn_norm=False), (2, 6, 6), 1, 5
    ),
    "patches of 1 x 3": Case(
        sized(2, 2, 16, 40, in_channels=2, text_width=6, patch=(1, 1, 3)), (3, 3, 9), 1, 5
    ),
}


@pytest.fixture(scope="module")
def published():
    """config -> diffusers' model of these sizes, or skips."""
    diffusers = pytest.importorskip("diffusers", reason="the published model is in diffusers")

    def build(config: WanConfig):
        return diffusers.WanTransformer3DModel(
            patch_size=config.patch,
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            in_channels=config.in_channels,
            out_channels=config.in_channels,
            text_dim=config.text_width,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn,
            num_layers=config.layers,
            cross_attn_norm=config.cross_attn_norm,
            eps=config.eps,
        )

    return build


@pytest.fixture
def pair(published):
    """case -> diffusers' model with weights that are all alive, and ours with the same ones.

    Matrices are as large as trained ones, 1 / sqrt(fan in). With weights far above that, attention
    saturates, and float32 gradients of diffusers and ours alike are 1e-4 from those in float64.
    """

    def build(case: Case):
        theirs = published(case.config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                matrix = parameter.ndim > 1 and not name.endswith("table")
                scale = parameter[0].numel() ** -0.5 if matrix else 0.2
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)
        ours = Wan(case.config)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        return theirs, ours

    return build


def inputs(case: Case):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.batch, case.config.in_channels, *case.size, generator=generator)
    words = torch.randn(case.batch, case.words, case.config.text_width, generator=generator)
    _, ph, pw = case.config.patch
    tokens = (case.size[1] // ph) * (case.size[2] // pw)
    clip = 1000 * torch.rand(case.batch, generator=generator)
    frame = 1000 * torch.rand(case.batch, case.size[0], generator=generator)
    frame[:, 0] = 0  # clean history
    return x, words, clip, frame, tokens


def assert_near(made: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    assert made.shape == expected.shape, name
    error = (made - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("per", ["clip", "frame", "token"])
@pytest.mark.parametrize("name", CASES)
def test_output_and_every_gradient(name, per, pair):
    case = CASES[name]
    theirs, ours = pair(case)
    x, words, clip, frame, tokens = inputs(case)
    per_token = frame.repeat_interleave(tokens, dim=1)
    if per == "token":
        per_token = (per_token + 13 * torch.arange(per_token.shape[1])) % 1000
    given = {"clip": (clip, clip), "frame": (per_token, frame), "token": (per_token, per_token)}
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))

    results = []
    for model, step in zip((theirs, ours), given[per], strict=True):
        latents, text = x.clone().requires_grad_(), words.clone().requires_grad_()
        out = model(latents, step, text)
        out = out if isinstance(out, torch.Tensor) else out.sample
        (out * weight).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        results.append((out.detach(), {"latents": latents.grad, "text": text.grad} | grads))
    (expected, expected_grads), (made, made_grads) = results
    assert_near(made, expected, "output")
    assert made_grads.keys() == expected_grads.keys()
    largest = max(grad.abs().max() for grad in expected_grads.values())
    for key, grad in expected_grads.items():
        if grad.abs().max() < 1e-5 * largest:  # one word: its query and key get rounding alone
            assert made_grads[key].abs().max() < 1e-5 * largest, key
        else:
            assert_near(made_grads[key], grad, key)


def test_velocity_is_the_published_output_with_our_sign_and_times(pair):
    case = CASES["odd grid"]
    theirs, ours = pair(case)
    x, words, _, frame, tokens = inputs(case)
    with torch.no_grad():
        expected = -theirs(x, frame.repeat_interleave(tokens, dim=1), words).sample
        assert_near(ours.velocity(x, frame / 1000, text=words), expected, "velocity")


def test_modulation_is_a_shift_of_the_published_tables(pair):
    """One action for all frames is what adding it to every block's table does to diffusers."""
    case = CASES["odd grid"]
    theirs, ours = pair(case)
    x, words, clip, _, _ = inputs(case)
    six = 0.3 * torch.randn(2, 6, 60, generator=torch.Generator().manual_seed(6))
    modulation = six.flatten(1)[None, None].expand(2, 3, 2, 360)
    with torch.no_grad():
        for block, table in zip(theirs.blocks, six, strict=True):
            block.scale_shift_table += table
        made = ours(x, clip, words, modulation=modulation)
        assert_near(made, theirs(x, clip, words).sample, "modulated")


def test_a_file_of_theirs_loads_here(pair, tmp_path: Path):
    case = CASES["odd grid"]
    theirs, ours = pair(case)
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    described = json.loads((tmp_path / "config.json").read_text())
    config = published_config(described, text="full", causal=False)
    assert config == case.config
    with torch.device("meta"):
        fresh = Wan(config)
    load_weights(fresh, tmp_path, fresh.layout())
    x, words, clip, _, _ = inputs(case)
    with torch.no_grad():
        assert torch.equal(fresh(x, clip, words), ours(x, clip, words))
        without = Wan(replace(config, text="removed"))
        load_weights(without, tmp_path, without.layout())
        assert torch.equal(without.blocks[1].attn1.to_q.weight, ours.blocks[1].attn1.to_q.weight)


def test_a_file_of_ours_loads_there(published, randomised, tmp_path: Path):
    case = CASES["odd grid"]
    model = randomised(Wan(case.config), seed=9)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(model.state_dict(), file)
    theirs = published(case.config)
    if importlib.util.find_spec("accelerate"):  # its from_pretrained cannot read Wan without
        theirs.save_config(tmp_path)
        theirs, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    else:
        theirs.load_state_dict(load_file(file), strict=True)
    x, words, clip, _, _ = inputs(case)
    with torch.no_grad():
        assert_near(model(x, clip, words), theirs(x, clip, words).sample, "from our file")


def test_a_file_with_the_original_names_loads_here(randomised, tmp_path: Path):
    config = CASES["odd grid"].config
    model, fresh = randomised(Wan(config)), Wan(config)
    file = tmp_path / "model.safetensors"
    save_file({to_original(key): value for key, value in model.state_dict().items()}, file)
    load_weights(fresh, file, fresh.layout())
    for key, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_original_names_are_read_by_diffusers_as_ours(published):
    config = CASES["odd grid"].config
    published(config)  # or skips
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    state = Wan(config).state_dict()
    original = {to_original(key): value for key, value in state.items()}
    assert original.keys() & state.keys() == {"patch_embedding.weight", "patch_embedding.bias"}
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert converted.keys() == state.keys()
    assert all(converted[key] is state[key] for key in state)


def test_null_caption_is_the_published_padding(pair):
    """512 rows of zeros, as the published pipeline pads with, read like our single one."""
    case = CASES["odd grid"]
    theirs, _ = pair(case)
    ours = Wan(replace(case.config, text="null"))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, _, clip, _, _ = inputs(case)
    with torch.no_grad():
        expected = theirs(x, clip, torch.zeros(2, 512, case.config.text_width)).sample
        assert_near(ours(x, clip), expected, "null caption")
