"""Vector quantisation in Triton: the checks beside this file, and what needs neither GPU nor interpreter."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from colaworld import ops

pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")


def test_under_the_interpreter(run_checks) -> None:
    run_checks("vector_quantize", interpreted=True, slow=False)


@pytest.mark.slow
def test_the_rest_under_the_interpreter(run_checks) -> None:
    run_checks("vector_quantize", interpreted=True, slow=True)


def test_on_the_gpu(run_checks, cuda) -> None:
    run_checks("vector_quantize", interpreted=False)


def test_every_shipped_configuration_is_named_once() -> None:
    from colaworld.kernels import vector_quantize as kernels

    found = list(kernels.configurations(90))
    assert len({c.label for c in found}) == len(found)
    shapes = {(32, 32), (8, 8), (1024, 32), (8192, 64)}
    assert all(any(f"K={K} d={d} " in c.label for c in found) for K, d in shapes)
    assert {c.kernel.__name__ for c in found} == {
        "assign_kernel", "select_kernel", "parts_kernel", "pieces_kernel", "entries_kernel",
        "update_kernel",
    }  # fmt: skip
    for c in found:
        assert set(c.signature) == set(c.kernel.arg_names), c.label
        constants = {name for name, kind in c.signature.items() if kind == "constexpr"}
        assert constants == set(c.constants), c.label
        if "PRECISION" in c.constants and c.signature["Z"] == "*fp32":
            assert c.constants["PRECISION"] == "tf32x3", c.label  # "ieee" spills kilobytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_cuda_tensor_takes_triton_even_where_there_is_no_gpu(dtype) -> None:
    """Fake tensors: what is traced, with a device that need not be there."""
    with FakeTensorMode(), ops.force("triton"):
        z, codebook = (torch.empty(n, 32, device="cuda", dtype=dtype) for n in (100, 8))
        codes, indices = ops.vector_quantize(z, codebook)
        assert codes.shape == (100, 32) and codes.dtype == dtype and codes.device.type == "cuda"
        assert indices.shape == (100,) and indices.dtype == torch.int64
        packed = ops.code_statistics(z, indices, 8)
        assert packed.shape == (8, 33) and packed.dtype == torch.float32


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that a launch function would start, and of what torch would compute."""
    from colaworld.kernels import vector_quantize as kernels

    names: list[str] = []

    class Launch:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid):
            return lambda *_, **__: names.append(self.name)

    class Computed(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if "empty" not in op.name():  # memory and no launch
                names.append(op.name())
            return op(*args, **(kwargs or {}))

    for name in [name for name in vars(kernels) if name.endswith("_kernel")]:
        monkeypatch.setattr(kernels, name, Launch(name))
    with Computed():
        yield names


@pytest.mark.parametrize("N", [64, 2000, 4096])
def test_a_step_of_a_small_codebook_is_three_launches(launched, N) -> None:
    from colaworld.kernels import vector_quantize as kernels

    z, codebook, count, total = (torch.empty(s) for s in ((N, 32), (32, 32), (32,), (32, 32)))
    _, indices = kernels.nearest(z, codebook)
    packed = kernels.sums(z, indices, 32, counts=True)
    kernels.update(codebook, count, total, packed, decay=0.9, eps=1e-5)
    assert launched == ["assign_kernel", "select_kernel", "update_kernel"]


@pytest.mark.parametrize("op", ["vector_quantize", "code_statistics"])
def test_why_not(op) -> None:
    reasons = {v.name: v.reason for v in ops.explain(op, torch.zeros(4, 2))}
    assert reasons["triton"] in ("the tensors are on cpu, it needs cuda", "cpu comes first")
