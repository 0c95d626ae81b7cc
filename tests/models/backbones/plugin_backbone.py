"""A backbone from outside: frames that see earlier ones at their own place. See test_contract.py.

It stands for what a user writes in one file of their own; no list of the package knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from colaworld.models.backbones import BackboneConfig, register_backbone
from colaworld.models.backbones.weights import Layout
from colaworld.models.layers.attention import AxialAttention
from colaworld.models.layers.embeddings import ScalarEmbedder
from colaworld.models.layers.kv_cache import KVCache, frames_before
from colaworld.models.layers.patch import from_patches, to_patches
from colaworld.ops import adaln


@dataclass(frozen=True)
class ToyConfig(BackboneConfig):
    """Sizes of the toy."""

    kind: Literal["toy"] = "toy"
    """Which generator this is."""
    layers: int = 2
    """Blocks."""
    width: int = 12
    """Channels of a token."""
    heads: int = 2
    """Attention heads."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of one token."""
    in_channels: int = 12
    """Channels of a latent."""
    causal: bool = True
    """Attention sees no later frame."""

    identity_keys: ClassVar[tuple[str, ...]] = ("heads",)


class Block(nn.Module):
    """Modulated attention over time, gated."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.attn = AxialAttention(
            config.width, config.heads, axis="temporal", causal=config.causal, rope_theta=10_000.0
        )
        self.mix = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, modulation: Tensor, cache: Any) -> Tensor:
        shift, scale, gate, *more = modulation.unflatten(2, (6, -1)).unbind(2)
        x, h = adaln(x, None, shift=shift, scale=scale)
        x, h = adaln(x, self.attn(h, cache), gate=gate, shift=more[0], scale=more[1])
        return x + (more[2][:, :, None] * self.mix(h)).to(x.dtype)


class Toy(nn.Module):
    """Velocity of every latent frame."""

    block_lists = ("layers",)

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.width, self.channels, self.patch = config.width, config.in_channels, config.patch
        self.modulated_blocks = config.layers
        values = config.in_channels * config.patch[1] * config.patch[2]
        self.embed, self.out = nn.Linear(values, config.width), nn.Linear(config.width, values)
        self.time = ScalarEmbedder(6 * config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))

    def velocity(
        self,
        latents: Tensor,
        times: Tensor,
        *,
        modulation: Tensor | None = None,
        fps: Tensor | float | None = None,
        text: Tensor | None = None,
        cache: KVCache | None = None,
        store: bool = False,
    ) -> Tensor:
        if text is not None:
            raise ValueError("Toy: text: there is none")
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(
                f"Toy: expected latents [B, {self.channels}, T, h, w], got {list(latents.shape)}"
            )
        B, _, T = latents.shape[:3]
        slots, values = self.modulated_blocks, 6 * self.width
        if modulation is None:
            modulation = latents.new_zeros(B, T, 1, values)
        if tuple(modulation.shape) not in ((B, T, 1, values), (B, T, slots, values)):
            raise ValueError(
                f"Toy: modulation: expected [{B}, {T}, 1 or {slots}, {values}], got "
                f"{list(modulation.shape)}"
            )
        h = self.embed(to_patches(latents.to(self.embed.weight.dtype), self.patch))
        frames_before(cache, self.new_cache, B, h.shape[2], store=store)
        base = self.time(1000 * times)
        modulation = modulation.expand(B, T, slots, values)
        for index, block in enumerate(self.layers):
            view = None if cache is None else cache.view(index, store=store)
            h = block(h, base + modulation[:, :, index], view)
        if cache is not None and store:
            cache.advance(T)
        out = self.out(h.to(self.out.weight.dtype)).float()
        return from_patches(out.flatten(1, 2), self.patch, tuple(latents.shape[2:]))

    def new_cache(self) -> KVCache:
        if not self.config.causal:
            raise ValueError("Toy: a cache needs causal=True")
        return KVCache(self.config.layers)

    def layout(self) -> Layout:
        return Layout(rename=lambda key: key.removeprefix("toy."), constants={"one": torch.ones(1)})

    def time_shift(self, frames: int, rows: int, columns: int) -> float:
        return 1.0


def from_published(
    described: Mapping[str, Any], *, text: str, causal: bool, source: str
) -> ToyConfig:
    return ToyConfig(layers=described["depth"], causal=causal)


register_backbone(ToyConfig, Toy, published={"ToyModel": from_published})
