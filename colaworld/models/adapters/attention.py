"""The same action may mean different motion in different places: queries look at the current frame.

Queries, one for each token of a latent action, are made of the real action; keys and values are patches
of the frame that it is taken in. Not here: later frames, which nobody has when acting.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.adapters.adapter import Adapter
from colaworld.models.adapters.config import AttentionAdapterConfig
from colaworld.models.layers.embeddings import grid_embedding
from colaworld.models.layers.mlp import MLP


class AttentionAdapter(Adapter):
    """One layer of cross-attention and an MLP. `patch`: side of a patch in pixels."""

    looks = True

    def __init__(
        self, config: AttentionAdapterConfig, *, tokens: int, dim: int, patch: int = 8
    ) -> None:
        super().__init__(config, tokens=tokens, dim=dim)
        self.patch, self.heads = patch, config.heads
        width = config.width
        self.query = MLP(config.size, width, tokens * width)
        self.embed = nn.Linear(3 * patch**2, width)
        self.norm = nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.out = MLP(width, 2 * width, dim)

    def _codes(self, actions: Tensor, frames: Tensor | None) -> Tensor:
        assert frames is not None
        _, _, _, H, W = frames.shape
        if H % self.patch or W % self.patch:
            raise ValueError(f"adapter: frames {H}x{W} are not whole patches of {self.patch} px")
        query = self.query(self._numbers(actions)).flatten(0, 1)  # [B (T - 1), N width]
        query = query.unflatten(-1, (self.tokens, -1))
        x = F.pixel_unshuffle((frames.float() * 2 - 1).flatten(0, 1), self.patch)
        x = self.embed(x.flatten(2).transpose(1, 2))  # [B (T - 1), S, width]
        place = grid_embedding(H // self.patch, W // self.patch, self.config.width, device=x.device)
        k, v = self.kv(self.norm(x + place)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, k, v))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        codes = self.out(query + self.proj(seen))  # [B (T - 1), N, d]
        return codes.flatten(1).unflatten(0, actions.shape[:2])
