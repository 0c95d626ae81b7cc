"""Quantizers behind one contract: continuous latents in, latent actions out.

    z [..., N, d] --quantizer--> codes [..., N, d], indices [..., N], loss

Everything is computed in float32. State that a resumed run would miss is in buffers.
Not here: where z comes from (idm.py) and what the codes condition (conditioning.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.ops import vector_quantize

_RECENT = 1024  # latents kept while they pass unquantised
Kind = Literal["vq", "ema", "nsvq", "fsq", "residual", "gaussian", "none"]


@dataclass(frozen=True)
class QuantizerConfig:
    """Which quantizer turns the IDM's latents into latent actions, and its health measures."""

    kind: Kind = "vq"
    """vq: gradient codebook (paper); ema; nsvq; fsq; residual; gaussian (beta-VAE); none."""
    codebook_size: int = 8
    """Entries, shared by all tokens of an action (fsq: the product of `levels` instead)."""
    beta: float = 0.25
    """Weight of the commitment loss (paper), or of the KL divergence (gaussian)."""
    normalise: bool = True
    """Standardise z per channel over the batch (running statistics in evaluation)."""
    data_start: bool = True
    """Start the codebook from latents of real clips instead of U(-1/K, 1/K)."""
    continuous_steps: int = 0
    """vq, ema, nsvq: steps in which latents pass unquantised, before the codebook starts (0: none).
    Smooth gradients find the actions first; the codebook then starts from clusters of them."""
    continuous_noise: float = 0.0
    """Deviation of the Gaussian noise on them meanwhile, in units of the latents' own: it leaves
    room for few bits, so that the most useful ones are told first."""
    reseed: bool = True
    """Move codes that fell out of use onto latents of the current batch."""
    reseed_below: float = 0.1
    """A code is dead when its smoothed share of use is below this part of 1/K."""
    reseed_every: int = 10
    """Optimiser steps between two re-seedings."""
    decay: float = 0.99
    """Smoothing of codebook statistics (ema) and of the use of codes (all)."""
    levels: tuple[int, ...] = (4, 2)
    """fsq: values per channel; the latent width d must equal the number of channels."""
    depth: int = 2
    """residual: how many codebooks follow each other."""


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns. `indices` is None when there is no codebook."""

    codes: Tensor  # [..., N, d] float32, differentiable with respect to z
    indices: Tensor | None  # [..., N] int64
    loss: Tensor  # scalar: codebook + beta * commitment, or KL


class Standardise(nn.Module):
    """Standardisation of each channel over the batch, without affine parameters.

    Statistics are those of the batch in training and running ones in evaluation. Each channel has
    its own scale, so that one large distinction cannot fill the whole space: measured better than
    one scale for all, on one seed (recipes/EXPERIMENTS.md).
    """

    def __init__(self, dim: int, *, momentum: float = 0.05, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, z: Tensor) -> Tensor:
        if not self.training:
            return (z - self.mean) / self.scale
        flat = z.reshape(-1, z.shape[-1])
        mean, scale = self._statistics(flat)
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            self.scale.lerp_(scale, self.momentum)
        return (z - mean) / scale

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """Take the running statistics from z [M, d]."""
        mean, scale = self._statistics(z)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = z.mean(0)
        return mean, ((z - mean).square().mean(0) + self.eps).sqrt()


class Quantizer(nn.Module):
    """The contract. Subclasses implement `_quantize` and `lookup`."""

    codebook_size: int | None = None

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.standardise = Standardise(dim) if config.normalise else nn.Identity()
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, z: Tensor, *, generator: torch.Generator | None = None) -> Quantized:
        """z [..., N, d] -> Quantized. `generator` feeds quantizers that draw noise."""
        if z.shape[-1] != self.dim:
            raise ValueError(f"quantizer: expected z [..., {self.dim}], got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            return self._quantize(self.standardise(z.float()), generator)

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        raise TypeError(f"{type(self).__name__} must implement _quantize")

    def lookup(self, indices: Tensor) -> Tensor:
        """Codebook entries [..., d] of indices [...]. Raises TypeError without a codebook."""
        raise TypeError(f"{type(self).__name__} has no codebook to look indices up in")

    def start(self, z: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Take a start from latents z [M, N, d] of real clips, before the first step."""
        self.started.fill_(True)
        if isinstance(self.standardise, Standardise):
            self.standardise.start(z.float().reshape(-1, self.dim))

    def after_step(self, *, generator: torch.Generator | None = None) -> dict[str, float]:
        """Called once after every optimiser step: statistics, dead codes."""
        return {}


