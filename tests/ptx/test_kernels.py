"""Kernels from their own PTX against float64: one Triton kernel and one of nvcc's; the rest follows."""

from __future__ import annotations

import pytest
import torch

from colaworld.ops import reference


def error(got, wanted) -> float:
    return ((got.double() - wanted).norm() / wanted.norm()).item()


def attention_case(shape, dtype, *, causal):
    g = torch.Generator().manual_seed(0)
    B, T, S, H, D = shape
    qkv = torch.randn(B, T, S, 3, H, D, generator=g).to(dtype)
    weights = torch.rand(2, D, generator=g) + 0.5
    angles = torch.randn(T, D // 2, generator=g)
    grad = torch.randn(B, T, S, H, D, generator=g).to(dtype)
    rest = (weights[0], weights[1], angles.cos(), angles.sin())
    options = {"causal": causal, "eps": 1e-5, "scale": 0.2}
    leaves = [qkv.double().requires_grad_(), *(w.double().requires_grad_() for w in weights)]
    tables = (angles.cos().double(), angles.sin().double())
    out = reference.st_attention(*leaves, *tables, temporal=True, **options)
    wanted = [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]
    return qkv, rest, grad, options, wanted


def test_a_triton_kernel() -> None:
    pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")
    from colaworld.kernels import st_attention as kernels
    from ptx.triton_driver import on_ptx

    qkv, rest, grad, options, wanted = attention_case((1, 5, 2, 3, 72), torch.bfloat16, causal=True)
    with on_ptx(90) as session:
        out = kernels.temporal_attention(qkv, *rest, **options)
        found = kernels.temporal_attention_backward(grad, qkv, *rest, **options)
    assert not session.reports, str(session.reports)
    for got, exact in zip((out, *found), wanted, strict=True):
        assert error(got, exact) < 1e-2


def test_a_kernel_of_nvcc() -> None:
    from ptx.native_driver import Missing, Native

    try:
        native = Native.built()
    except Missing as reason:
        pytest.skip(str(reason))
    qkv, rest, grad, options, wanted = attention_case((1, 5, 2, 3, 72), torch.bfloat16, causal=True)
    found = native.attention(qkv, *rest, **options)
    found += native.attention(qkv, *rest, grad=grad, **options)
    assert not native.reports, str(native.reports)
    for got, exact in zip(found, wanted, strict=True):
        assert error(got, exact) < 1e-2
