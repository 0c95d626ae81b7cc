"""adaln in Triton: the checks beside this file, and what needs neither GPU nor interpreter."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from colaworld import ops

pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")


@pytest.mark.slow
def test_under_the_interpreter(run_checks) -> None:
    run_checks("adaln", interpreted=True, slow=False)


@pytest.mark.slow
def test_the_rest_under_the_interpreter(run_checks) -> None:
    run_checks("adaln", interpreted=True, slow=True)


def test_on_the_gpu(run_checks, cuda) -> None:
    run_checks("adaln", interpreted=False)


def test_every_shipped_configuration_is_named_once() -> None:
    from colaworld.kernels import adaln as kernels

    found = list(kernels.configurations(90))
    assert len({c.label for c in found}) == len(found)
    assert {1152, 768, 1536, 5120} <= {c.constants.get("C") for c in found}
    assert {c.kernel for c in found} == {
        kernels.forward_kernel, kernels.backward_kernel, kernels.sum_kernel
    }  # fmt: skip
    for c in found:
        assert set(c.signature) == set(c.kernel.arg_names), c.label
        constants = {name for name, kind in c.signature.items() if kind == "constexpr"}
        assert constants == set(c.constants), c.label


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_cuda_tensor_takes_triton_even_where_there_is_no_gpu(dtype, out_dtype) -> None:
    """Fake tensors: what is traced. A torch without CUDA cannot record them, so backward is called."""
    with FakeTensorMode(), ops.force("triton"):
        x = torch.empty(2, 3, 16, 1152, device="cuda", dtype=dtype)
        m = torch.empty(2, 3, 1152, device="cuda")
        x_out, out = ops.adaln(x, x, gate=m, shift=m, scale=m, out_dtype=out_dtype)
        assert x_out.shape == out.shape == x.shape
        assert (x_out.dtype, out.dtype) == (dtype, out_dtype)
        row = x.new_empty(2, 3, 16, dtype=torch.float32)
        dx, dy, *tables = torch.ops.colaworld.adaln_backward_triton(x, out, x, x, m, m, row, row)
        assert dx.shape == dy.shape == x.shape and dx.dtype == dtype and dx.device.type == "cuda"
        assert all(t.shape == m.shape and t.dtype == torch.float32 for t in tables)


@pytest.mark.parametrize(
    ("C", "parts"),
    [
        (1, (1, 0)), (96, (128, 0)), (128, (128, 0)), (150, (128, 64)), (200, (256, 0)),
        (768, (512, 256)), (1040, (1024, 128)), (1152, (1024, 128)), (1153, (1024, 256)),
        (1536, (1024, 512)), (1537, (2048, 0)), (4097, (4096, 512)), (5120, (4096, 1024)),
    ],
)  # fmt: skip
def test_a_row_is_cut_into_two_powers_of_two(C, parts) -> None:
    from colaworld.kernels import adaln as kernels
    from colaworld.kernels import tuning

    assert kernels.parts_of(C) == parts
    for direction in ("forward", "backward"):
        blocks = tuning.pick(tuning.ADALN, 90, direction, sum(parts))
        if parts[1]:  # two bfloat16 numbers in each lane: what cp.async copies at once
            assert parts[1] >= 2 * 32 * blocks.num_warps


def test_why_not() -> None:
    reasons = {v.name: v.reason for v in ops.explain("adaln", torch.zeros(1, 1, 1, 2))}
    assert reasons["triton"] in ("the tensors are on cpu, it needs cuda", "cpu comes first")
