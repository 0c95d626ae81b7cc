"""Self-attention along one axis of a video's tokens, with q/k norm and RoPE inside the fused op."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.layers.kv_cache import CacheView
from colaworld.models.layers.rope import rope_tables
from colaworld.ops import (
    ATTENTION_BACKENDS,
    AttentionBackend,
    attention_backend_missing,
    qkv_norm_rope,
    st_attention,
)


@runtime_checkable
class HasBackends(Protocol):
    """An attention that can run on several kernels; `use_backend` chooses one of its `backends`."""

    backends: tuple[AttentionBackend, ...]
    backend: AttentionBackend


@runtime_checkable
class KeepsOnGPU(Protocol):
    """A layer whose GPU kernels keep more for the backward pass than the CPU's."""

    def kept_on_gpu(self, output: Tensor) -> Tensor | None:
        """An empty tensor of that size, given the layer's output. For memory planning."""
        ...


class QKNorm(nn.Module):
    """Holds the weight of a per-head RMSNorm; the norm itself happens inside `st_attention`."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))


class AxialAttention(nn.Module):
    """Attention among the tokens of one frame (spatial) or of one location (temporal).

    Key names follow STDiT3: `qkv`, `q_norm`, `k_norm`, `proj`.
    """

    backends = ATTENTION_BACKENDS

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        axis: str,
        causal: bool = False,
        rope_theta: float | None = None,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} / heads {heads} must be an even whole number")
        self.backend: AttentionBackend = "auto"
        self.heads, self.axis, self.causal, self.rope_theta = heads, axis, causal, rope_theta
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = QKNorm(width // heads)
        self.k_norm = QKNorm(width // heads)
        self.proj = nn.Linear(width, width)
        if zero_init:
            nn.init.zeros_(self.proj.weight)

    def forward(self, x_BTSC: Tensor, cache: CacheView | None = None) -> Tensor:
        """With a `cache` (temporal and causal only) the frames follow those it holds."""
        B, T, S, C = x_BTSC.shape
        head_dim = C // self.heads
        qkv = self.qkv(x_BTSC).view(B, T, S, 3, self.heads, head_dim)
        if cache is not None:
            return self.proj(self._after(qkv, cache).reshape(B, T, S, C))
        rope = None
        if self.rope_theta is not None:
            length = T if self.axis == "temporal" else S
            rope = rope_tables(length, head_dim, theta=self.rope_theta, device=x_BTSC.device)
        out = st_attention(
            qkv,
            axis=self.axis,
            causal=self.causal,
            q_weight=self.q_norm.weight,
            k_weight=self.k_norm.weight,
            rope=rope,
            backend=self.backend,
        )
        return self.proj(out.reshape(B, T, S, C))

    def kept_on_gpu(self, output: Tensor) -> Tensor | None:
        """Normed queries and keys of the spatial axis."""
        return output.new_empty((2, *output.shape)) if self.axis == "spatial" else None

    def _after(self, qkv: Tensor, cache: CacheView) -> Tensor:
        """Attention of new frames [B, t, S, 3, H, D] to the cached ones and themselves."""
        B, T, S, D = *qkv.shape[:3], qkv.shape[-1]
        first = cache.frames  # position of the first new frame
        tables = rope_tables(T, D, first=first, theta=self.rope_theta, device=qkv.device)
        rope = tuple(table.repeat_interleave(S, 0) for table in tables)
        q, k, v = qkv_norm_rope(  # [B, t S, H, D]
            qkv.flatten(1, 2), q_weight=self.q_norm.weight, k_weight=self.k_norm.weight, rope=rope
        )
        keys, values = cache.extended(k.unflatten(1, (T, S)), v.unflatten(1, (T, S)))
        q, keys, values = (
            x.permute(0, 2, 3, 1, 4).flatten(0, 1) for x in (q.unflatten(1, (T, S)), keys, values)
        )
        # One new frame sees all there is; of several, each the cached ones and those up to itself.
        seen = None
        if T > 1:
            there = keys.shape[-2]  # fewer than first + T where the first were forgotten
            seen = torch.ones(T, there, dtype=torch.bool, device=qkv.device).tril(there - T)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        return out.unflatten(0, (B, S)).permute(0, 3, 1, 2, 4)


def use_backend(model: nn.Module, backend: AttentionBackend) -> None:
    """Every attention within `model` that has `backends` runs on `backend`.

    Raises ValueError on an unknown name, a package that is not installed, or a module that does not
    list it.
    """
    reason = attention_backend_missing(backend)
    if reason is not None:
        raise ValueError(reason)
    for module in model.modules():
        if not isinstance(module, HasBackends):
            continue
        if backend not in module.backends:
            raise ValueError(
                f"attention: {type(module).__name__} runs on {', '.join(module.backends)}, "
                f"got {backend!r}"
            )
        module.backend = backend
