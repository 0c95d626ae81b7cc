"""The meaning of each op in plain PyTorch. Every faster implementation answers to this file.

Not here: argument checks (the public function of each op) and the choice of an implementation
(`_dispatch.py`). Everything is differentiable by autograd and runs on any device.
Shape legend: B clips, T frames, S locations, L tokens, H heads, D channels per head, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of the largest N x K block of scores that vector_quantize holds at once: 16 MB in
# float32, which stays in or near the last-level cache and bounds the memory at any N and K.
SCORE_BLOCK = 1 << 22


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums run in: float64 stays, everything narrower becomes float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """RMSNorm over the last axis: statistics in float32, cast back, then times the weight."""
    wide = x.to(compute_dtype(x.dtype))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight.to(x.dtype)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on interleaved pairs (x0, x1), (x2, x3), ...

    `x` [..., D]; `cos`, `sin` broadcast against [..., D/2]. Computed in float32, cast back.
    """
    wide = x.to(compute_dtype(x.dtype))
    even, odd = wide[..., 0::2], wide[..., 1::2]
    cos, sin = cos.to(wide.dtype), sin.to(wide.dtype)
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Scaled dot-product attention on [N, H, L, D]."""
    if q.numel() == 0:  # torch 2.11 divides by H on the CPU, and that ends the process
        return q + k + v  # as empty, with a gradient for each
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


def st_attention(
    qkv: Tensor,  # [B, T, S, 3, H, D]
    q_weight: Tensor | None,  # [D]
    k_weight: Tensor | None,  # [D]
    cos: Tensor | None,  # [L, D/2], L = T (temporal) or S (spatial)
    sin: Tensor | None,  # [L, D/2]
    *,
    temporal: bool,
    causal: bool,
    eps: float,
    scale: float,
) -> Tensor:  # [B, T, S, H, D]
    """Attention along one axis of a clip, every index of the other axis on its own."""
    B, T, S = qkv.shape[:3]
    q, k, v = qkv.unbind(3)  # each [B, T, S, H, D]
    if q_weight is not None:
        q = rms_norm(q, q_weight, eps=eps)
    if k_weight is not None:
        k = rms_norm(k, k_weight, eps=eps)
    if cos is not None and sin is not None:
        # One table row per position on the axis; the other axis and the heads share it.
        shape = (T, 1, 1, cos.shape[1]) if temporal else (S, 1, cos.shape[1])
        cos, sin = cos.reshape(shape), sin.reshape(shape)
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
    # [sequences, H, L, D] for the attention kernel, then back.
    order = (0, 2, 3, 1, 4) if temporal else (0, 1, 3, 2, 4)
    q, k, v = (x.permute(order).flatten(0, 1) for x in (q, k, v))
    out = sdpa(q, k, v, causal=causal, scale=scale)
    out = out.unflatten(0, (B, S if temporal else T))
    return out.permute((0, 3, 1, 2, 4) if temporal else (0, 1, 3, 2, 4)).contiguous()


def gelu(x: Tensor) -> Tensor:
    """x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    return F.gelu(x, approximate="tanh")


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each row, [N] int64.

    score(n, k) = |e_k|^2 / 2 - z_n . e_k orders the codes as the squared distance does. A running
    minimum with strict < starts at index 0: the lowest index wins a tie, a score that is NaN never
    wins, and a row of NaN keeps index 0. Blocks over N bound the memory.
    """
    wide = compute_dtype(z.dtype)
    codes = codebook.detach().to(wide)
    half_norm = codes.square().sum(1) / 2
    rows = max(1, SCORE_BLOCK // max(1, codebook.shape[0]))
    found = [
        torch.addmm(half_norm, block.to(wide), codes.t(), alpha=-1)
        .nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        .argmin(1)
        for block in z.detach().split(rows)
    ]
    return found[0] if len(found) == 1 else torch.cat(found)


def vector_quantize(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code of each row: (codes [N, d], indices [N] int64)."""
    indices = nearest_code(z, codebook)
    return F.embedding(indices, codebook), indices


def _check_rows(name: str, rows: Tensor, count: str, table: Tensor) -> None:
    """ValueError unless `rows` are row numbers of the table, none of them counted from the end."""
    inside = ((rows >= 0) & (rows < table.shape[0])).all()
    message = (
        f"{name}: expected rows 0 .. {count} - 1 of tables with {count} = {table.shape[0]} rows"
    )
    if torch.compiler.is_compiling() or rows.device.type != "cpu":
        torch._assert_async(inside, message)  # a graph, or a GPU, does not wait for the answer
    elif not inside:
        worst = rows.max() if rows.max() >= table.shape[0] else rows.min()
        raise ValueError(f"{message}, got {int(worst)}")


