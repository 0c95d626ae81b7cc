"""What every test may use. Not here: helpers of one room, which stand in its own test files."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    """A freshly seeded generator: a test that draws numbers says so in its arguments."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """A CUDA device. Skips without one, unless FAIL_WITHOUT_CUDA=1 is set.

    A GPU job sets the variable, so that it cannot pass by skipping everything.
    """
    if not torch.cuda.is_available():
        if os.environ.get("FAIL_WITHOUT_CUDA", "0") not in ("", "0"):
            pytest.fail("FAIL_WITHOUT_CUDA is set, but torch sees no CUDA device")
        pytest.skip("no CUDA device")
    return torch.device("cuda")
