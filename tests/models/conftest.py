"""What the tests of models share: weights that are not the start's, since many start at zero."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def randomised():
    """module -> the same module with every parameter drawn anew, none of them zero."""

    def fill(module, *, seed: int = 0, scale: float = 0.3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        return module

    return fill
