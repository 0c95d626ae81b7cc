"""Temporal attention in Triton: the checks beside this file, and what needs neither GPU nor interpreter."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from colaworld import ops

pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")


def test_under_the_interpreter(run_checks) -> None:
    run_checks("st_attention", interpreted=True, slow=False)


@pytest.mark.slow
def test_the_rest_under_the_interpreter(run_checks) -> None:
    run_checks("st_attention", interpreted=True, slow=True)


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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cuda_tensor_takes_triton_even_where_there_is_no_gpu(axis, dtype) -> None:
    """One graph, traced with fake tensors on a device that need not be there.

    Without gradients: autograd itself asks for the device, in a torch that has none.
    """
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    def run(qkv, weight):
        return ops.st_attention(qkv, axis=axis, q_weight=weight, k_weight=weight)

    torch.compiler.reset()
    with FakeTensorMode(), ops.force("triton"):
        qkv = torch.empty(2, 5, 4, 3, 16, 72, device="cuda", dtype=dtype)
        weight = torch.empty(72, device="cuda")
        out = torch.compile(run, fullgraph=True, backend=keep)(qkv, weight)
        assert out.shape == (2, 5, 4, 16, 72)
        assert out.dtype == dtype
        assert out.device.type == "cuda"
        assert out.is_contiguous()
    (graph,) = graphs
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    op = "st_attention_triton" if axis == "temporal" else "qk_norm_rope_triton"
    assert any(f"colaworld.{op}" in target for target in targets), targets


def test_the_fake_of_the_gradient() -> None:
    with FakeTensorMode():
        qkv = torch.empty(2, 5, 4, 3, 16, 72, device="cuda", dtype=torch.bfloat16)
        grad = torch.empty(2, 5, 4, 16, 72, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(72, device="cuda")
        arguments = (grad, qkv, weight, None, None, None, True, False, 1e-6, 0.1)
        found = torch.ops.colaworld.st_attention_backward_triton(*arguments)
        assert [tuple(x.shape) for x in found] == [qkv.shape, (72,), (0,)]
        assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.bfloat16]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 5, 4, 3, 16, 72), (1, 1, 1, 3, 1, 64)])
def test_what_a_call_compiles(compile_only, shape) -> None:
    """The launcher's own view of the arguments (ones, multiples of 16) goes through the compiler."""
    from colaworld.kernels import st_attention as kernels

    compiled = compile_only(kernels)
    T, D = shape[1], shape[5]
    qkv, weight, table = (
        torch.empty(shape, dtype=torch.bfloat16), torch.empty(D), torch.empty(T, D // 2)
    )  # fmt: skip
    rest = (weight, None, table, table)
    options = {"causal": True, "eps": 1e-6, "scale": 1.0}
    kernels.temporal_attention(qkv, *rest, **options)
    kernels.temporal_attention_backward(qkv[:, :, :, 0], qkv, *rest, **options)
    assert [k.metadata.name for k in compiled] == ["forward_kernel", "backward_kernel"]
    for k in compiled:
        assert "ld.global.v4" in k.asm["ptx"], "16 bytes at once"
        assert "mma.sync" in k.asm["ptx"], "tensor cores"


def test_why_not() -> None:
    reasons = {v.name: v.reason for v in ops.explain("st_attention", torch.ones(1, 1, 1, 3, 1, 2))}
    assert reasons["triton"] in ("the tensors are on cpu, it needs cuda", "cpu comes first")
