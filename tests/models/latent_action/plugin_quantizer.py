"""A quantizer from outside: the sign of every channel (Yu et al. 2024). See test_plugin_quantizer.py.

It stands for what a user writes in one file of their own; no list of the package knows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from colaworld.models.latent_action.quantizers import (
    CommonConfig,
    Quantized,
    Quantizer,
    register_quantizer,
    straight_through,
)


@dataclass(frozen=True)
class SignConfig(CommonConfig):
    """2^d codes, one per corner of the cube."""

    kind: Literal["sign"] = "sign"
    """Which quantizer."""
    size: float = 1.0
    """Half the edge of the cube."""


class Sign(Quantizer):
    """Each channel becomes +size or -size."""

    config: SignConfig

    def __init__(self, config: SignConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.codebook_size = 2**dim

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        bits = 2 ** torch.arange(self.dim, device=z.device)
        indices = ((z > 0) * bits).sum(-1)
        return Quantized(straight_through(z, self.lookup(indices)), indices, z.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        bits = indices[..., None] >> torch.arange(self.dim, device=indices.device) & 1
        return (2.0 * bits - 1) * self.config.size


register_quantizer(SignConfig, Sign)
