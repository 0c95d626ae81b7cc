"""The layers of STDiT3 with the key names of its published weights. Not here: the model itself.

Shape legend: B clips, T latent frames, S tokens per frame, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.layers.attention import AxialAttention
from colaworld.models.layers.cross_attention import CrossAttention
from colaworld.models.layers.kv_cache import CacheView
from colaworld.models.layers.mlp import MLP
from colaworld.models.layers.patch import to_patches
from colaworld.ops import adaln


class PatchEmbedding(nn.Module):
    """Conv3d whose kernel equals its stride; its `proj` has the published key."""

    def __init__(self, patch: tuple[int, int, int], channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        patches = to_patches(x_BCTHW, self.proj.kernel_size)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class STDiT3Block(nn.Module):
    """Attention and MLP, each modulated and gated per frame; between them the caption, if any.

    The MLP's gated residual is left pending (`y`, `gate`) and added by the next `adaln`, which
    fuses gate, residual, norm and modulation into one pass over the tokens.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, temporal: bool, causal: bool, text: bool
    ) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn = AxialAttention(
            width,
            heads,
            axis="temporal" if temporal else "spatial",
            causal=temporal and causal,
            rope_theta=10_000.0 if temporal else None,
            zero_init=temporal,
        )
        if text:
            self.cross_attn = CrossAttention(width, heads)
        self.mlp = MLP(width, hidden, zero_init=True)

    def forward(
        self,
        x: Tensor,  # [B, T, S, C]
        y: Tensor | None,  # [B, T, S, C] pending branch of the block before
        gate: Tensor | None,  # [B, T, C] its gate
        modulation: Tensor,  # [B, T, 6 * C]
        caption: Tensor | None = None,  # [B, L, C]
        caption_mask: Tensor | None = None,  # [B, L] bool
        cache: CacheView | None = None,  # of temporal attention
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = modulation.shape
        six = (self.scale_shift_table + modulation.view(B, T, 6, -1)).unbind(2)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = six
        x, h = adaln(x, y, gate=gate, shift=shift_attn, scale=scale_attn)
        h = self.attn(h, cache)
        if caption is None:
            x, h = adaln(x, h, gate=gate_attn, shift=shift_mlp, scale=scale_mlp)
        else:  # no norm before and no gate after, as published
            x = x + (gate_attn[:, :, None] * h).to(x.dtype)
            x = x + self.cross_attn(x.flatten(1, 2), caption, caption_mask).view_as(x)
            _, h = adaln(x, None, shift=shift_mlp, scale=scale_mlp)
        return x, self.mlp(h), gate_mlp


class FinalLayer(nn.Module):
    """Norm, modulation by the time embedding, projection to the values of a patch."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, values)

    def forward(
        self,
        x: Tensor,  # [B, T, S, C]
        y: Tensor,  # [B, T, S, C] pending branch of the last block
        gate: Tensor,  # [B, T, C] its gate
        time: Tensor,  # [B, T, C] time embedding
        noised: tuple[Tensor, Tensor] | None = None,  # x_mask [B, T], the noised frames' [B, C]
    ) -> Tensor:
        """[B, T, S, values]

        `noised` repeats what the published code does where it holds frames clean: they are normed
        and modulated by the noised frames' time first, and that result again by their own. Nothing
        reads their velocity, so that without it they get one pass as all others.
        """
        shift, scale = (self.scale_shift_table + time[:, :, None]).unbind(2)
        if noised is None:
            _, h = adaln(x, y, gate=gate, shift=shift, scale=scale)
            return self.linear(h)
        mask, other = noised
        first_shift, first_scale = (
            (self.scale_shift_table + other[:, None]).unsqueeze(1).expand(-1, x.shape[1], -1, -1)
        ).unbind(2)
        first = {"shift": first_shift, "scale": first_scale}
        _, once = adaln(x, y, gate=gate, **first, out_dtype=x.dtype)
        _, twice = adaln(once, None, shift=shift, scale=scale, out_dtype=x.dtype)
        return self.linear(torch.where(mask[:, :, None, None], once, twice))
