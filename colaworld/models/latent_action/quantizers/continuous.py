"""Latent actions without a codebook. Not here: quantizers with one (codebook.py, finite.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colaworld.models.latent_action.quantizers.config import GaussianConfig
from colaworld.models.latent_action.quantizers.quantizer import Quantized, Quantizer
from colaworld.rng import draw


class GaussianLatent(Quantizer):
    """Continuous latents with a beta-weighted KL to N(0, I) (Higgins et al. 2017)."""

    config: GaussianConfig

    def __init__(self, config: GaussianConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.moments = nn.Linear(dim, 2 * dim)

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        mean, log_variance = self.moments(z).chunk(2, dim=-1)
        log_variance = log_variance.clamp(-10, 10)
        codes = mean
        if self.training:
            noise = draw(torch.randn, mean.shape, generator, device=z.device, dtype=z.dtype)
            codes = mean + (log_variance / 2).exp() * noise
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return Quantized(codes, None, self.config.beta * kl.sum(-1).mean())


class NoQuantizer(Quantizer):
    """Latents pass unchanged (but standardised when asked)."""

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        return Quantized(z, None, z.new_zeros(()))
