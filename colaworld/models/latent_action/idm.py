"""The inverse dynamics model: which latent action leads from each frame to the next?

A causal spatio-temporal transformer on raw pixels (CoLA-World, section on the latent action model;
where the paper is silent, as documented in `models/README.md`). z_t sees frames 0 .. t + 1 only.

Shape legend: B clips, T frames, S patches per frame, C width, N tokens per action, d token width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.latent_action.config import IDMConfig
from colaworld.models.latent_action.matching import matching_volume
from colaworld.models.layers.attention import AxialAttention
from colaworld.models.layers.embeddings import grid_embedding
from colaworld.models.layers.mlp import MLP
from colaworld.ops import adaln


def standardised(frames: Tensor) -> Tensor:
    """Frames [..., 3, H, W] in [0, 1] with mean 0 and a deviation of .5 over the pixels of each channel of each frame,
    less where it has hardly any."""
    deviation, mean = torch.std_mean(frames, dim=(-2, -1), keepdim=True, correction=0)
    return 0.5 * (frames - mean) / (deviation + 0.05)


class IDMBlock(nn.Module):
    """Spatial attention, causal temporal attention, MLP; each with learned shift, scale, gate."""

    def __init__(self, config: IDMConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        table = torch.zeros(3, 3, width)
        table[:, 2] = 1.0  # gates start open: this model is trained from scratch
        self.scale_shift_table = nn.Parameter(table)
        self.spatial = AxialAttention(width, heads, axis="spatial")
        self.temporal = AxialAttention(
            width, heads, axis="temporal", causal=True, rope_theta=10_000.0
        )
        self.mlp = MLP(width, int(width * config.mlp_ratio))

    def forward(
        self, x: Tensor, y: Tensor | None, gate: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x and the pending branch y are [B, T, S, C], its gate [B, T, C]; returns the same."""
        B, T, _, C = x.shape
        for part, layer in enumerate((self.spatial, self.temporal, self.mlp)):
            shift, scale, opens = (
                row.expand(B, T, C) for row in self.scale_shift_table[part].unbind(0)
            )
            x, h = adaln(x, y, gate=gate, shift=shift, scale=scale)
            y, gate = layer(h), opens
        return x, y, gate


class AttentionPooling(nn.Module):
    """N learned queries attend to the S tokens of a transition."""

    def __init__(self, width: int, heads: int, tokens: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(tokens, width) / width**0.5)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, N, out]."""
        B, S, C = x.shape
        k, v = self.kv(x).view(B, S, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q = self.query.view(-1, self.heads, C // self.heads).transpose(0, 1).expand(B, -1, -1, -1)
        pooled = F.scaled_dot_product_attention(q.to(k.dtype), k, v)  # [B, heads, N, C / heads]
        return self.out(pooled.transpose(1, 2).flatten(2))


class InverseDynamicsModel(nn.Module):
    """Frames to one continuous latent per transition, before quantisation."""

    block_lists = ("blocks",)

    def __init__(self, config: IDMConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or IDMConfig()
        width = config.width
        candidates = (2 * config.matching + 1) ** 2 if config.matching else 0
        pixels = (1 if config.input == "frame" else 2) * 3 * config.patch**2
        self.embed = nn.Linear(pixels + candidates, width)
        self.blocks = nn.ModuleList(IDMBlock(config) for _ in range(config.depth))
        self.pool = AttentionPooling(width, config.heads, config.tokens, config.dim)
        if config.motion and not config.matching:
            raise ValueError("idm.motion: reads the matching volume, so idm.matching must be > 0")
        self.motion = (
            nn.Linear(candidates, config.tokens * config.dim, bias=False) if config.motion else None
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1] -> latents [B, T - 1, N, d]."""
        B, T, _, H, W = frames.shape
        patch = self.config.patch
        if T < 2:
            raise ValueError(f"IDM: a latent action needs two frames, got T = {T}")
        if H % patch or W % patch:
            raise ValueError(f"IDM: frames {H}x{W} are not whole patches of {patch} px")
        pixels = standardised(frames) if self.config.standardise_frames else frames * 2 - 1
        x = F.pixel_unshuffle(pixels.flatten(0, 1), patch)  # [B T, 3 p p, h, w]
        x = x.unflatten(0, (B, T))
        read = [x]
        if self.config.input != "frame":
            before = torch.cat([x[:, :1], x[:, :-1]], dim=1)
            read.append(before if self.config.input == "tubelet" else x - before)
        if self.config.matching:
            volume = matching_volume(x, radius=self.config.matching)
            read.append(volume)
        x = torch.cat(read, dim=2)
        x = x.flatten(3).transpose(
            2, 3
        )  # [B, T, S, 3 p p (twice with the frame before) + candidates]
        position = grid_embedding(H // patch, W // patch, self.config.width, device=x.device)
        dtype = self.embed.weight.dtype
        # Under autocast the embedding is half precision; the sum, the residual stream, is not.
        x = self.embed(x.to(dtype)) + position.to(dtype)
        y = gate = None
        for block in self.blocks:
            x, y, gate = block(x, y, gate)
        x = x + gate[:, :, None] * y
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        later = x[:, 1:]  # [B, T - 1, S, C]
        pair = (x[:, :-1] + later) / 2 if self.config.pair == "mean" else later
        z = self.pool(pair.flatten(0, 1))
        z = z.unflatten(0, (B, T - 1))
        if self.motion is None:
            return z
        mean = volume[:, 1:].mean((3, 4)).to(self.motion.weight.dtype)  # [B, T - 1, candidates]
        return z + self.motion(mean).view_as(z)
