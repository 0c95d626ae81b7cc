"""What every tokenizer promises (`tokenizers.base.Tokenizer`), asked of all of them."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from colaworld.config import from_dict, to_dict
from colaworld.models.config import ModelConfig
from colaworld.models.tokenizers import build_tokenizer
from colaworld.models.tokenizers.config import (
    DiffusersVAEConfig,
    OpenSoraVAEConfig,
    PixelTokenizerConfig,
)
from colaworld.models.tokenizers.diffusers_vae import DiffusersVAE

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="needs diffusers (colaworld[vae])"
)
OPENSORA = OpenSoraVAEConfig(
    image_widths=(4, 8),
    image_layers=1,
    temporal_width=4,
    temporal_multipliers=(1, 1, 2),
    temporal_halve=(True, True),
    temporal_layers=1,
    groups=2,
)
KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
TINY = {
    "encoder_block_out_channels": (4, 4),
    "decoder_block_out_channels": (4, 4),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
WAN = {
    "base_dim": 4,
    "z_dim": 3,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.0] * 3,
    "latents_std": [1.0] * 3,
    "scale_factor_spatial": 4,
}
CONFIGS = {
    "pixels": (PixelTokenizerConfig(), None),
    "opensora_vae": (OPENSORA, None),
    "kl": (DiffusersVAEConfig(family="kl"), KL),
    "tiny": (DiffusersVAEConfig(family="tiny"), TINY),
    "wan": (DiffusersVAEConfig(family="wan"), WAN),
}
NAMES = [
    pytest.param(name, marks=needs_diffusers if module else ())
    for name, (_, module) in CONFIGS.items()
]


def _build(name, randomised, **changes):
    config, module = CONFIGS[name]
    config = replace(config, **changes)
    made = build_tokenizer(config) if module is None else DiffusersVAE(config, module=module)
    return randomised(made)


@pytest.fixture
def tokenizer(request, randomised):
    return _build(request.param, randomised)


every = pytest.mark.parametrize("tokenizer", NAMES, indirect=True)


def _frames(tokenizer, T, *, B=2, h=3, w=2):
    s = tokenizer.spatial_stride
    generator = torch.Generator().manual_seed(T)
    return torch.rand(B, T, 3, h * s, w * s, generator=generator)


@every
@pytest.mark.parametrize("k", [0, 1, 3])
def test_shapes_and_ranges(tokenizer, k) -> None:
    T = 1 + tokenizer.temporal_stride * k
    x = _frames(tokenizer, T)
    z = tokenizer.encode(x)
    assert z.shape == (2, tokenizer.channels, 1 + k, 3, 2) and z.dtype == torch.float32
    y = tokenizer.decode(z)
    assert y.shape == x.shape and y.dtype == torch.float32
    assert y.min() >= 0 and y.max() <= 1 and torch.isfinite(z).all()
    assert tokenizer.decode(z * 1e4).max() <= 1


@every
def test_it_is_a_function(tokenizer) -> None:
    x = _frames(tokenizer, 1 + tokenizer.temporal_stride)
    z = tokenizer.encode(x)
    assert torch.equal(z, tokenizer.encode(x))
    for b in range(2):  # whatever else is in the batch
        assert torch.equal(z[b : b + 1], tokenizer.encode(x[b : b + 1]))
    assert torch.equal(z[0], tokenizer.encode(x.flip(0))[1])
    assert not torch.equal(z[0], z[1])


@every
def test_the_first_frame_stands_alone_in_time(tokenizer) -> None:
    """T' = 1 + k: the frame at which latent k ends is r k, and later frames do not come before."""
    r = tokenizer.temporal_stride
    x = _frames(tokenizer, 1 + 2 * r)
    changed = x.clone()
    changed[:, 1 + r :] = 1 - changed[:, 1 + r :]
    a, b = tokenizer.encode(x), tokenizer.encode(changed)
    assert not torch.equal(a[:, :, 2], b[:, :, 2])
    if tokenizer.config.kind != "opensora_vae":  # its GroupNorms average over a chunk
        assert torch.equal(a[:, :, :2], b[:, :, :2])


