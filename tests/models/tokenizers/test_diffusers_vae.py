"""Autoencoders of diffusers as tokenizers: equal to them, bounded passes, folders, errors."""

from __future__ import annotations

import builtins
import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from colaworld.models.tokenizers.config import DiffusersVAEConfig
from colaworld.models.tokenizers.diffusers_vae import DiffusersVAE

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="wraps diffusers (colaworld[vae])"
)
KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (4, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "scaling_factor": 0.13025,
    "shift_factor": 0.25,
}
TINY = {
    "encoder_block_out_channels": (4, 4, 4),
    "decoder_block_out_channels": (4, 4, 4),
    "num_encoder_blocks": (1, 1, 1),
    "num_decoder_blocks": (1, 1, 1),
    "latent_channels": 4,
    "scaling_factor": 0.5,
}
WAN = {
    "base_dim": 4,
    "z_dim": 3,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.1, -0.2, 0.3],
    "latents_std": [1.5, 2.0, 0.5],
    "scale_factor_spatial": 4,
}
ARGUMENTS = {"kl": KL, "tiny": TINY, "wan": WAN}
FAMILIES = sorted(ARGUMENTS)


@pytest.fixture
def build(randomised):
    """build(family, **config): a small tokenizer with random weights."""

    def make(family, **options) -> DiffusersVAE:
        config = DiffusersVAEConfig(family=family, **options)
        made = DiffusersVAE(config, module=ARGUMENTS[family])
        return randomised(made, scale=0.2)

    return make


@pytest.fixture
def frames(generator):
    """frames(T, B=1): random video of 16x8 pixels."""
    return lambda T, B=1: torch.rand(B, T, 3, 16, 8, generator=generator)


@needs_diffusers
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_wrapped_module(build, frames, family) -> None:
    tokenizer = build(family)
    x = frames(9, B=2)
    z = tokenizer.encode(x)
    vae, given = tokenizer.vae, x.transpose(1, 2) * 2 - 1  # [B, 3, T, H, W]
    with torch.no_grad():
        if family == "wan":
            mean = torch.tensor(WAN["latents_mean"]).view(1, -1, 1, 1, 1)
            std = torch.tensor(WAN["latents_std"]).view(1, -1, 1, 1, 1)
            wanted = (vae.encode(given).latent_dist.mode() - mean) / std
            back = vae.decode(z * std + mean).sample.transpose(1, 2)
        else:
            made = vae.encode(given.transpose(1, 2).flatten(0, 1))
            raw = made.latents if family == "tiny" else made.latent_dist.mode()
            shift, scale = (0, 0.5) if family == "tiny" else (0.25, 0.13025)
            wanted = ((raw - shift) * scale).unflatten(0, (2, 9)).transpose(1, 2)
            flat = z.transpose(1, 2).flatten(0, 1)
            back = vae.decode(flat / scale + shift).sample.unflatten(0, (2, 9))
    assert z.shape == (2, 3 if family == "wan" else 4, 3 if family == "wan" else 9, 4, 2)
    torch.testing.assert_close(z, wanted, rtol=1e-5, atol=1e-5)
    back = ((back + 1) / 2).clamp(0, 1)
    assert ((back > 0) & (back < 1)).float().mean() > 0.05, "the test sees clamped values only"
    torch.testing.assert_close(tokenizer.decode(z), back, rtol=1e-5, atol=1e-5)


@needs_diffusers
@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_of_a_pass_and_the_batch_change_nothing(build, frames, family) -> None:
    x = frames(5, B=2)
    one, many = build(family, frames_per_pass=3), build(family, frames_per_pass=16)
    torch.testing.assert_close(one.encode(x), many.encode(x), rtol=1e-5, atol=1e-6)
    for tokenizer in (one, many):
        z = tokenizer.encode(x)
        assert torch.equal(z[1:], tokenizer.encode(x[1:])), "latents depend on the batch"
        if family != "wan":
            assert torch.equal(z[:, :, 2:4], tokenizer.encode(x[:, 2:4]))
    assert one.fingerprint() == many.fingerprint()


@needs_diffusers
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_does_not_grow_with_the_video(build, frames, family) -> None:
    """The largest tensor any module sees is the same for 5 and for 33 frames of two clips."""
    tokenizer = build(family, frames_per_pass=4)
    largest = 0

    def note(module, given, made):
        nonlocal largest
        if isinstance(made, torch.Tensor):
            largest = max(largest, made.numel())

    for module in tokenizer.vae.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)) and module.kernel_size[-1] > 1:
            module.register_forward_hook(note)
    peaks = []
    for T in (5, 33):
        largest = 0
        tokenizer.decode(tokenizer.encode(frames(T, B=2)))
        peaks.append(largest)
    assert peaks[0] == peaks[1] > 0


@needs_diffusers
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_that_diffusers_wrote_is_read(build, frames, tmp_path, family) -> None:
    tokenizer = build(family)
    tokenizer.vae.save_pretrained(tmp_path / "model" / "vae", safe_serialization=True)
    config = DiffusersVAEConfig(family=family, path=str(tmp_path / "model" / "vae"))
    again = DiffusersVAE(config)
    x = frames(5)
    assert torch.equal(again.encode(x), tokenizer.encode(x))
    assert again.fingerprint() == tokenizer.fingerprint()
    # The sizes are known before the module is built, from config.json.
    for name in ("channels", "temporal_stride", "spatial_stride"):
        assert getattr(config, name) == getattr(again, name) == getattr(tokenizer, name)
    inside = replace(config, path=str(tmp_path / "model"), subfolder="vae")
    assert torch.equal(DiffusersVAE(inside).encode(x), tokenizer.encode(x))
    with pytest.raises(ValueError, match=r"expected a config\.json .*folders: vae \(set subfolder"):
        DiffusersVAE(replace(inside, subfolder=""))
    other = "tiny" if family != "tiny" else "kl"
    with pytest.raises(ValueError, match=f"but family '{other}' is"):
        DiffusersVAE(replace(config, family=other))


