"""The pixel tokenizer: exact both ways, and honest about sizes."""

from __future__ import annotations

import pytest
import torch

from colaworld.models.tokenizers.config import PixelTokenizerConfig
from colaworld.models.tokenizers.pixels import PixelTokenizer


@pytest.mark.parametrize("config", [PixelTokenizerConfig(), PixelTokenizerConfig(4, 0.25, 0.75)])
def test_round_trip_is_exact_to_rounding(config, generator):
    tokenizer = PixelTokenizer(config)
    frames = torch.rand(2, 3, 3, 8, 12, generator=generator)
    latents = tokenizer.encode(frames)
    side = config.patch
    assert latents.shape == (2, 3 * side**2, 3, 8 // side, 12 // side)
    assert tokenizer.channels == 3 * side**2 and tokenizer.spatial_stride == side
    torch.testing.assert_close(tokenizer.decode(latents), frames, atol=1e-6, rtol=0)


def test_every_8_bit_value_survives():
    tokenizer = PixelTokenizer()
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(1, 1, 3, 16, 16)
    back = tokenizer.decode(tokenizer.encode(frames.float() / 255))
    assert torch.equal((back * 255).round().to(torch.uint8), frames)


def test_channels_by_hand():
    """Channel (colour, row in patch, column in patch) of a latent, in units of (2 p - 1 - m) / s."""
    frames = torch.rand(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    latents = PixelTokenizer(PixelTokenizerConfig(2, 0.1, 0.5)).encode(frames)
    for colour, row, column in ((0, 0, 0), (1, 0, 1), (2, 1, 0)):
        pixel = frames[0, 1, colour, 2 + row, 0 + column]
        value = latents[0, colour * 4 + row * 2 + column, 1, 1, 0]
        assert value.item() == pytest.approx((2 * pixel.item() - 1 - 0.1) / 0.5, abs=1e-6)


def test_only_decoding_clamps():
    tokenizer = PixelTokenizer()
    latents = torch.full((1, 12, 1, 1, 1), 9.0)
    assert tokenizer.decode(latents).max() == 1 and tokenizer.decode(-latents).min() == 0


@pytest.mark.parametrize("size", [(5, 4), (4, 5)])
def test_odd_sizes_are_refused_with_the_fix(size):
    with pytest.raises(ValueError, match=rf"multiples of 2, got {size[0]}x{size[1]}; set data.h"):
        PixelTokenizer().encode(torch.zeros(1, 1, 3, *size))