def code_statistics(
    z: Tensor,  # [N, d]
    indices: Tensor,  # [N] int64 in [0, K)
    K: int,
    counts: bool,
) -> Tensor:  # [K, d + 1], without counts [K, d]
    """Per entry the sum of its rows and, in the last column, how many there are."""
    wide = z.to(compute_dtype(z.dtype))
    total = wide.new_zeros(K, wide.shape[1]).index_add(0, indices, wide)
    if not counts:
        return total
    count = indices.new_zeros(K).index_add(0, indices, torch.ones_like(indices))
    return torch.cat([total, count[:, None].to(total.dtype)], dim=1)


def update_codebook(
    codebook: Tensor,  # [K, d], overwritten
    count: Tensor,  # [K], updated
    total: Tensor,  # [K, d], updated
    packed: Tensor,  # [K, d + 1] sums and counts
    decay: float,
    eps: float,
) -> None:
    """Running means of the sums and counts; each entry becomes its mean, counts smoothed by `eps`."""
    K, d = codebook.shape
    count.lerp_(packed[:, d].to(count.dtype), 1 - decay)
    total.lerp_(packed[:, :d].to(total.dtype), 1 - decay)
    mass = count.sum()
    smooth = (count + eps) / (mass + K * eps) * mass
    codebook.copy_(total / smooth[:, None])


def gated_residual(
    x: Tensor,  # [B, T, S, C]
    y: Tensor,  # [B, T, S, C]
    gate: Tensor | None,  # [B, T, C]
) -> Tensor:
    """x + gate y in the dtype of x, computed in float32; without a gate x + y."""
    wide = compute_dtype(x.dtype)
    branch = y.to(wide)
    if gate is not None:
        branch = branch * gate.to(wide).unsqueeze(2)
    return (x.to(wide) + branch).to(x.dtype)


def adaln(
    x: Tensor,  # [B, T, S, C]
    y: Tensor | None,  # [B, T, S, C]
    gate: Tensor | None,  # [B, T, C]
    shift: Tensor,  # [B, T, C]
    scale: Tensor,  # [B, T, C]
    *,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Gate, residual, norm without parameters, modulation per frame: (x_out, out).

    Everything is computed in float32; the norm reads x_out as rounded to the dtype of x, so that
    it sees what the next block sees. `out` alone is rounded to `out_dtype`.
    """
    wide = compute_dtype(x.dtype)
    x_out = x if y is None else gated_residual(x, y, gate)
    normed = x_out.to(wide)
    normed = normed - normed.mean(-1, keepdim=True)
    normed = normed * torch.rsqrt(normed.square().mean(-1, keepdim=True) + eps)
    out = normed * (1 + scale.to(wide).unsqueeze(2)) + shift.to(wide).unsqueeze(2)
    return x_out, out.to(out_dtype)


def table_rows(table: Tensor, position: Tensor, sections: Sequence[int]) -> Tensor:
    """[L, D/2] from a table [P, D/2]: column p of axis a comes from row position[l, a].

    `position` [L, A] int64; `sections` A counts of columns that sum to D/2. No row counts from the
    end.
    """
    _check_rows("position", position, "P", table)
    parts = zip(position.unbind(1), table.split(list(sections), dim=1), strict=True)
    return torch.cat([F.embedding(rows, columns) for rows, columns in parts], dim=1)


def qk_norm_rope(
    q: Tensor,  # [B, L, H, D]
    k: Tensor,  # [B, L, H, D]
    q_weight: Tensor | None,  # [D], or [H * D] when across
    k_weight: Tensor | None,  # [D], or [H * D] when across
    cos: Tensor | None,  # [P, D/2]
    sin: Tensor | None,  # [P, D/2]
    position: Tensor | None,  # [L, A] int64
    sections: Sequence[int],  # A counts of pairs
    *,
    eps: float,
    across: bool,
) -> tuple[Tensor, Tensor]:
    """RMSNorm of queries and keys, per head or across heads, then rotary embedding."""
    if across and q_weight is not None and k_weight is not None:
        q = rms_norm(q.flatten(2), q_weight, eps=eps).view(q.shape)
        k = rms_norm(k.flatten(2), k_weight, eps=eps).view(k.shape)
    else:
        q = q if q_weight is None else rms_norm(q, q_weight, eps=eps)
        k = k if k_weight is None else rms_norm(k, k_weight, eps=eps)
    if cos is not None and sin is not None:
        if position is not None:
            cos, sin = (table_rows(table, position, sections) for table in (cos, sin))
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # heads share the row of their token
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
    return q.contiguous(), k.contiguous()


def qkv_norm_rope(
    qkv: Tensor,  # [B, L, 3, H, D]
    q_weight: Tensor | None,  # [D]
    k_weight: Tensor | None,  # [D]
    cos: Tensor | None,  # [L, D/2]
    sin: Tensor | None,  # [L, D/2]
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """qk_norm_rope of a packed qkv; the values stay where they are."""
    q, k, v = qkv.unbind(2)
    q, k = qk_norm_rope(q, k, q_weight, k_weight, cos, sin, None, (), eps=eps, across=False)
    return q, k, v
