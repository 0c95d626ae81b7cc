"""Who runs st_attention, what the compiled op refuses, and what it does under autocast.

Its values are in test_st_attention_cpu.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from colaworld import ops
from colaworld.ops import _dispatch, _native

pytestmark = pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))


def test_who_runs_and_why_not() -> None:
    x = torch.zeros(1, 2, 3, 3, 1, 4)
    assert [v.name for v in ops.explain("st_attention", x) if v.would_run] == ["cpu"]
    refused = {v.name: v.reason for v in ops.explain("st_attention", x.half())}
    assert "float16" in refused["cpu"]
    with ops.force("cpu"), pytest.raises(ops.NoImplementationError, match="float16"):
        ops.st_attention(x.half(), axis="spatial")


def test_the_compiled_op_checks_for_itself() -> None:
    qkv, weight, table = torch.zeros(1, 2, 3, 3, 1, 4), torch.zeros(4), torch.zeros(2, 2)
    good = dict(
        zip(("qkv", "q", "k", "cos", "sin"), (qkv, weight, weight, table, table), strict=True)
    )
    forward, backward = torch.ops.colaworld.st_attention, torch.ops.colaworld.st_attention_backward
    for changes, message in [
        ({"qkv": qkv[0]}, r"qkv: expected \[B, T, S, 3, H, D\], got \[2, 3, 3, 1, 4\]"),
        ({"qkv": qkv[:, :, :, :2]}, r"qkv: expected \[B, T, S, 3, H, D\], got \[1, 2, 3, 2, 1, 4"),
        ({"qkv": qkv.half()}, "qkv: expected float32, float64 or bfloat16, got Half"),
        ({"q": weight[1:]}, r"q_weight: expected \[4\], got \[3\]"),
        ({"k": weight[None]}, r"k_weight: expected \[4\], got \[1, 4\]"),
        ({"k": weight.long()}, "k_weight: expected a floating-point tensor, got Long"),
        ({"cos": table[1:]}, r"cos: expected \[2, 2\], got \[1, 2\]"),
        ({"sin": table[:, 1:]}, r"sin: expected \[2, 2\], got \[2, 1\]"),
        ({"sin": None}, "cos and sin: expected both or neither, got one"),
        (
            {"qkv": qkv[..., :3], "q": None, "k": None},
            "cos: rotates pairs, so qkv needs an even D, got D = 3",
        ),
    ]:
        arguments = (*{**good, **changes}.values(), True, False, 1e-6, 1.0)
        with pytest.raises(ValueError, match="st_attention: " + message):
            forward(*arguments)
        with pytest.raises(ValueError, match="st_attention_backward: " + message):
            backward(torch.zeros(1, 2, 3, 1, 4), *arguments)
    arguments = (*good.values(), True, False, 1e-6, 1.0)
    with pytest.raises(ValueError, match=r"grad: expected \[1, 2, 3, 1, 4\], got \[1, 2, 3, 4\]"):
        backward(torch.zeros(1, 2, 3, 4), *arguments)
    with pytest.raises(ValueError, match="grad: expected Float as qkv is, got Double"):
        backward(torch.zeros(1, 2, 3, 1, 4).double(), *arguments)


@pytest.mark.parametrize(
    ("T", "D", "dtype", "axis", "first"),
    [(17, 128, torch.bfloat16, "temporal", "triton"), (32, 128, torch.float16, "temporal", "triton"),
     (16, 128, torch.bfloat16, "temporal", None), (32, 96, torch.bfloat16, "temporal", None),
     (32, 128, torch.float32, "temporal", None), (33, 128, torch.bfloat16, "temporal", None),
     (32, 128, torch.bfloat16, "spatial", None)],
)  # fmt: skip
def test_on_a_gpu_sizes_choose_between_cuda_and_triton(T, D, dtype, axis, first) -> None:
    shape = (1, T, 2, 3, 1, D)
    facts = _dispatch.CallInfo("cuda", dtype, shape, axis=axis)
    rule = _dispatch._PREFERS["st_attention"]
    preference = rule(facts)
    assert (preference and preference.name) == first
    assert rule(replace(facts, device="cpu")) is None


def test_a_second_derivative_is_an_error_that_says_what_to_do(generator) -> None:
    qkv = torch.randn(
        1, 3, 2, 3, 1, 4, generator=generator, dtype=torch.float64, requires_grad=True
    )
    with ops.force("cpu"):
        out = ops.st_attention(qkv, axis="temporal").square().sum()
    (grad,) = torch.autograd.grad(out, qkv, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*force\('reference'\)"):
        grad.sum().backward()


def test_autocast_keeps_the_dtype_of_qkv() -> None:
    x, linear = torch.randn(2, 3, 4, 16), torch.nn.Linear(16, 48)
    weight = torch.ones(8, requires_grad=True)
    with ops.force("cpu"), torch.autocast("cpu", torch.bfloat16):
        qkv = linear(x).view(2, 3, 4, 3, 2, 8)
        out = ops.st_attention(qkv, axis="temporal", q_weight=weight, k_weight=weight)
        wide = ops.st_attention(qkv.float(), axis="temporal", q_weight=weight, k_weight=weight)
    assert qkv.dtype == out.dtype == torch.bfloat16 and wide.dtype == torch.float32
    assert (out.float() - wide).norm() <= 2**-7 * wide.norm()
    out.float().sum().backward()
    assert weight.grad.dtype == linear.weight.grad.dtype == torch.float32
    assert weight.grad.any() and linear.weight.grad.any()
