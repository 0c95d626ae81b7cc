"""The two attentions of a Wan block, with the key names of diffusers' WanTransformer3DModel.

Self-attention runs over all tokens of a clip, or block-causally: a token sees its own frame and
the earlier ones. Cross-attention reads a caption. Not here: norms, modulation and residuals of the
block around them (`block.py`).

Shape legend: B clips, T frames, S tokens per frame, N = T S tokens, H heads, D head dim, C = H D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.layers.kv_cache import CacheView
from colaworld.ops import block_causal_attention, qk_norm_rope
from colaworld.ops.reference import rms_norm

# (cos, sin) [P, D / 2], positions [N, 3] int64, pairs per axis: what `qk_norm_rope` takes
Rotation = tuple[tuple[Tensor, Tensor], Tensor, tuple[int, int, int]]


class NormWeight(nn.Module):
    """Holds the weight of an RMSNorm across all heads; the norm itself happens in the op."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class _Projections(nn.Module):
    """What both attentions hold; `to_out` is a list because the published key is `to_out.0`."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        width = heads * head_dim
        self.heads, self.eps = heads, eps
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = NormWeight(width), NormWeight(width)

    def split(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, H, D]."""
        return x.unflatten(2, (self.heads, -1))


class WanSelfAttention(_Projections):
    """Attention among the tokens of a clip, rotated by frame, row and column."""

    backends = ("auto", "sdpa", "flex")

    def __init__(self, heads: int, head_dim: int, *, eps: float, causal: bool) -> None:
        super().__init__(heads, head_dim, eps)
        self.causal, self.backend = causal, "auto"

    def forward(
        self,
        x: Tensor,  # [B, N, C]
        rotation: Rotation,
        *,
        frames: int,
        cache: CacheView | None = None,  # of the frames before these
    ) -> Tensor:  # [B, N, C]
        tables, position, sections = rotation
        v = self.split(self.to_v(x))
        q, k = qk_norm_rope(
            self.split(self.to_q(x)),
            self.split(self.to_k(x)),
            q_weight=self.norm_q.weight,
            k_weight=self.norm_k.weight,
            eps=self.eps,
            norm="across",
            rope=tables,
            position=position,
            sections=sections,
        )
        if cache is not None:
            keys, values = cache.extended(*(y.unflatten(1, (frames, -1)) for y in (k, v)))
            k, v = keys.flatten(1, 2), values.flatten(1, 2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # [B, H, N, D]
        if self.causal:
            out = block_causal_attention(q, k, v, frames=frames, backend=self.backend)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class WanCrossAttention(_Projections):
    """Every token reads the caption; neither is rotated."""

    def forward(self, x: Tensor, text: Tensor) -> Tensor:  # [B, N, C], [B, L, C] -> [B, N, C]
        q = rms_norm(self.to_q(x), self.norm_q.weight, eps=self.eps)
        k = rms_norm(self.to_k(text), self.norm_k.weight, eps=self.eps)
        q, k, v = (self.split(y).transpose(1, 2) for y in (q, k, self.to_v(text)))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](out.transpose(1, 2).flatten(2))
