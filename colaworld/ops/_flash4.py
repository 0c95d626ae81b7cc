"""FlashAttention 4 as an op of torch's dispatcher, so that a graph can hold it.

`flash_attn.cute.flash_attn_func` compiles and launches from Python, on what lies in the tensors' memory:
torch.compile cannot look into it (github.com/Dao-AILab/flash-attention, issues 2013 and 2154, pull request
2164). Its forward and its backward, which torch's own adapter calls too (torch/nn/attention/_fa4.py),
are registered here as one op with a gradient.
Not here: whether it can run (`attention_backends.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _settings(scale: float, causal: bool) -> dict[str, object]:
    return {"softmax_scale": scale, "causal": causal}


@torch.library.custom_op(
    "colaworld::flash4",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, float scale, bool causal) -> (Tensor out, Tensor lse)",
)
def _forward(q, k, v, scale, causal):  # [N, L, H, D] -> the same and [N, H, L]
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse, *_ = _flash_attn_fwd(q, k, v, return_lse=True, **_settings(scale, causal))
    return out, lse


@torch.library.custom_op(
    "colaworld::flash4_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale, bool causal) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
)
def _backward(grad, q, k, v, out, lse, scale, causal):
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv, *_ = _flash_attn_bwd(q, k, v, out, grad, lse, **_settings(scale, causal))
    return dq, dk, dv


@_forward.register_fake
def _(q, k, v, scale, causal):
    N, L, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((N, H, L), dtype=torch.float32)


@_backward.register_fake
def _(grad, q, k, v, out, lse, scale, causal):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.settings = inputs[3:]


def _gradients(ctx, grad: Tensor, _):
    return *_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None


_forward.register_autograd(_gradients, setup_context=_save)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Attention of q, k, v [N, L, H, D]; as `attention_backends.Attend`."""
    return _forward(q, k, v, scale, causal)[0]