def spread_start(z: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """k-means++ seeding (Arthur & Vassilvitskii 2007): `count` well-spread rows of z [M, d]."""
    chosen = [torch.randint(z.shape[0], (1,), generator=generator, device=z.device)]
    nearest = torch.full((z.shape[0],), float("inf"), device=z.device)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (z - z[chosen[-1]]).square().sum(1))
        weight = nearest + 1e-12
        chosen.append(torch.multinomial(weight, 1, generator=generator))
    return z[torch.cat(chosen)].clone()


def cluster_start(
    z: Tensor, count: int, generator: torch.Generator | None, *, rounds: int = 20
) -> Tensor:
    """Centres of `count` clusters of z [M, d]: k-means++ seeding, then Lloyd's algorithm."""
    centres = spread_start(z, count, generator)
    for _ in range(rounds):
        _, nearest = vector_quantize(z, centres)
        total = torch.zeros_like(centres).index_add_(0, nearest, z)
        size = torch.bincount(nearest, minlength=count).to(z.dtype)[:, None]
        centres = torch.where(size > 0, total / size.clamp(min=1), centres)
    return centres


class CodebookQuantizer(Quantizer):
    """Shared by the quantizers that own a codebook [K, d]: search, use of codes, re-seeding."""

    learned = True  # the codebook is a parameter (else a buffer)

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.codebook_size = size = config.codebook_size
        if size < 2:
            raise ValueError(f"quantizer.codebook_size: expected >= 2, got {size}")
        table = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        if self.learned:
            self.codebook = nn.Parameter(table)
        else:
            self.register_buffer("codebook", table)
        self.register_buffer("use", torch.full((size,), 1 / size))  # smoothed share of each code
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))
        if config.continuous_steps:  # latents of the latest steps, to start the codebook from
            self.register_buffer("recent", torch.zeros(_RECENT, dim))
        self._seen: tuple[Tensor, Tensor | None] | None = None  # the last batch's z and indices

    @property
    def continuous(self) -> bool:
        """Whether latents still pass unquantised (see `continuous_steps`)."""
        steps = self.config.continuous_steps
        return steps > 0 and int(self.age) < steps

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        if self.continuous:
            if self.training:
                self._seen = (z.detach().reshape(-1, self.dim), None)
                if self.config.continuous_noise > 0:
                    noise = torch.randn(
                        z.shape, generator=generator, device=z.device, dtype=z.dtype
                    )
                    z = z + self.config.continuous_noise * noise
            return Quantized(z, None, z.new_zeros(()))
        return self._quantize_to_codes(z, generator)

    def _quantize_to_codes(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        raise TypeError(f"{type(self).__name__} must implement _quantize_to_codes")

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook)

    def _search(self, z: Tensor) -> tuple[Tensor, Tensor]:
        flat = z.reshape(-1, self.dim)
        codes, indices = vector_quantize(flat, self.codebook)
        if self.training:
            self._seen = (flat.detach(), indices)
        return codes.view_as(z), indices.view(z.shape[:-1])

    @torch.no_grad()
    def start(self, z: Tensor, *, generator: torch.Generator | None = None) -> None:
        super().start(z, generator=generator)
        if self.config.data_start:
            was = self.training
            self.eval()
            flat = self.standardise(z.float()).reshape(-1, self.dim)
            self.train(was)
            self.codebook.copy_(spread_start(flat, self.codebook.shape[0], generator))
        self._started()

    @torch.no_grad()
    def after_step(self, *, generator: torch.Generator | None = None) -> dict[str, float]:
        if self._seen is None:
            return {}
        z, indices = self._seen
        self._seen = None
        if indices is None:
            return self._remember(z, generator)
        size = self.codebook.shape[0]
        share = torch.bincount(indices, minlength=size).to(z.dtype) / len(indices)
        self.use.lerp_(share, 1 - max(0.9, self.config.decay))
        self._update(z, indices)
        self.age += 1
        if not self.config.reseed or int(self.age) % self.config.reseed_every:
            return {}
        dead = (self.use < self.config.reseed_below / size).nonzero().squeeze(1)
        if len(dead):
            # Different latents for different codes: equal codes would tie, and one stay dead.
            rows = torch.randperm(len(z), generator=generator, device=z.device)
            fresh = z[rows.repeat(-(-len(dead) // len(z)))[: len(dead)]]
            self.codebook[dead] = fresh
            self.use[dead] = 1 / size
            self._reseeded(dead, fresh)
        return {"reseeded": float(len(dead))}

    def _remember(self, z: Tensor, generator: torch.Generator | None) -> dict[str, float]:
        """A step of the continuous stretch; at its end the codebook starts from what was seen."""
        rows = min(len(z), _RECENT)
        first = int(self.age) * rows % _RECENT
        place = (first + torch.arange(rows, device=z.device)) % _RECENT
        self.recent[place] = z[:rows]
        self.age += 1
        if not self.continuous:
            filled = min(int(self.age) * rows, _RECENT)
            count = self.codebook.shape[0]
            self.codebook.copy_(cluster_start(self.recent[:filled], count, generator))
            self._started()
        return {}

    def _started(self) -> None:
        """A subclass's own statistics after the codebook was set from data."""

    def _update(self, z: Tensor, indices: Tensor) -> None:
        """A subclass's own statistics."""

    def _reseeded(self, dead: Tensor, fresh: Tensor) -> None:
        """A subclass's own statistics of moved codes."""


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """The value of `codes` with the gradient of `z` (van den Oord et al. 2017, section 3.2).

    Written so that the value is that of `codes` to the last bit, which z + (codes - z) is not: an
    action looked up by its index then equals the inferred one exactly.
    """
    return codes.detach() + (z - z.detach())


class GradientVQ(CodebookQuantizer):
    """Plain VQ with a learned codebook: 1.0 x codebook + beta x commitment (paper's default)."""

    def _quantize_to_codes(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        codes, indices = self._search(z)
        loss = F.mse_loss(codes, z.detach()) + self.config.beta * F.mse_loss(z, codes.detach())
        return Quantized(straight_through(z, codes), indices, loss)


class EMAVQ(CodebookQuantizer):
    """Codebook from running means of the latents (van den Oord et al. 2017, appendix A.1)."""

    learned = False

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.register_buffer("count", torch.ones(config.codebook_size))
        self.register_buffer("total", self.codebook.clone())

    def _quantize_to_codes(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        codes, indices = self._search(z)
        loss = self.config.beta * F.mse_loss(z, codes.detach())
        return Quantized(straight_through(z, codes), indices, loss)

    def _started(self) -> None:
        self.count.fill_(1.0)
        self.total.copy_(self.codebook)

    def _update(self, z: Tensor, indices: Tensor) -> None:
        size, decay = len(self.count), self.config.decay
        count = torch.bincount(indices, minlength=size).to(z.dtype)
        total = torch.zeros_like(self.total).index_add_(0, indices, z)
        self.count.lerp_(count, 1 - decay)
        self.total.lerp_(total, 1 - decay)
        mass = self.count.sum()
        smooth = (self.count + 1e-5) / (mass + size * 1e-5) * mass  # Laplace
        self.codebook.copy_(self.total / smooth[:, None])

    def _reseeded(self, dead: Tensor, fresh: Tensor) -> None:
        self.count[dead] = self.count.mean()
        self.total[dead] = fresh * self.count[dead][:, None]


class NSVQ(CodebookQuantizer):
    """Noise substitution (Vali & Backstrom 2022): the error's size with a random direction.

    Gradients reach encoder and codebook alike without a straight-through estimate and without
    auxiliary losses; evaluation uses the plain codes.
    """

    def _quantize_to_codes(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        codes, indices = self._search(z)
        if not self.training:
            return Quantized(codes, indices, z.new_zeros(()))
        noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        error = (z - codes).norm(dim=-1, keepdim=True)
        substituted = z + error / (noise.norm(dim=-1, keepdim=True) + 1e-8) * noise
        return Quantized(substituted, indices, z.new_zeros(()))


class FSQ(Quantizer):
    """Finite scalar quantisation (Mentzer et al. 2024): each channel rounded to a few levels."""

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        if len(config.levels) != dim:
            raise ValueError(
                f"fsq: quantizer.levels has {len(config.levels)} channels, the latent width is {dim}"
            )
        if min(config.levels) < 2:
            raise ValueError(f"fsq: every level must be >= 2, got {config.levels}")
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


class ResidualVQ(Quantizer):
    """Codebooks one after the other, each on what the one before left (Zeghidour et al. 2021).

    An action's index is the mixed-radix number of its entries: K^depth codes in all.
    """

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        inner = replace(config, kind="vq", normalise=False, continuous_steps=0)
        self.layers = nn.ModuleList(GradientVQ(inner, dim) for _ in range(config.depth))
        self.codebook_size = config.codebook_size**config.depth

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        left, total, loss = z, torch.zeros_like(z), z.new_zeros(())
        index = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
        for place, layer in enumerate(self.layers):
            part = layer(left)
            index = index + part.indices * self.config.codebook_size**place
            loss = loss + part.loss
            total = total + part.codes
            left = left - part.codes.detach()
        return Quantized(straight_through(z, total), index, loss)

    def lookup(self, indices: Tensor) -> Tensor:
        size = self.config.codebook_size
        return sum(
            layer.lookup(indices // size**place % size) for place, layer in enumerate(self.layers)
        )

    @torch.no_grad()
    def start(self, z: Tensor, *, generator: torch.Generator | None = None) -> None:
        super().start(z, generator=generator)
        was = self.training
        self.eval()
        left = self.standardise(z.float())
        for layer in self.layers:
            layer.start(left, generator=generator)
            left = left - layer(left).codes
        self.train(was)

    def after_step(self, *, generator: torch.Generator | None = None) -> dict[str, float]:
        moved = [
            layer.after_step(generator=generator).get("reseeded", 0.0) for layer in self.layers
        ]
        return {"reseeded": sum(moved)}


class GaussianLatent(Quantizer):
    """Continuous latents with a beta-weighted KL to N(0, I) (Higgins et al. 2017)."""

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.moments = nn.Linear(dim, 2 * dim)

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        mean, log_variance = self.moments(z).chunk(2, dim=-1)
        log_variance = log_variance.clamp(-10, 10)
        codes = mean
        if self.training:
            noise = torch.randn(mean.shape, generator=generator, device=z.device, dtype=z.dtype)
            codes = mean + (log_variance / 2).exp() * noise
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return Quantized(codes, None, self.config.beta * kl.sum(-1).mean())


class NoQuantizer(Quantizer):
    """Latents pass unchanged (but standardised when asked)."""

    def _quantize(self, z: Tensor, generator: torch.Generator | None) -> Quantized:
        return Quantized(z, None, z.new_zeros(()))


QUANTIZERS: dict[str, Callable[[QuantizerConfig, int], Quantizer]] = {
    "vq": GradientVQ,
    "ema": EMAVQ,
    "nsvq": NSVQ,
    "fsq": FSQ,
    "residual": ResidualVQ,
    "gaussian": GaussianLatent,
    "none": NoQuantizer,
}


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer named by `config.kind`, for latent actions of width `dim`.

    Raises ValueError on an unknown kind or settings that do not fit `dim`.
    """
    if config.kind not in QUANTIZERS:
        raise ValueError(
            f"quantizer.kind: expected one of {', '.join(QUANTIZERS)}, got {config.kind!r}"
        )
    return QUANTIZERS[config.kind](config, dim)