@needs_diffusers
def test_names_of_early_releases_are_read(build, frames, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    tokenizer = build("kl")
    tokenizer.vae.save_pretrained(tmp_path, safe_serialization=True)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        state = {k.replace(f".{new}.", f".{old}."): v for k, v in state.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, file)
    again = DiffusersVAE(DiffusersVAEConfig(path=str(tmp_path)))
    x = frames(1)
    assert torch.equal(again.encode(x), tokenizer.encode(x))


@needs_diffusers
def test_weights_that_do_not_fit_are_refused(build, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    build("tiny").vae.save_pretrained(tmp_path, safe_serialization=True)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    config = DiffusersVAEConfig(family="tiny", path=str(tmp_path))
    for change, told in (
        ({"encoder.layers.0.weight": None}, r"missing encoder\.layers\.0\.weight"),
        ({"extra": torch.zeros(2)}, "left over extra"),
        ({"encoder.layers.0.bias": torch.zeros(7)}, r"layers\.0\.bias: expected \[4\], got \[7\]"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        save_file(changed, file)
        with pytest.raises(ValueError, match=told):
            DiffusersVAE(config)
    file.unlink()
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"a pickle runs code when it is opened"):
        DiffusersVAE(config)


@needs_diffusers
@pytest.mark.parametrize("family", ["kl", "wan"])
def test_samples(build, frames, family) -> None:
    x = frames(5, B=2)
    mean, sampler = build(family), build(family, posterior="sample", seed=5)
    z = sampler.encode(x)
    assert torch.equal(z, sampler.encode(x)) and not torch.allclose(z, mean.encode(x))
    assert torch.equal(z[1:], sampler.encode(x[1:]))
    if family == "kl":  # as a cache of frames encodes them
        assert torch.equal(z[:, :, 3:4], sampler.encode(x[:, 3:4]))
    drawn = sampler.encode(x, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(drawn, z)


@needs_diffusers
def test_a_scale_of_the_config_replaces_the_stored_one(build, frames) -> None:
    x = frames(2)
    plain, other = build("kl"), build("kl", scale=0.18215)
    ratio = other.encode(x) / plain.encode(x)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.18215 / 0.13025))
    assert plain.fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="scale: expected a positive factor for kl or tiny"):
        DiffusersVAEConfig(family="wan", scale=2.0)


@needs_diffusers
def test_modules_that_do_not_fit(build) -> None:
    with pytest.raises(ValueError, match="family 'kl' is AutoencoderKL, got AutoencoderTiny"):
        DiffusersVAE(DiffusersVAEConfig(family="kl"), module=build("tiny").vae)
    with pytest.raises(ValueError, match="latents_std in its config has 1 values, expected"):
        DiffusersVAE(DiffusersVAEConfig(family="wan"), module={**WAN, "latents_std": [1.0]})
    with pytest.raises(ValueError, match="got a temporal stride of 2"):
        module = {**WAN, "temperal_downsample": [False, True]}
        DiffusersVAE(DiffusersVAEConfig(family="wan"), module=module)


@needs_diffusers
@pytest.mark.parametrize(
    ("family", "elements"), [("kl", 83_653_863), ("tiny", 2_445_063), ("wan", 126_892_531)]
)
def test_a_plan_on_the_meta_device_fetches_nothing(family, elements) -> None:
    config = DiffusersVAEConfig(family=family, path="Someone/vae")
    with torch.device("meta"):
        planned = DiffusersVAE(config)
        z = planned.encode(torch.empty(1, 5, 3, 16, 16))
    for name in ("channels", "temporal_stride", "spatial_stride"):
        assert getattr(config, name) == getattr(planned, name), name
    assert z.is_meta and z.shape == (1, config.channels, 2 if family == "wan" else 5, 2, 2)
    assert sum(p.numel() for p in planned.parameters()) == elements


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path) -> None:
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == "diffusers":
            raise ImportError("No module named 'diffusers'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ImportError, match=r"pip install colaworld\[vae\]"):
        DiffusersVAE(DiffusersVAEConfig(path=str(tmp_path)))


def test_bad_configs(tmp_path) -> None:
    with pytest.raises(ValueError, match="family: expected one of 'kl', 'wan', 'tiny', got 'flux'"):
        DiffusersVAEConfig(family="flux")
    with pytest.raises(ValueError, match="path is empty: set it to a folder"):
        DiffusersVAE(DiffusersVAEConfig())
    with pytest.raises(ValueError, match="dtype: expected one of 'float32'"):
        DiffusersVAEConfig(dtype="float64")


def test_a_config_that_is_no_json_object_is_named(tmp_path) -> None:
    for text, why in (("{", "not readable JSON"), ("[]", "expected an object, got list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json: {why}"):
            _ = DiffusersVAEConfig(family="wan", path=str(tmp_path)).temporal_stride
