"""Action conditioning: latent actions to one modulation per frame and block of the generator.

Latent actions -> self-attention blocks over the action sequence -> MLP -> shift, scale, gate,
added to the video model's own time modulation (CoLA-World, AdaLN conditioning). The last layer is
zero at the start, so that an untrained conditioner leaves the video model's output unchanged.

Shape legend: B clips, T latent frames, C width, N tokens per action, d token width, r actions
that lead into one latent frame (the tokenizer's temporal stride).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.config import ConditionerConfig
from colaworld.models.layers.mlp import MLP
from colaworld.models.layers.rope import rope_tables
from colaworld.ops import st_attention


class ActionBlock(nn.Module):
    """Pre-norm causal self-attention over actions, then an MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        qkv = self.qkv(self.norm1(x_BTC)).view(B, T, 1, 3, self.heads, C // self.heads)
        rope = rope_tables(T, C // self.heads, device=x_BTC.device)
        attended = st_attention(qkv, axis="temporal", causal=True, rope=rope)
        x = x_BTC + self.proj(attended.reshape(B, T, C))
        return x + self.mlp(self.norm2(x))


class ActionConditioner(nn.Module):
    """Latent actions [B, r (T - 1), N, d] -> modulation [B, T, blocks, 6 C]."""

    block_lists = ("blocks",)

    def __init__(
        self,
        config: ConditionerConfig,
        *,
        width: int,
        blocks: int,
        tokens: int,
        dim: int,
        actions_per_frame: int = 1,
    ) -> None:
        super().__init__()
        if width % config.heads or (width // config.heads) % 2:
            raise ValueError(
                f"conditioner.heads: width {width} / heads {config.heads} must be an even whole "
                "number; the width is the backbone's"
            )
        if config.nested_dropout and tokens < 2:
            raise ValueError(
                "conditioner.nested_dropout: leaves out the later tokens of an action, so model.idm.tokens "
                f"must be at least 2, got {tokens}"
            )
        self.config, self.actions_per_frame = config, actions_per_frame
        self.tokens, self.dim = tokens, dim
        self.heads_out = blocks if config.per_block else 1
        self.null = nn.Parameter(torch.zeros(tokens * dim))
        self.first = nn.Parameter(torch.zeros(width))  # frame 0 is led into by no action
        self.embed = nn.Linear(actions_per_frame * tokens * dim, width)
        self.blocks = nn.ModuleList(
            ActionBlock(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, self.heads_out * 6 * width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, codes: Tensor, drop: Tensor | None = None) -> Tensor:
        """`drop` [B, r (T - 1)] bool: actions to replace by the null action; or tokens of them, [.., N].

        Raises ValueError on codes of a wrong shape or a number of actions that r does not divide.
        """
        B, steps = codes.shape[:2]
        r = self.actions_per_frame
        if codes.ndim != 4 or tuple(codes.shape[2:]) != (self.tokens, self.dim):
            raise ValueError(
                f"conditioner: expected codes [B, r (T - 1), {self.tokens}, {self.dim}], got "
                f"{tuple(codes.shape)}"
            )
        if steps % r:
            raise ValueError(f"conditioner: {steps} actions are not whole frames of {r} actions")
        x = codes.flatten(2).to(self.embed.weight.dtype)  # [B, r (T - 1), N d]
        if drop is not None:
            left_out = drop[..., None] if drop.ndim == 2 else drop.repeat_interleave(self.dim, -1)
            x = torch.where(left_out, self.null.to(x.dtype), x)
        x = self.embed(x.reshape(B, steps // r, self.embed.in_features))
        # The residual stream keeps the dtype of the weights, also under autocast.
        x = torch.cat([self.first.expand(B, 1, -1), x.to(self.first.dtype)], dim=1)  # [B, T, C]
        for block in self.blocks:
            x = block(x)
        out = self.out(F.silu(self.hidden(self.norm(x))))
        return out.view(B, steps // r + 1, self.heads_out, out.shape[-1] // self.heads_out)

    def null_modulation(self, codes: Tensor) -> Tensor:
        """The modulation when every action is the null action (for guidance)."""
        return self(codes, torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device))
