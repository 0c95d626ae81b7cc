"""`block_causal_attention`: a token sees its own frame and all earlier ones.

    frame    keys seen          P frames come before those of the queries: a cache
      0      P | 0
      1      P | 0 1            half of the full product is computed, and what a frame gets
      2      P | 0 1 2          cannot depend on a later one, not even in the last bit

Two ways to compute it: one product a frame over what that frame sees ("sdpa"), and torch's FlexAttention
with a mask of blocks ("flex"). The gradient of the first makes T full-size tensors for k and for v, one a
frame; that of the second reads and writes each once. Not here: norm and rotation (`qk_norm_rope.py`), and
the mask (`block_mask.py`).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from colaworld.ops import _dispatch, attention_backends
from colaworld.ops._checks import check_beside
from colaworld.ops.block_mask import block_mask

Backend = Literal["auto", "sdpa", "flex"]


def block_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, frames: int, backend: Backend = "auto"
) -> Tensor:
    """Attention of T frames of S tokens to themselves and to what came before.

    Args:
        q: [B, H, T S, D] queries.
        k, v: [B, H, (P + T) S, D] keys and values; the first P frames come before those of q.
        frames: T >= 1.
        backend: "sdpa": a product a frame; "flex": FlexAttention (no backward on a CPU); "auto": flex for
            several frames on a GPU with a gradient, else sdpa. A single frame sees every key, so that it
            is always plain attention without a mask.

    Returns:
        [B, H, T S, D] in the dtype of q.

    Raises:
        ValueError: shapes that are no whole frames, or an unknown backend.

    Source: FlexAttention (Dong et al. 2024) with the block-causal mask of CausVid (Yin et al. 2024).
    """
    if q.ndim != 4:
        raise ValueError(f"q: expected [B, H, T S, D], got {list(q.shape)}")
    if frames < 1 or q.shape[2] % frames:
        raise ValueError(f"frames: expected a divisor of {q.shape[2]} tokens, got {frames}")
    per_frame = q.shape[2] // frames
    shape = (*q.shape[:2], k.shape[2] if k.ndim == 4 else -1, q.shape[3])
    check_beside("k", k, shape, "q", q)
    check_beside("v", v, shape, "q", q)
    if k.shape[2] < q.shape[2] or (per_frame and k.shape[2] % per_frame):
        raise ValueError(
            f"k: expected whole frames of {per_frame} tokens, {frames} at least, got {k.shape[2]} tokens"
        )
    if backend not in ("auto", "sdpa", "flex"):
        raise ValueError(f"backend: expected 'auto', 'sdpa' or 'flex', got {backend!r}")
    if frames == 1:
        return F.scaled_dot_product_attention(q, k, v)
    # Its gain is in the gradient; and where nothing is compiled, as in rollouts, flex makes all scores.
    gains = _dispatch.facts_of(q).device == "cuda" and attention_backends.wants_grad(q, k, v)
    if backend == "flex" or (backend == "auto" and gains):
        mask = block_mask(frames, k.shape[2] // per_frame, per_frame, str(q.device))
        return attention_backends.flex()(q, k, v, block_mask=mask)
    before = k.shape[2] - q.shape[2]
    parts = []
    for frame, queries in enumerate(q.split(per_frame, dim=2)):
        seen = before + (frame + 1) * per_frame
        parts.append(F.scaled_dot_product_attention(queries, k[:, :, :seen], v[:, :, :seen]))
    return torch.cat(parts, dim=2)
