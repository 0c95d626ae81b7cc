"""Temporal attention in Triton: the checks beside this file, and what needs neither GPU nor interpreter."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from colaworld import ops

pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")


def test_under_the_interpreter(run_checks) -> None:
    run_checks("st_attention", interpreted=True)


def test_on_the_gpu(run_checks, cuda) -> None:
    run_checks("st_attention", interpreted=False)


def test_every_shipped_configuration_is_named_once() -> None:
    from colaworld.kernels import st_attention as kernels

    found = list(kernels.configurations(90))
    assert len({c.label for c in found}) == len(found)
    shapes = {(c.constants["D"], c.constants["TP"]) for c in found}
    assert {(72, 16), (72, 32), (64, 16), (96, 16), (128, 16)} <= shapes
    for c in found:
        assert set(c.signature) == set(c.kernel.arg_names), c.label
        constants = {name for name, kind in c.signature.items() if kind == "constexpr"}
        assert constants == set(c.constants), c.label


@pytest.mark.parametrize("axis", ["temporal", "spatial"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_cuda_tensor_takes_triton_even_where_there_is_no_gpu(axis, dtype) -> None:
    """Fake tensors: what is traced, with a device that need not be there."""
    with FakeTensorMode(), ops.force("triton"):
        qkv = torch.empty(2, 5, 4, 3, 16, 72, device="cuda", dtype=dtype, requires_grad=True)
        weight = torch.empty(72, device="cuda", dtype=dtype, requires_grad=True)
        out = ops.st_attention(qkv, axis=axis, q_weight=weight, k_weight=weight)
        assert out.shape == (2, 5, 4, 16, 72)
        assert out.dtype == dtype
        assert out.is_contiguous()
        dqkv, dweight = torch.autograd.grad(out.sum(), (qkv, weight))
        assert dqkv.shape == qkv.shape
        assert dqkv.device.type == "cuda"
        assert dweight.shape == weight.shape


def test_why_not() -> None:
    reasons = {v.name: v.reason for v in ops.explain("st_attention", torch.ones(1, 1, 1, 3, 1, 2))}
    assert reasons["triton"] in ("the tensors are on cpu, it needs cuda", "cpu comes first")
