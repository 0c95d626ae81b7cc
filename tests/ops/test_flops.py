"""torch's FlopCounterMode counts our ops as it counts what they replace."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from colaworld.ops import st_attention, vector_quantize
from colaworld.ops.flops import FLOPS, FlopCount


def counted(run) -> int:
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        run()
    with FlopCount() as count:
        run()
    assert count.total == counter.get_total_flops()
    return count.total


@pytest.mark.parametrize("axis", ["spatial", "temporal"])
def test_attention_counts_its_products(axis):
    B, T, S, H, D = 2, 3, 8, 2, 16
    qkv = torch.randn(B, T, S, 3, H, D)
    q, k, v = (x.transpose(2, 3) for x in qkv.unbind(3))  # [B, T, H, S, D]
    if axis == "temporal":
        q, k, v = (x.movedim(1, 3) for x in (q, k, v))  # [B, H, S, T, D]

    forward = counted(lambda: (q @ k.transpose(-1, -2)).softmax(-1) @ v)
    assert forward > 0
    assert counted(lambda: st_attention(qkv, axis=axis, backend="fused")) == forward
    leaf = qkv.clone().requires_grad_()
    both = counted(lambda: st_attention(leaf, axis=axis, backend="fused").sum().backward())
    assert both == forward + forward // 2 * 5  # the scores a second time


def test_the_search_of_codes_is_one_product():
    z, codebook = torch.randn(10, 4), torch.randn(6, 4)
    assert counted(lambda: vector_quantize(z, codebook)) == counted(lambda: z @ codebook.T)
