"""The own 2-D autoencoder against diffusers' AutoencoderKL: names, shapes, values, gradients."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from colaworld.models.tokenizers.image_vae import ImageVAE, posterior

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="compares with diffusers (colaworld[vae])"
)


def _theirs(widths, layers, groups, channels=4):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=groups,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
    )


@needs_diffusers
def test_the_sdxl_layout_is_that_of_diffusers() -> None:
    with torch.device("meta"):
        ours = ImageVAE(channels=4, widths=(128, 256, 512, 512), layers=2)
        theirs = _theirs((128, 256, 512, 512), 2, 32)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert sum(p.numel() for p in ours.parameters()) == 83_653_863  # as published for SDXL's


@needs_diffusers
@pytest.mark.parametrize(
    ("widths", "layers", "groups", "channels"),
    [((4, 8, 8), 1, 2, 4), ((8,), 2, 4, 3), ((4, 4, 8, 12), 2, 4, 4)],
)
def test_values_and_gradients_equal_diffusers(
    widths, layers, groups, channels, randomised, generator
) -> None:
    theirs = randomised(_theirs(widths, layers, groups, channels)).double()
    ours = ImageVAE(channels=channels, widths=widths, layers=layers, groups=groups).double()
    ours.load_state_dict(theirs.state_dict())
    frames = torch.rand(2, 3, 24, 16, generator=generator, dtype=torch.float64) * 2 - 1
    stride = 2 ** (len(widths) - 1)
    assert ours.stride == stride
    latents = torch.randn(
        2, channels, 24 // stride, 16 // stride, generator=generator, dtype=torch.float64
    )
    for part in (frames, latents):
        part.requires_grad_()

    def results(moments, decoded):
        return {"moments": moments, "decoded": decoded}

    mine = results(ours.moments(frames), ours.decode(latents))
    their = results(theirs.encode(frames).latent_dist.parameters, theirs.decode(latents).sample)
    weights = list(ours.parameters())
    for name in mine:
        torch.testing.assert_close(mine[name], their[name], rtol=1e-9, atol=1e-9, msg=name)
        given = frames if name == "moments" else latents
        probe = torch.randn(mine[name].shape, generator=generator, dtype=torch.float64)
        a = torch.autograd.grad((mine[name] * probe).sum(), [given, *weights], allow_unused=True)
        own = [given, *(dict(theirs.named_parameters())[k] for k, _ in ours.named_parameters())]
        b = torch.autograd.grad((their[name] * probe).sum(), own, allow_unused=True)
        for key, x, y in zip(["input", *dict(ours.named_parameters())], a, b, strict=True):
            assert (x is None) == (y is None), key
            if x is not None:
                torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-8, msg=f"{name} by {key}")


@needs_diffusers
def test_a_sample_is_that_of_diffusers(generator) -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = torch.randn(2, 8, 3, 5, generator=generator) * 30  # beyond the bounds of exp
    moments[:, 4:].clamp_(max=6)
    theirs = DiagonalGaussianDistribution(moments)
    drawn = theirs.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(posterior(moments, noise), drawn)
    assert torch.equal(posterior(moments, None), theirs.mode())
