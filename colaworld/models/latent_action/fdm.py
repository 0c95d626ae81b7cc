"""The forward dynamics model of two-stage training: frame t and an action give frame t + 1.

A spatial transformer on patches of o_t plus the action's tokens (the baseline's reconstruction
model; CoLA-World itself has none: there the video generator is the forward model).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.latent_action.config import FDMConfig
from colaworld.models.layers.attention import AxialAttention
from colaworld.models.layers.embeddings import grid_embedding
from colaworld.models.layers.mlp import MLP


class FDMBlock(nn.Module):
    """Pre-norm spatial attention over patches and action tokens, then an MLP."""

    def __init__(self, config: FDMConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attn = AxialAttention(config.width, config.heads, axis="spatial")
        self.mlp = MLP(config.width, int(config.width * config.mlp_ratio))

    def forward(self, x_BTSC: Tensor) -> Tensor:
        x = x_BTSC + self.attn(self.norm1(x_BTSC))
        return x + self.mlp(self.norm2(x))


class PatchPredictor(nn.Module):
    """Spatial blocks over the patches of one frame and the tokens of one action; as many values come out.

    Args:
        config: sizes.
        channels: of a frame.
        dim: width of a token of an action.
    """

    block_lists = ("blocks",)

    def __init__(self, config: FDMConfig, *, channels: int, dim: int) -> None:
        super().__init__()
        self.config = config
        values = channels * config.patch**2
        self.embed = nn.Linear(values, config.width)
        self.action = nn.Linear(dim, config.width)
        self.blocks = nn.ModuleList(FDMBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, values)

    def predict(self, frames: Tensor, codes: Tensor) -> Tensor:
        """Frames [B, T, C, H, W] of whole patches, codes [B, T, N, d] -> values of the frames' shape."""
        B, T, _, H, W = frames.shape
        patch = self.config.patch
        x = F.pixel_unshuffle(frames.flatten(0, 1), patch)
        x = x.flatten(2).transpose(1, 2).unflatten(0, (B, T))
        position = grid_embedding(H // patch, W // patch, self.config.width, device=x.device)
        x = self.embed(x) + position
        x = torch.cat([x, self.action(codes.to(x.dtype))], dim=2)  # [B, T, S + N, C]
        for block in self.blocks:
            x = block(x)
        x = self.out(self.norm(x[:, :, : -codes.shape[2]]))
        x = x.flatten(0, 1).transpose(1, 2).unflatten(2, (H // patch, W // patch))
        return F.pixel_shuffle(x, patch).unflatten(0, (B, T))


class ForwardDynamicsModel(PatchPredictor):
    """Predicts the next frame's pixels from one frame and one latent action."""

    def __init__(self, config: FDMConfig, *, dim: int) -> None:
        super().__init__(config, channels=3, dim=dim)

    def forward(self, frames: Tensor, codes: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1], codes [B, T, N, d] -> next frames, same shape."""
        H, W = frames.shape[3:]
        patch = self.config.patch
        if H % patch or W % patch:
            raise ValueError(f"FDM: frames {H}x{W} are not whole patches of {patch} px")
        return (self.predict(frames * 2 - 1, codes) + 1) / 2
