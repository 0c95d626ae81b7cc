"""One block of Wan 2.1: self-attention, cross-attention where there is text, MLP.

Names are those of diffusers' WanTransformer3DModel. Not here: the attentions themselves
(`attention.py`), embeddings and the last layer (`model.py`).

Shape legend: B clips, N tokens, C width, L caption tokens, G parts of a clip that share a
modulation: the clip, its frames, or its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colaworld.models.backbones.wan.attention import Rotation, WanCrossAttention, WanSelfAttention
from colaworld.models.layers.kv_cache import CacheView
from colaworld.ops import adaln, gelu
from colaworld.ops.reference import compute_dtype


class GELULinear(nn.Module):
    """Linear, then GELU in its tanh form; its `proj` has the published key."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.proj(x))


class FeedForward(nn.Module):
    """The MLP; the published list has a dropout in the middle, hence `net.0` and `net.2`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GELULinear(width, hidden), nn.Identity(), nn.Linear(hidden, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class WanBlock(nn.Module):
    """Self-attention and MLP, each modulated and gated; cross-attention to a caption between them.

    The MLP's gated residual is left pending (`y`, `gate`) and added by the next `adaln`, which
    fuses gate, residual, norm and modulation into one pass over the tokens.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        hidden: int,
        *,
        eps: float,
        causal: bool,
        text: bool,
        cross_attn_norm: bool,
    ) -> None:
        super().__init__()
        width, self.eps = heads * head_dim, eps
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, width) / width**0.5)
        self.attn1 = WanSelfAttention(heads, head_dim, eps=eps, causal=causal)
        if text:
            self.attn2 = WanCrossAttention(heads, head_dim, eps=eps)
            if cross_attn_norm:
                self.norm2 = nn.LayerNorm(width, eps=eps)
        self.ffn = FeedForward(width, hidden)

    def forward(
        self,
        x: Tensor,  # [B, G, N / G, C]
        y: Tensor | None,  # [B, G, N / G, C] pending branch of the block before
        gate: Tensor | None,  # [B, G, C] its gate
        modulation: Tensor,  # [B, G, 6 * C]
        rotation: Rotation,
        text: Tensor | None,  # [B, L, C]
        *,
        frames: int,
        cache: CacheView | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = compute_dtype(x.dtype)
        six = self.scale_shift_table.to(wide)[:, None] + modulation.to(wide).unflatten(2, (6, -1))
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = six.unbind(2)

        x, h = adaln(x, y, gate=gate, shift=shift_attn, scale=scale_attn, eps=self.eps)
        y = self.attn1(h.flatten(1, 2), rotation, frames=frames, cache=cache)
        y, gate = y.view(x.shape), gate_attn
        if text is not None:
            x, h = self._before_text(x, y, gate)
            y, gate = self.attn2(h.flatten(1, 2), text).view(x.shape), None
        x, h = adaln(x, y, gate=gate, shift=shift_mlp, scale=scale_mlp, eps=self.eps)
        return x, self.ffn(h), gate_mlp

    def _before_text(self, x: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream with the gated branch added, and what cross-attention reads.

        An affine norm is a modulation that is the same everywhere: scale = weight - 1.
        """
        wide = gate.dtype
        if not hasattr(self, "norm2"):
            x = (x.to(wide) + y.to(wide) * gate[:, :, None]).to(x.dtype)
            return x, x
        shift = self.norm2.bias.to(wide).expand(gate.shape)
        scale = (self.norm2.weight.to(wide) - 1).expand(gate.shape)
        return adaln(x, y, gate=gate, shift=shift, scale=scale, eps=self.eps)
