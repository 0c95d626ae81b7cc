"""Patches and back, every value in its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from colaworld.models.layers.patch import from_patches, to_patches


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3), (1, 1, 1)])
def test_a_product_with_the_kernel_is_the_convolution(patch, generator):
    kernel = torch.randn(10, 3, *patch, generator=generator)
    x = torch.randn(2, 3, 4, 6, 6, generator=generator)
    made = nn.functional.linear(to_patches(x, patch), kernel.flatten(1))
    expected = nn.functional.conv3d(x, kernel, stride=patch).flatten(3).permute(0, 2, 3, 1)
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3)])
def test_back_again_with_channels_fastest(patch):
    pt, ph, pw = patch
    x = torch.arange(2.0 * 3 * 4 * 2 * 6).view(2, 3, 4, 2, 6)
    tokens = to_patches(x, patch)  # channels slowest
    tokens = tokens.unflatten(3, (3, pt * ph * pw)).transpose(3, 4).flatten(1, 2).flatten(2)
    assert torch.equal(from_patches(tokens, patch, (4, 2, 6)), x)
