"""Cross-attention to a caption, and how a caption enters. Key names follow STDiT3.

CoLA-World removes both; they are here for weights that were trained with text, so that what their
removal costs can be measured. Not here: a text encoder, captions come as its features.
Shape legend: B clips, N tokens, L caption tokens, C width, H heads, D head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.layers.mlp import MLP


class CrossAttention(nn.Module):
    """Every token looks at every caption token; no norm of queries and keys, no rotation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.proj.weight)

    def forward(
        self,
        x: Tensor,  # [B, N, C]
        caption: Tensor,  # [B, L, C]
        mask: Tensor | None = None,  # [B, L] bool, True: this caption token exists
    ) -> Tensor:
        """[B, N, C]"""
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(caption).unflatten(-1, (2, self.heads, -1)).unbind(2)
        keep = None if mask is None else mask[:, None, None]
        out = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), keep)
        return self.proj(out.transpose(1, 2).flatten(2))


class CaptionEmbedder(nn.Module):
    """Features of a text encoder to the width; holds the null caption, which takes no gradient."""

    y_embedding: Tensor  # [L, features]

    def __init__(self, features: int, width: int, length: int) -> None:
        super().__init__()
        self.register_buffer("y_embedding", torch.randn(length, features) / features**0.5)
        self.y_proj = MLP(features, width, width)

    def forward(self, caption: Tensor | None, clips: int) -> Tensor:
        """Features [B, L, features] (None: the null caption) -> [B, L, C].

        Raises ValueError on features of another shape.
        """
        length, features = self.y_embedding.shape
        if caption is None:
            caption = self.y_embedding.expand(clips, length, features)
        elif caption.ndim != 3 or (caption.shape[0], caption.shape[2]) != (clips, features):
            raise ValueError(
                f"caption: expected [{clips}, L, {features}], got {list(caption.shape)}"
            )
        return self.y_proj(caption.to(self.y_proj.fc1.weight.dtype))
