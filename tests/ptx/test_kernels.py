"""The shipped kernels from their own PTX against float64: one of each kind here, all of them when slow.

What is run is in cases.py and native_cases.py; `python tests/ptx` prints it as a table.
"""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from ptx import cases, coverage, native_cases
from ptx.native_driver import Missing, Native

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="triton is not installed; it comes with a CUDA build of torch",
)


def native(arch: int) -> Native:
    try:
        return Native.built() if arch == 90 else Native.compiled(arch)
    except Missing as reason:
        pytest.skip(str(reason))


def check(rows: list[coverage.Row]) -> None:
    assert rows
    wrong = [f"{r.kernel} {r.dtype} sm_{r.arch}: {w}" for r in rows for w in r.wrong]
    assert not wrong, "\n".join(wrong)
    assert all(r.counts.blocks > 0 for r in rows)


@needs_triton
@pytest.mark.parametrize("op", cases.FILES)
def test_one_call_of_each_kernel_and_dtype(op) -> None:
    check(coverage.triton_rows(op, 90, one=True))


@needs_triton
def test_a_large_search_runs_on_wgmma() -> None:
    found = [c for c in cases.cases("vector_quantize", 90) if "many rows" in c.label]
    for dtype in ("bf16", "fp32"):
        case = next(c for c in found if c.dtype == dtype)
        (row,) = coverage.triton_rows("vector_quantize", 90, only=[case])
        check([row])
        assert row.counts.executed("wgmma") > 0


def test_kernels_of_nvcc() -> None:
    some = native(90)
    short = [
        case
        for dtype in (*native_cases.HALF, native_cases.torch.float32)
        for case in (
            native_cases.attention(
                some, native_cases.Attention(72, 5, causal=True, aligned=False), dtype
            ),
            native_cases.nearest(some, (70, 65, 33), dtype),
            native_cases.sums(some, (200, 5, 3), dtype),
        )
    ]
    check(coverage.native_rows(some, only=short))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, 80])
@pytest.mark.parametrize("op", cases.FILES)
def test_every_configuration(op, arch) -> None:
    check(coverage.triton_rows(op, arch))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, 80])
def test_every_kernel_of_nvcc(arch) -> None:
    check(coverage.native_rows(native(arch)))


def test_what_is_not_run_is_wrong() -> None:
    """A row of configurations that no launch was of must not pass unseen."""
    pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")
    everything = cases.missed("adaln", 90, [])
    assert everything and len(everything) == len(set(everything))


@needs_triton
def test_sums_of_several_locations_do_not_depend_on_which_warp_is_first(monkeypatch) -> None:
    """Tiles smaller than a block: lanes of several warps hold the same sum, one of them stores it."""
    from colaworld.kernels import st_attention as kernels
    from ptx.triton_driver import on_ptx

    monkeypatch.setattr(kernels, "PROGRAMS", 1)
    B, T, S, H, D = 1, 3, 4, 1, 16
    qkv, grad = cases.draw(B, T, S, 3, H, D), cases.draw(B, T, S, H, D, seed=1)
    weights = [1 + 0.3 * cases.draw(D, seed=s) for s in (2, 3)]
    found = []
    for apart in (False, True):
        with on_ptx(90, apart=apart) as session:
            found.append(
                kernels.temporal_attention_backward(
                    grad, qkv, *weights, None, None, causal=False, eps=1e-5, scale=0.4
                )
            )
        assert not session.reports, str(session.reports)
    for together, one_after_the_other in zip(*found, strict=True):
        assert cases.torch.equal(together, one_after_the_other)


@needs_triton
def test_lanes_that_hold_the_same_sum_agree_to_the_last_bit() -> None:
    """Gradients of the weights; |e|^2 / 2, where d leaves one channel to a lane. Else which copy of a
    sum is kept would be the hardware's choice, and equal entries could have different scores.
    """
    from colaworld.kernels import st_attention, vector_quantize
    from ptx.triton_driver import on_ptx

    with on_ptx(90) as session:
        for d in (17, 24, 33):
            z, codebook = cases.draw(40, d), cases.draw(70, d, seed=1)
            codes, indices = vector_quantize.nearest(z, codebook)
            assert cases.torch.equal(codes, codebook[indices])
        B, T, S, H, D = 1, 5, 2, 1, 72
        qkv, grad = (
            cases.draw(B, T, S, *n, H, D, dtype=cases.torch.bfloat16, seed=1) for n in ((3,), ())
        )
        weights = [1 + 0.3 * cases.draw(D, seed=s) for s in (2, 3)]
        st_attention.temporal_attention_backward(
            grad, qkv, *weights, None, None, causal=False, eps=1e-5, scale=0.1
        )
    assert not session.reports.remarks, session.reports.remarks


@needs_triton
def test_memory_of_torch_that_nobody_has_written() -> None:
    """An empty tensor that a kernel reads; not one that torch has filled, or a kernel."""
    from colaworld.kernels import vector_quantize as kernels
    from ptx.triton_driver import on_ptx

    codebook = cases.draw(7, 8)

    def said(rows) -> str:
        with on_ptx(90) as session:
            kernels.nearest(rows(), codebook)
        return str(session.reports)

    empty = cases.torch.empty
    assert "a read of Z that nobody has written" in said(lambda: empty(5, 8))
    assert said(lambda: empty(5, 8).fill_(1.0)) == ""
    assert said(lambda: cases.torch.zeros(5, 8)) == ""
    assert said(lambda: empty(2, 5, 8).zero_()[1]) == ""
    assert said(lambda: kernels.nearest(cases.draw(5, 8), codebook)[0]) == ""


@needs_triton
def test_a_call_that_faults_is_wrong() -> None:
    def faults():
        raise coverage.Fault("misaligned")

    case = cases.Case("adaln", "made up", "bf16", faults)
    (row,) = coverage.triton_rows("adaln", 90, only=[case])
    assert row.wrong == ["made up: misaligned"] and row.error == float("inf")


def test_a_row_as_text_and_as_json() -> None:
    row = coverage.Row("adaln.sum_kernel", "triton", "bf16", 90, calls=2, error=0.0021)
    row.counts.blocks = 7
    row.counts.instructions["mul.f32"] = 40
    assert "| adaln.sum_kernel | triton | bf16 | 90 | 2 | 7 | 40 |" in coverage.markdown([row])
    read = json.loads(json.dumps(coverage.plain(row)))
    assert read["counts"]["instructions"] == {"mul.f32": 40} and read["calls"] == 2
