"""Wan against diffusers' WanTransformer3DModel with random weights: outputs, gradients, files.

Everything here is `slow` because importing diffusers takes ten seconds. The same formulas are
checked without it in `test_wan.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colaworld.models.backbones.wan import Wan, WanConfig
from colaworld.models.backbones.wan_keys import to_original

pytestmark = pytest.mark.slow

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


def pair(case: Case, published, randomised):
    """diffusers' model with weights that are all alive, and ours with the same ones."""
    theirs = randomised(published(case.config), scale=0.2)
    with torch.no_grad():  # norms near their trained size
        for name, parameter in theirs.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    ours = Wan(case.config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


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
def test_output_and_every_gradient(name, per, published, randomised):
    case = CASES[name]
    theirs, ours = pair(case, published, randomised)
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


def test_velocity_is_the_published_output_with_our_sign_and_times(published, randomised):
    case = CASES["odd grid"]
    theirs, ours = pair(case, published, randomised)
    x, words, _, frame, tokens = inputs(case)
    with torch.no_grad():
        expected = -theirs(x, frame.repeat_interleave(tokens, dim=1), words).sample
        assert_near(ours.velocity(x, frame / 1000, text=words), expected, "velocity")


def test_modulation_is_a_shift_of_the_published_tables(published, randomised):
    """One action for all frames is what adding it to every block's table does to diffusers."""
    case = CASES["odd grid"]
    theirs, ours = pair(case, published, randomised)
    x, words, clip, _, _ = inputs(case)
    six = 0.3 * torch.randn(2, 6, 60, generator=torch.Generator().manual_seed(6))
    modulation = six.flatten(1)[None, None].expand(2, 3, 2, 360)
    with torch.no_grad():
        for block, table in zip(theirs.blocks, six, strict=True):
            block.scale_shift_table += table
        made = ours(x, clip, words, modulation=modulation)
        assert_near(made, theirs(x, clip, words).sample, "modulated")


def test_files_go_both_ways(published, randomised, tmp_path: Path):
    case = CASES["odd grid"]
    theirs, ours = pair(case, published, randomised)
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=True)
    fresh = Wan(case.config)
    saved = load_file(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    assert list(fresh.load_state_dict(saved, strict=True)) == [[], []]
    x, words, clip, _, _ = inputs(case)
    with torch.no_grad():
        assert torch.equal(fresh(x, clip, words), ours(x, clip, words))

    model = randomised(Wan(case.config), seed=9)
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    theirs.save_config(folder)
    loaded, report = type(theirs).from_pretrained(
        folder, output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert_near(model(x, clip, words), loaded(x, clip, words).sample, "from our file")


def test_original_names_are_read_by_diffusers_as_ours(published):
    published(SMALL_FOR_NAMES)  # or skips
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    state = Wan(SMALL_FOR_NAMES).state_dict()
    original = {to_original(key): value for key, value in state.items()}
    assert original.keys() & state.keys() == {"patch_embedding.weight", "patch_embedding.bias"}
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert converted.keys() == state.keys()
    assert all(converted[key] is state[key] for key in state)


SMALL_FOR_NAMES = sized(2, 1, 12, 20, in_channels=3, text_width=7)


def test_null_caption_is_the_published_padding(published, randomised):
    """512 rows of zeros, as the published pipeline pads with, read like our single one."""
    case = CASES["odd grid"]
    theirs, _ = pair(case, published, randomised)
    ours = Wan(replace(case.config, text="null"))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, _, clip, _, _ = inputs(case)
    with torch.no_grad():
        expected = theirs(x, clip, torch.zeros(2, 512, case.config.text_width)).sample
        assert_near(ours(x, clip), expected, "null caption")
