"""FSQ: a grid instead of a codebook. Not here: quantizers that own entries (codebook.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from colaworld.models.latent_action.quantizers.config import FSQConfig
from colaworld.models.latent_action.quantizers.estimators import straight_through
from colaworld.models.latent_action.quantizers.quantizer import Quantized, Quantizer


class FSQ(Quantizer):
    """Finite scalar quantisation (Mentzer et al. 2024): each channel rounded to a few levels."""

    config: FSQConfig
    levels: Tensor  # [d]
    base: Tensor  # [d]

    def __init__(self, config: FSQConfig, dim: int) -> None:
        super().__init__(config, dim)
        if len(config.levels) != dim:
            raise ValueError(
                f"model.quantizer.levels: expected {dim} numbers, one for each channel of "
                f"model.idm.dim, got {len(config.levels)}; set --model.idm.dim {len(config.levels)}, or "
                f"--model.quantizer.levels to {dim} numbers"
            )
        levels = torch.tensor(config.levels)
        base = torch.cat([torch.ones(1, dtype=torch.int64), levels[:-1].cumprod(0)])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("base", base, persistent=False)
        self.codebook_size = math.prod(config.levels)

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        unit = torch.sigmoid(2 * z) * (self.levels - 1)  # [0, L - 1]
        digit = straight_through(unit, unit.round())
        codes = 2 * digit / (self.levels - 1) - 1
        indices = (unit.round().long() * self.base).sum(-1)
        return Quantized(codes, indices, z.new_zeros(()))

    def lookup(self, indices: Tensor) -> Tensor:
        digit = indices[..., None] // self.base % self.levels
        return 2 * digit.float() / (self.levels - 1) - 1
