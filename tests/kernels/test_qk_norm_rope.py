"""qk_norm_rope and qkv_norm_rope in Triton: the checks beside this file, and what needs neither."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from colaworld import ops

pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")


each_op = pytest.mark.parametrize("op", ["qk_norm_rope", "qkv_norm_rope"])


@pytest.mark.slow
@each_op
def test_under_the_interpreter(run_checks, op) -> None:
    run_checks(op, interpreted=True, slow=False)


@pytest.mark.slow
@each_op
def test_the_rest_under_the_interpreter(run_checks, op) -> None:
    run_checks(op, interpreted=True, slow=True)


@each_op
def test_on_the_gpu(run_checks, cuda, op) -> None:
    run_checks(op, interpreted=False)


def test_every_shipped_configuration_is_named_once() -> None:
    from colaworld.kernels import qk_norm_rope as kernels

    found = list(kernels.configurations(90))
    assert len({c.label for c in found}) == len(found)
    for c in found:
        assert set(c.signature) == set(c.kernel.arg_names), c.label
        constants = {name for name, kind in c.signature.items() if kind == "constexpr"}
        assert constants == set(c.constants), c.label
        assert c.constants["HP"] * 2 * c.constants["PP"] <= kernels.MAX_TOKEN, c.label


def test_a_cuda_tensor_takes_triton_even_where_there_is_no_gpu() -> None:
    """Fake tensors, without gradients: autograd itself asks for the device."""
    with FakeTensorMode(), ops.force("triton"):
        qkv = torch.empty(2, 5, 3, 16, 72, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(72, device="cuda", dtype=torch.bfloat16)
        q, k, _ = qkv.unbind(2)
        for out in ops.qk_norm_rope(q, k, q_weight=weight, k_weight=weight):
            assert out.shape == (2, 5, 16, 72)
            assert out.dtype == torch.bfloat16
            assert out.device.type == "cuda"
            assert out.is_contiguous()
        arguments = (q, k, q, k, weight, weight, None, None, None, (), 1e-6, False)
        found = torch.ops.colaworld.qk_norm_rope_backward_triton(*arguments)
        assert [tuple(x.shape) for x in found] == [(2, 5, 16, 72)] * 2 + [(72,)] * 2
        parts = ops.qkv_norm_rope(qkv, q_weight=weight, k_weight=weight)
        assert [tuple(x.shape) for x in parts] == [(2, 5, 16, 72)] * 3
        arguments = (q, q, q, qkv, weight, weight, None, None, 1e-6)
        found = torch.ops.colaworld.qkv_norm_rope_backward_triton(*arguments)
        assert [tuple(x.shape) for x in found] == [(2, 5, 3, 16, 72), (72,), (72,)]
        assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "across", "sections"),
    [
        ((2, 5, 16, 72), False, ()),
        ((1, 1, 1, 64), False, (32,)),
        ((1, 4, 12, 128), True, (22, 21, 21)),
    ],
)
def test_what_a_call_compiles(compile_only, shape, across, sections) -> None:
    """The launcher's own view of the arguments (ones, multiples of 16) goes through the compiler."""
    from colaworld.kernels import qk_norm_rope as kernels

    compiled = compile_only(kernels)
    B, L, H, D = shape
    q = torch.empty(B, L, 3, H, D, dtype=torch.bfloat16)[:, :, 0]
    weight, table = torch.empty(H * D if across else D), torch.empty(L, D // 2)
    position = torch.zeros(L, len(sections), dtype=torch.int64) if sections else None
    rest = (weight, weight, table, table, position, sections)
    options = {"eps": 1e-6, "across": across}
    kernels.qk_norm_rope(q, q, *rest, **options)
    kernels.qk_norm_rope_backward(q.contiguous(), q.contiguous(), q, q, *rest, **options)
    names = ["forward_kernel", "backward_kernel"]
    if not across:
        qkv = torch.empty(B, L, 3, H, D, dtype=torch.bfloat16)
        kernels.qkv_norm_rope_backward(q, q, q, qkv, weight, weight, table, table, eps=1e-6)
        names.append("backward_kernel")
    assert [k.metadata.name for k in compiled] == names
    if H > 1:  # else a tile is narrower than its warp
        assert all("ld.global.v4" in k.asm["ptx"] for k in compiled), "16 bytes at once"


def test_why_not() -> None:
    q = torch.ones(1, 1, 1, 2)
    reasons = {v.name: v.reason for v in ops.explain("qk_norm_rope", q)}
    assert reasons["triton"] in ("the tensors are on cpu, it needs cuda", "cpu comes first")