@every
def test_it_is_frozen(tokenizer) -> None:
    x = _frames(tokenizer, 1)
    assert not tokenizer.encode(x).requires_grad
    assert not tokenizer.decode(tokenizer.encode(x)).requires_grad
    assert not any(p.requires_grad for p in tokenizer.parameters())
    tokenizer.train()
    assert torch.equal(tokenizer.encode(x), tokenizer.encode(x))


@every
def test_autocast_does_not_reach_it(tokenizer) -> None:
    x = _frames(tokenizer, 1)
    z = tokenizer.encode(x)
    y = tokenizer.decode(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(x), z) and torch.equal(tokenizer.decode(z), y)


@pytest.mark.parametrize("name", [n for n in NAMES if n.values[0] != "pixels"])
def test_gradients_where_they_are_asked_for(name, randomised) -> None:
    tokenizer = _build(name, randomised)
    x = _frames(tokenizer, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(tokenizer.encode(x, gradient=True).sum(), x)
    assert gradient.abs().sum() > 0
    z = tokenizer.encode(x).requires_grad_()
    (gradient,) = torch.autograd.grad(tokenizer.decode(z, gradient=True).sum(), z)
    assert gradient.abs().sum() > 0
    assert all(p.grad is None for p in tokenizer.parameters())


@pytest.mark.parametrize("name", [n for n in NAMES if n.values[0] != "pixels"])
def test_half_precision_is_inside_only(name, randomised) -> None:
    exact, half = _build(name, randomised), _build(name, randomised, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    x = _frames(exact, 1)
    z = half.encode(x)
    assert z.dtype == half.decode(z).dtype == torch.float32
    wanted = exact.encode(x)
    assert not torch.equal(z, wanted)
    assert (z - wanted).abs().mean() < 0.1 * wanted.abs().mean()
    assert exact.fingerprint() != half.fingerprint()


@every
def test_the_fingerprint_is_that_of_weights_and_config(tokenizer, request, randomised) -> None:
    name = request.node.callspec.params["tokenizer"]
    before = tokenizer.fingerprint()
    assert before == _build(name, randomised).fingerprint() == tokenizer.fingerprint()
    if name == "pixels":
        assert before != _build(name, randomised, std=0.25).fingerprint()
        return
    assert before.startswith(tokenizer.config.kind)
    assert before != _build(name, randomised, posterior="sample").fingerprint()
    assert before == _build(name, randomised, frames_per_pass=2).fingerprint()
    for parameter in (next(iter(tokenizer.parameters())), list(tokenizer.parameters())[-1]):
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        after = tokenizer.fingerprint()
        assert after != before
        before = after


@every
def test_sizes_that_do_not_fit_are_refused_with_some_that_do(tokenizer) -> None:
    s, r = tokenizer.spatial_stride, tokenizer.temporal_stride
    with pytest.raises(ValueError, match=rf"multiples of {s}, got {3 * s + 1}x{2 * s}; set data"):
        tokenizer.encode(torch.zeros(1, 1, 3, 3 * s + 1, 2 * s))
    if r > 1:
        with pytest.raises(
            ValueError, match=rf"takes 1 \+ {r} k frames, got {r}; take 1 or {r + 1}"
        ):
            tokenizer.encode(torch.zeros(1, r, 3, s, s))
    if tokenizer.config.kind == "pixels":
        return
    with pytest.raises(ValueError, match=r"expected float frames .*got torch\.uint8"):
        tokenizer.encode(torch.zeros(1, 1, 3, s, s, dtype=torch.uint8))
    wanted = rf"expected latents \[B, {tokenizer.channels}, T', h, w\], got \[1, 9, 1, 1, 1\]"
    with pytest.raises(ValueError, match=wanted):
        tokenizer.decode(torch.zeros(1, 9, 1, 1, 1))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_configs_go_through_yaml_by_their_kind(name) -> None:
    config = replace(ModelConfig(), tokenizer=CONFIGS[name][0])
    back = from_dict(ModelConfig, to_dict(config))
    assert back.tokenizer == config.tokenizer
    known = {"channels", "spatial_stride", "temporal_stride"}
    assert all(getattr(back.tokenizer, key) >= 1 for key in known)
