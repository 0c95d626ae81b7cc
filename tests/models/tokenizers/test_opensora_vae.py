"""The Open-Sora VAE: published keys, values against formulas, chunks, noise, bounded passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from colaworld.models.tokenizers.config import OpenSoraVAEConfig
from colaworld.models.tokenizers.opensora_vae import OpenSoraVAE

TINY = OpenSoraVAEConfig(
    image_widths=(4, 8, 8),
    image_layers=1,
    temporal_width=4,
    temporal_multipliers=(1, 2, 2, 4),
    temporal_layers=1,
    groups=2,
)
# Names and shapes as hpcai-tech/OpenSora-VAE-v1.2 stores them, at least one of each kind.
PUBLISHED = {
    "scale": (1, 4, 1, 1, 1),
    "shift": (1, 4, 1, 1, 1),
    "spatial_vae.module.encoder.conv_in.weight": (128, 3, 3, 3),
    "spatial_vae.module.encoder.conv_out.weight": (8, 512, 3, 3),
    "spatial_vae.module.decoder.conv_in.weight": (512, 4, 3, 3),
    "spatial_vae.module.decoder.conv_out.bias": (3,),
    "spatial_vae.module.quant_conv.weight": (8, 8, 1, 1),
    "spatial_vae.module.post_quant_conv.weight": (4, 4, 1, 1),
    "temporal_vae.encoder.conv_in.conv.weight": (128, 4, 3, 3, 3),
    "temporal_vae.encoder.block_res_blocks.1.0.conv1.conv.weight": (256, 128, 3, 3, 3),
    "temporal_vae.encoder.block_res_blocks.1.0.conv3.conv.weight": (256, 128, 1, 1, 1),
    "temporal_vae.encoder.block_res_blocks.3.0.conv3.conv.weight": (512, 256, 1, 1, 1),
    "temporal_vae.encoder.block_res_blocks.3.3.conv2.conv.weight": (512, 512, 3, 3, 3),
    "temporal_vae.encoder.conv_blocks.1.conv.weight": (256, 256, 3, 3, 3),
    "temporal_vae.encoder.conv_blocks.2.conv.bias": (256,),
    "temporal_vae.encoder.res_blocks.3.conv2.conv.weight": (512, 512, 3, 3, 3),
    "temporal_vae.encoder.conv2.conv.weight": (8, 512, 1, 1, 1),
    "temporal_vae.quant_conv.conv.weight": (8, 8, 1, 1, 1),
    "temporal_vae.post_quant_conv.conv.bias": (4,),
    "temporal_vae.decoder.conv1.conv.weight": (512, 4, 3, 3, 3),
    "temporal_vae.decoder.conv1.conv.bias": (512,),
    "temporal_vae.decoder.res_blocks.0.conv1.conv.weight": (512, 512, 3, 3, 3),
    "temporal_vae.decoder.block_res_blocks.0.0.conv1.conv.weight": (128, 256, 3, 3, 3),
    "temporal_vae.decoder.block_res_blocks.0.0.conv3.conv.weight": (128, 256, 1, 1, 1),
    "temporal_vae.decoder.block_res_blocks.2.0.conv3.conv.weight": (256, 512, 1, 1, 1),
    "temporal_vae.decoder.block_res_blocks.3.0.conv1.conv.weight": (512, 512, 3, 3, 3),
    "temporal_vae.decoder.conv_blocks.1.conv.weight": (512, 256, 3, 3, 3),
    "temporal_vae.decoder.conv_blocks.2.conv.weight": (1024, 512, 3, 3, 3),
    "temporal_vae.decoder.conv_out.conv.weight": (4, 128, 3, 3, 3),
}
# Convolutions of the temporal part in the published list (weights and biases; norms apart).
PUBLISHED_TEMPORAL_CONVS = 103


@pytest.fixture
def vae(randomised) -> OpenSoraVAE:
    return randomised(OpenSoraVAE(TINY), scale=0.2)


@pytest.fixture
def frames(generator):
    """frames(T, B=1): random video of 8x12 pixels."""
    return lambda T, B=1: torch.rand(B, T, 3, 8, 12, generator=generator)


def test_keys_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        state = OpenSoraVAE().state_dict()
    for name, shape in PUBLISHED.items():
        assert tuple(state[name].shape) == shape, name
    convs = [k for k in state if k.startswith("temporal_vae.") and ".norm" not in k]
    assert len(convs) == PUBLISHED_TEMPORAL_CONVS
    assert not any(".conv3." in k and "_blocks.0.1" in k for k in state)


def _by_keys(state: dict[str, torch.Tensor], groups: int):
    """The temporal part written a second time: functions of the stored names alone."""

    def conv(name, x, stride=1):
        weight = state[f"{name}.conv.weight"]
        k = weight.shape[2]
        front = x.new_zeros(*x.shape[:2], k - stride, *x.shape[3:])
        bias = state.get(f"{name}.conv.bias")
        padding = (0, k // 2, k // 2)
        x = torch.cat([front, x], dim=2)
        return F.conv3d(x, weight, bias, stride=(stride, 1, 1), padding=padding)

    def norm(name, x):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        B, C = x.shape[:2]
        g = x.reshape(B, groups, -1)
        g = (g - g.mean(-1, keepdim=True)) / (g.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return g.reshape(x.shape) * weight.view(1, C, 1, 1, 1) + bias.view(1, C, 1, 1, 1)

    def swish(x):
        return x * torch.sigmoid(x)

    def residual(name, x):
        y = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", x)))
        y = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", y)))
        return y + (conv(f"{name}.conv3", x) if f"{name}.conv3.conv.weight" in state else x)

    def encode(x):
        short = -x.shape[2] % 4
        x = torch.cat([x.new_zeros(*x.shape[:2], short, *x.shape[3:]), x], dim=2)
        x = conv("encoder.conv_in", x)
        for stage in range(4):
            x = residual(f"encoder.block_res_blocks.{stage}.0", x)
            if stage in (1, 2):
                x = conv(f"encoder.conv_blocks.{stage}", x, stride=2)
        x = residual("encoder.res_blocks.0", x)
        x = conv("encoder.conv2", swish(norm("encoder.norm1", x)))
        return conv("quant_conv", x)

    def decode(z, frames):
        x = conv("decoder.conv1", conv("post_quant_conv", z))
        x = residual("decoder.res_blocks.0", x)
        for stage in (3, 2, 1, 0):
            x = residual(f"decoder.block_res_blocks.{stage}.0", x)
            if stage in (2, 3):  # the step below it doubles time
                x = conv(f"decoder.conv_blocks.{stage - 1}", x)
                even, odd = x[:, 0::2], x[:, 1::2]
                x = torch.stack([even, odd], dim=3).flatten(2, 3)
        x = conv("decoder.conv_out", swish(norm("decoder.norm1", x)))
        return x[:, :, x.shape[2] - frames :]

    return encode, decode


@pytest.mark.parametrize("T", [1, 4, 5, 17])
def test_the_temporal_part_is_what_its_formulas_say(vae, generator, T) -> None:
    part = vae.temporal_vae.double()
    encode, decode = _by_keys(dict(part.state_dict()), groups=2)
    x = torch.randn(2, 4, T, 3, 2, generator=generator, dtype=torch.float64)
    moments = part.moments(x)
    assert moments.shape == (2, 8, -(-T // 4), 3, 2)
    torch.testing.assert_close(moments, encode(x), rtol=1e-10, atol=1e-10)
    z = torch.randn(2, 4, -(-T // 4), 3, 2, generator=generator, dtype=torch.float64)
    back = part.decode(z, T)
    assert back.shape == (2, 4, T, 3, 2)
    torch.testing.assert_close(back, decode(z, T), rtol=1e-10, atol=1e-10)


def test_latents_are_means_of_both_parts_scaled_and_shifted(vae, frames) -> None:
    x = frames(5)
    image, temporal = vae.spatial_vae["module"], vae.temporal_vae
    flat = image.moments(x[0] * 2 - 1)[:, :4] * 0.18215
    raw = temporal.moments(flat.transpose(0, 1)[None])[:, :4]
    shift = torch.tensor([-0.10, 0.34, 0.27, 0.98]).view(1, 4, 1, 1, 1)
    scale = torch.tensor([3.85, 2.32, 2.33, 3.06]).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(vae.encode(x), (raw - shift) / scale, rtol=1e-5, atol=1e-6)

    z = torch.randn(1, 4, 2, 2, 3, generator=torch.Generator().manual_seed(3))
    flat = temporal.decode(z * scale + shift, 5) / 0.18215
    pixels = image.decode(flat[0].transpose(0, 1))
    wanted = ((pixels + 1) / 2).clamp(0, 1)
    assert ((wanted > 0) & (wanted < 1)).float().mean() > 0.05, "the test sees clamped values only"
    torch.testing.assert_close(vae.decode(z)[0], wanted, rtol=1e-5, atol=1e-5)


def test_chunks_of_a_clip_are_independent_and_those_of_the_original(vae, frames) -> None:
    assert vae.chunks(17) == [17] and vae.chunks(33) == [17, 16] and vae.chunks(41) == [17, 16, 8]
    x = frames(33)
    z = vae.encode(x)
    assert z.shape == (1, 4, 9, 2, 3)
    assert torch.equal(z, vae.encode_published(x))
    assert torch.equal(z[:, :, :5], vae.encode(x[:, :17]))
    later = x.clone()
    later[:, 17:] = 0
    assert torch.equal(vae.encode(later)[:, :, :5], z[:, :, :5])
    assert not torch.equal(vae.encode(later)[:, :, 5:], z[:, :, 5:])
    assert torch.equal(vae.decode(z), vae.decode_published(z, 33))
    assert vae.decode(z).shape == (1, 33, 3, 8, 12)


def test_the_original_chunks_of_longer_videos(vae, frames) -> None:
    x = frames(34)
    z = vae.encode_published(x)
    assert z.shape[2] == 10
    assert torch.equal(z[:, :, 5:], vae.encode(x[:, 17:]))
    assert vae.decode_published(z, 34).shape[1] == 34
    assert vae.encode_published(x[:, :20]).shape[2] == 6  # 17 -> 5, and 3 left -> 1
    with pytest.raises(ValueError, match="33 frames are 9 latent frames, got 10"):
        vae.decode_published(z, 33)


def test_a_clip_has_the_same_latents_in_any_batch(vae, frames) -> None:
    x = frames(5, B=3)
    z = vae.encode(x)
    for b in range(3):
        assert torch.equal(z[b : b + 1], vae.encode(x[b : b + 1]))


def test_samples(vae, frames) -> None:
    x = frames(5, B=2)
    sampler = OpenSoraVAE(replace(TINY, posterior="sample", seed=3))
    sampler.load_state_dict(vae.state_dict())
    z = sampler.encode(x)
    assert torch.equal(z, sampler.encode(x)) and not torch.equal(z, vae.encode(x))
    assert torch.equal(z[1:], sampler.encode(x[1:])), "a clip's noise depends on its batch"

    def drawn(seed):
        return sampler.encode(x, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    # With the frame's own noise off, what is left is the deviation of the temporal part.
    with torch.no_grad():
        sampler.spatial_vae["module"].quant_conv.bias[4:] = -60
        sampler.spatial_vae["module"].quant_conv.weight[4:] = 0
        sampler.temporal_vae.quant_conv.conv.weight[4:] = 0
        sampler.temporal_vae.quant_conv.conv.bias[4:] = 2 * torch.log(torch.tensor(0.5))
    mean = OpenSoraVAE(TINY)
    mean.load_state_dict(sampler.state_dict())
    noise = (sampler.encode(x) - mean.encode(x)) * sampler.scale / 0.5
    own = torch.Generator().manual_seed(3)
    torch.testing.assert_close(
        noise[0], torch.randn(4, 2, 2, 3, generator=own), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("T", [5, 33])
def test_passes_have_a_bounded_size(vae, frames, T) -> None:
    seen: dict[str, set[int]] = {"2-D": set(), "temporal": set()}

    def note(name):
        return lambda module, given, made: seen[name].add(given[0].numel())

    image = vae.spatial_vae["module"]
    for conv in (image.encoder.conv_in, image.decoder.conv_in):
        conv.register_forward_hook(note("2-D"))
    vae.temporal_vae.encoder.conv_in.register_forward_hook(note("temporal"))
    vae.decode(vae.encode(frames(T, B=2)))
    assert max(seen["2-D"]) == 4 * 3 * 8 * 12  # 4 frames of pixels, whatever the video
    assert max(seen["temporal"]) <= 20 * 4 * 2 * 3  # one clip's chunk of 17, padded to 20


def test_stored_weights_come_back(vae, tmp_path, frames) -> None:
    save_file(vae.state_dict(), tmp_path / "model.safetensors")
    again = OpenSoraVAE(replace(TINY, path=str(tmp_path)))
    x = frames(5)
    assert torch.equal(again.encode(x), vae.encode(x))
    assert again.fingerprint() == vae.fingerprint()
    assert not any(p.requires_grad for p in again.parameters())


def test_a_plan_on_the_meta_device_reads_nothing() -> None:
    with torch.device("meta"):
        planned = OpenSoraVAE(replace(TINY, path="Someone/vae", dtype="bfloat16"))
        z = planned.encode(torch.empty(2, 5, 3, 8, 12))
    assert z.is_meta and z.shape == (2, 4, 2, 2, 3)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in planned.parameters())


def test_weights_that_do_not_fit_are_named(vae, tmp_path) -> None:
    state = vae.state_dict()
    file = tmp_path / "model.safetensors"
    for change, told in (
        ({"shift": None}, "missing shift"),
        ({"extra.weight": torch.zeros(1)}, "left over extra.weight"),
        ({"scale": torch.ones(1, 3, 1, 1, 1)}, r"scale: expected \[1, 4.*got \[1, 3"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        save_file(changed, file)
        with pytest.raises(ValueError, match=told):
            OpenSoraVAE(replace(TINY, path=str(file)))
    with pytest.raises(ValueError, match=r"gone.deep: no such file or folder; give the folder"):
        OpenSoraVAE(replace(TINY, path=str(tmp_path / "gone" / "deep")))


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="hub names need huggingface_hub")

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"Someone/vae .*no route.*give the local folder"):
        OpenSoraVAE(replace(TINY, path="Someone/vae"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"chunk": 16}, r"chunk: expected 1 \+ 4 k frames, got 16"),
        ({"shift": (0.0,)}, "shift: expected 4 values, one per channel, got 1"),
        ({"posterior": "mode"}, "posterior: expected one of 'mean', 'sample', got 'mode'"),
        ({"frames_per_pass": 0}, "frames_per_pass: expected >= 1, got 0"),
    ],
)
def test_bad_configs(change, told) -> None:
    with pytest.raises(ValueError, match=told):
        replace(TINY, **change)


def test_one_entry_per_step_between_stages() -> None:
    with pytest.raises(ValueError, match="4 stages have 3 steps between them, got 2"):
        OpenSoraVAE(replace(TINY, temporal_halve=(True, True)))
