"""Checks of vector quantisation in Triton, run by test_vector_quantize.py: see conftest.py.

The search and the sums go through the public functions with the triton implementation forced; what
they do not offer (each way to sum) is called in the kernels' own file.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from colaworld import ops
from colaworld.kernels import vector_quantize as kernels
from colaworld.ops import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float64 if INTERPRETED else torch.bfloat16, torch.float16)
needs_float64 = pytest.mark.skipif(
    not INTERPRETED, reason="the kernels take float64 in numpy alone"
)
only_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
each_way = pytest.mark.parametrize("way", ["select", "sort"])


def draw(N, K, d, *, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=g).to(DEVICE, dtype) for n in (N, K))


def members(N, K, *, seed=0):
    return torch.randint(K, (N,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def wrong_codes(z, codebook, indices, *, bits=23) -> int:
    """Rows whose code is further away than the nearest one by more than rounding, in float64.

    The bound is that of a sum of d + 1 products of numbers with so many bits.
    """
    z, codebook = z.double(), codebook.double()
    distance = (z[:, None] - codebook[None]).square().sum(-1)  # [N, K]
    chosen = distance.gather(1, indices[:, None])[:, 0]
    size = z.square().sum(1) + codebook.square().sum(1).max()
    return int((chosen - distance.min(1).values > (z.shape[1] + 1) * 2.0**-bits * size).sum())


@pytest.fixture
def way_to_sum(monkeypatch, request):
    """Small pieces and parts, so that a few rows already make several of them."""
    monkeypatch.setattr(kernels, "PIECE_ROWS", 8)
    monkeypatch.setattr(kernels, "PIECE_TILE", 32)
    monkeypatch.setattr(kernels, "SELECT_ROWS", 20)
    monkeypatch.setattr(kernels, "SUM_TILE", 64)

    def choose(way: str) -> None:
        monkeypatch.setattr(kernels, "SELECT_TABLE", 0 if way == "sort" else 1 << 13)

    return choose


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (63, 17, 5), (37, 150, 33), (9, 20, 70)])
def test_finds_the_nearest(dtype, shape) -> None:
    z, codebook = draw(*shape, dtype=dtype)
    codes, indices = kernels.nearest(z, codebook)
    assert codes.dtype == dtype and codes.shape == z.shape
    assert indices.dtype == torch.int64 and indices.shape == z.shape[:1]
    assert torch.equal(codes, codebook[indices])
    # Three tf32 products keep 21 bits and more of float32's 24.
    assert wrong_codes(z, codebook, indices, bits=23 if INTERPRETED else 20) == 0


def test_a_large_tile_finds_the_same(monkeypatch) -> None:
    z, codebook = draw(140, 70, 3)
    _, few = kernels.nearest(z, codebook)
    monkeypatch.setattr(kernels, "FEW_ROWS", 0)
    _, many = kernels.nearest(z, codebook)
    assert torch.equal(few, many)


# An interpreted program takes milliseconds, and the sums take one for each entry.
@settings(max_examples=8, deadline=None, derandomize=True)
@given(N=st.integers(0, 40), K=st.integers(1, 20), d=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_size(N, K, d, seed) -> None:
    z, codebook = draw(N, K, d, seed=seed)
    with ops.force("triton"):
        codes, indices = ops.vector_quantize(z, codebook)
        packed = ops.code_statistics(z, indices, K)
    assert codes.shape == (N, d) and torch.equal(codes, codebook[indices])
    if N:
        assert wrong_codes(z, codebook, indices, bits=20) == 0
    expected = reference.code_statistics(z.double(), indices, K, True)
    torch.testing.assert_close(packed.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_lowest_index_wins_a_tie() -> None:
    # Orthonormal entries, repeated far apart: ties within a block and between blocks of 64.
    book = torch.eye(5, device=DEVICE).repeat(31, 1)
    z = torch.eye(5, device=DEVICE).repeat(7, 1)
    assert torch.equal(kernels.nearest(z, book)[1].cpu(), torch.arange(35) % 5)
    halfway = kernels.nearest((z[2:3] + z[3:4]) / 2, book)[1]
    assert halfway.tolist() == [2]


@pytest.mark.parametrize("K", [1, 7, 70])
def test_what_is_not_a_number(K) -> None:
    z, codebook = draw(20, K, 6)
    _, expected = kernels.nearest(z, codebook)
    z[3] = torch.nan
    z[11, 2] = torch.nan
    codes, indices = kernels.nearest(z, codebook)
    expected[3] = expected[11] = 0
    assert torch.equal(indices, expected)  # the other rows as before
    assert torch.equal(codes, codebook[expected])


def test_an_entry_that_is_not_a_number_never_wins() -> None:
    z, codebook = draw(30, 70, 4)
    bad = [0, 5, 16, 64, 69]
    sound = torch.tensor([k for k in range(70) if k not in bad], device=DEVICE)
    expected = sound[torch.cdist(z.double(), codebook[sound].double()).argmin(1)]
    codebook[bad] = torch.nan
    assert torch.equal(kernels.nearest(z, codebook)[1], expected)
    codebook[bad] = torch.inf
    assert torch.equal(kernels.nearest(z, codebook)[1], expected)


@pytest.mark.slow
def test_strided_and_expanded_inputs() -> None:
    z, codebook = draw(30, 20, 10)
    layouts = [
        (z.t().contiguous().t(), codebook.t().contiguous().t()),
        (torch.cat([z, z], 1)[:, :10], torch.cat([codebook, codebook], 1)[:, 10:]),
        (z.repeat_interleave(2, 1)[:, ::2], codebook.repeat_interleave(3, 0)[::3]),
    ]
    with ops.force("triton"):
        codes, indices = ops.vector_quantize(z, codebook)
        packed = ops.code_statistics(z, indices, 20)
        for layout in layouts:
            got = ops.vector_quantize(*layout)
            assert torch.equal(got[1], indices) and torch.equal(got[0], codes)
            assert torch.equal(ops.code_statistics(layout[0], indices, 20), packed)
        one = ops.vector_quantize(z[:1].expand(8, 10), codebook[:1].expand(5, 10))
        assert one[1].tolist() == [0] * 8
        for same in (z[:1].expand(30, 10), z[:, :1].expand(30, 10), z[:1, :1].expand(30, 10)):
            got = ops.code_statistics(same, indices, 20)
            # Triton lays other strides out otherwise, and a sum in another order rounds elsewhere.
            wanted = ops.code_statistics(same.contiguous(), indices, 20)
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@each_way
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(50, 5, 5), (33, 12, 3), (60, 1, 2), (1, 3, 1)])
def test_sums_and_counts(way, dtype, shape, way_to_sum) -> None:
    way_to_sum(way)
    N, K, d = shape
    z, _ = draw(N, K, d, dtype=dtype)
    indices = members(N, K)
    indices[: N // 2] = K - 1  # one heavy entry, of several pieces
    packed = kernels.sums(z, indices, K, counts=True)
    assert packed.dtype == reference.compute_dtype(dtype) and packed.shape == (K, d + 1)
    exact = reference.code_statistics(z.double(), indices, K, True)
    assert torch.equal(packed[:, d].double(), exact[:, d])
    floor = 1e-15 if dtype == torch.float64 else 1e-6
    assert (packed.double() - exact).norm() <= floor * exact.norm()
    assert torch.equal(kernels.sums(z, indices, K, counts=False), packed[:, :d])
    assert torch.equal(kernels.sums(z, indices, K, counts=True), packed)


@each_way
def test_a_row_reaches_its_own_entry_alone(way, way_to_sum) -> None:
    way_to_sum(way)
    z, _ = draw(50, 6, 3)
    indices = members(50, 6)
    clean = kernels.sums(z, indices, 6, counts=True)
    z[7, 1] = torch.nan
    z[20] = torch.inf
    indices[7], indices[20] = indices[8], indices[8]
    changed = kernels.sums(z, indices, 6, counts=True)
    kept = torch.ones(6, dtype=torch.bool)
    before = members(50, 6)
    kept[[int(before[7]), int(before[20]), int(indices[8])]] = False
    assert kept.any() and torch.equal(changed[kept], clean[kept])
    assert changed[indices[8], 1].isnan() and changed[:, 3].isfinite().all()


@each_way
def test_an_index_of_no_entry_is_left_out(way, way_to_sum) -> None:
    way_to_sum(way)
    z, _ = draw(40, 5, 3)
    indices = members(40, 5)
    inside = torch.ones(40, dtype=torch.bool)
    inside[[0, 3, 11, 39]] = False
    expected = kernels.sums(z[inside], indices[inside], 5, counts=True)
    indices[0], indices[3], indices[11], indices[39] = -1, 5, -(1 << 40), 1 << 40
    got = kernels.sums(z, indices, 5, counts=True)
    torch.testing.assert_close(got, expected)
    assert torch.equal(got[:, 3], expected[:, 3])


@each_way
def test_nothing_is_left_unwritten(way, way_to_sum) -> None:
    way_to_sum(way)
    torch.use_deterministic_algorithms(True)  # new memory holds NaN, or the largest integer
    try:
        for N, K, d in [(0, 3, 2), (13, 5, 3), (20, 30, 17)]:
            z, codebook = draw(N, K, d)
            codes, indices = kernels.nearest(z, codebook)
            assert codes.isfinite().all() and (indices < K).all() and (indices >= 0).all()
            packed = kernels.sums(z, indices, K, counts=True)
            assert packed.isfinite().all() and packed[:, d].sum() == N
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_update(alone, decay, dtype, monkeypatch) -> None:
    """Of tables in their own dtype and with gaps, from float32 sums."""
    monkeypatch.setattr(kernels, "UPDATE_ALONE", 1 << 15 if alone else 0)
    monkeypatch.setattr(kernels, "UPDATE_TILE", 32)
    z, codebook = draw(60, 21, 5)
    count = torch.rand(21, device=DEVICE)
    state = [t.to(dtype) for t in (codebook, count, codebook * count[:, None])]
    packed = reference.code_statistics(z, members(60, 21), 21, True)
    gaps = [torch.empty((*t.shape, 2), dtype=dtype, device=DEVICE)[..., 0] for t in state]
    results = {}
    for name, wide in (
        ("triton", None),
        ("gaps", None),
        ("reference", None),
        ("exact", torch.float64),
    ):
        results[name] = [t.clone() if wide is None else t.to(wide) for t in state]
        if name == "gaps":
            results[name] = [g.copy_(t) for g, t in zip(gaps, state, strict=True)]
        with ops.force("triton" if name in ("triton", "gaps") else "reference"):
            given = packed if wide is None else packed.to(wide)
            ops.update_codebook(*results[name], given, decay=decay)
    assert all(torch.equal(a, b) for a, b in zip(results["triton"], results["gaps"], strict=True))
    for which, ours, plain, exact in zip(
        ("codebook", "count", "total"),
        *(results[n] for n in ("triton", "reference", "exact")),
        strict=True,
    ):
        errors = [((t.double() - exact).norm() / exact.norm()).item() for t in (ours, plain)]
        floor = 4 * torch.finfo(dtype).eps / 2
        assert ours.dtype == dtype and errors[0] <= max(2 * errors[1], floor), (which, errors)


def test_an_update_is_a_change_that_autograd_knows_of() -> None:
    """What was saved for a backward pass and has changed since is an error there, not a wrong number."""
    z, codebook = draw(9, 3, 2)
    weight = torch.ones(3, 2, device=DEVICE, requires_grad=True)
    out = weight * codebook
    packed = reference.code_statistics(z, members(9, 3), 3, True)
    with ops.force("triton"):
        ops.update_codebook(
            codebook, torch.ones(3, device=DEVICE), codebook.clone(), packed, decay=0.5
        )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_opcheck_of_the_update() -> None:
    z, codebook = draw(9, 3, 2)
    packed = reference.code_statistics(z, members(9, 3), 3, True)
    arguments = (codebook, torch.ones(3, device=DEVICE), codebook.clone(), packed, 0.9, 1e-5)
    torch.library.opcheck(torch.ops.colaworld.update_codebook_triton.default, arguments)


def test_gradient_is_the_segmented_sum() -> None:
    z = torch.tensor([[0.1], [0.9], [1.2], [5.0]], device=DEVICE, requires_grad=True)
    codebook = torch.tensor([[0.0], [1.0], [9.0]], device=DEVICE, requires_grad=True)
    with ops.force("triton"):
        codes, indices = ops.vector_quantize(z, codebook)
        assert indices.tolist() == [0, 1, 1, 1]  # 5 is as far from 1 as from 9: the lower index
        assert not indices.requires_grad
        codes.backward(torch.tensor([[1.0], [10.0], [100.0], [1000.0]], device=DEVICE))
    assert codebook.grad.flatten().tolist() == [1.0, 1110.0, 0.0]
    assert z.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_against_float64(dtype) -> None:
    z, codebook = draw(90, 6, 5, dtype=dtype)
    grad = draw(90, 1, 5, seed=1, dtype=dtype)[0]
    codebook.requires_grad_()
    with ops.force("triton"):
        codes, indices = ops.vector_quantize(z, codebook)
        codes.backward(grad)
        leaf = z.clone().requires_grad_()
        packed = ops.code_statistics(leaf, indices, 6)
        weight = torch.randn_like(packed)
        (of_rows,) = torch.autograd.grad(packed, leaf, weight)
    expected = torch.zeros(6, 5, dtype=torch.float64, device=DEVICE)
    expected = expected.index_add(0, indices, grad.double())
    plain = codebook.detach().clone().requires_grad_()
    torch.nn.functional.embedding(indices, plain).backward(grad)
    off = [(g.double() - expected).norm() / expected.norm() for g in (codebook.grad, plain.grad)]
    assert codebook.grad.dtype == dtype and off[0] <= max(2 * off[1], 1e-15)
    assert torch.equal(of_rows, weight[indices, :5].to(dtype))


@pytest.mark.slow
@needs_float64
def test_gradcheck() -> None:
    z, codebook = draw(7, 4, 3, dtype=torch.float64)
    indices = members(7, 4)
    with ops.force("triton"):
        call = lambda c: ops.vector_quantize(z, c)[0].square()  # noqa: E731
        assert torch.autograd.gradcheck(call, (codebook.requires_grad_(),))
        assert torch.autograd.gradgradcheck(call, (codebook,))
        assert torch.autograd.gradcheck(
            lambda z: ops.code_statistics(z, indices, 4)[:, :3], (z.requires_grad_(),)
        )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(0, 3, 2), (13, 5, 4)])
def test_opcheck(shape) -> None:
    z, codebook = draw(*shape)
    indices = members(shape[0], shape[1])
    codebook.requires_grad_()
    torch.library.opcheck(torch.ops.colaworld.vector_quantize_triton.default, (z, codebook))
    op = torch.ops.colaworld.code_statistics_triton.default
    torch.library.opcheck(op, (z.requires_grad_(), indices, shape[1], True))
    torch.library.opcheck(op, (z.detach(), indices, shape[1], False))


def test_checkpointing_and_autocast_change_nothing() -> None:
    z, codebook = draw(30, 6, 4)

    def loss(codebook):
        return (ops.vector_quantize(z, codebook)[0] * z).sum()

    grads = []
    with ops.force("triton"):
        for run in (loss, lambda c: checkpoint(loss, c, use_reentrant=False)):
            leaf = codebook.clone().requires_grad_()
            run(leaf).backward()
            grads.append(leaf.grad)
        expected = ops.vector_quantize(z, codebook)
        with torch.autocast(DEVICE, torch.bfloat16):
            got = ops.vector_quantize(z, codebook)
    assert torch.equal(*grads)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    def call(z, codebook):
        codes, indices = ops.vector_quantize(z, codebook)
        packed = ops.code_statistics(z, indices, codebook.shape[0])
        return (z + (codes - z).detach() + codes).square().sum(), packed

    with ops.force("triton"):
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        for N, K in [(10, 6), (17, 9)]:
            z, codebook = draw(N, K, 4)
            results = []
            for function in (call, compiled):
                leaf = codebook.clone().requires_grad_()
                loss, packed = function(z, leaf)
                loss.backward()
                results.append((loss.detach(), packed, leaf.grad))
            torch.testing.assert_close(results[0], results[1])


def test_errors_of_the_ops_themselves() -> None:
    z, codebook = draw(4, 3, 2)
    with pytest.raises(ValueError, match=r"vector_quantize_triton: expected z \[N, d\]"):
        torch.ops.colaworld.vector_quantize_triton(z, codebook[:, :1])
    with pytest.raises(ValueError, match=r"codebook: expected torch\.float32 as z is"):
        torch.ops.colaworld.vector_quantize_triton(z, codebook.half())
    with pytest.raises(ValueError, match=r"code_statistics_triton: expected z \[N, d\]"):
        torch.ops.colaworld.code_statistics_triton(z, members(3, 2), 3, True)
    wide = {v.name: v.reason for v in ops.explain("code_statistics", z[:, :1].expand(4, 4097))}
    assert wide["triton"] == "d is 4097, it takes up to 4096 channels"


@only_gpu
def test_a_million_rows_in_bounded_memory() -> None:
    z = torch.randn(1 << 20, 64, device=DEVICE)
    codebook = torch.randn(8192, 64, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with ops.force("triton"):
        _, indices = ops.vector_quantize(z, codebook)
        packed = ops.code_statistics(z, indices, 8192)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 1 << 30, peak  # an N x K matrix would be 34 GB
    assert wrong_codes(z[-64:], codebook, indices[-64:], bits=20) == 0
    assert packed[:, 64].sum() == 1 << 20
    expected = reference.code_statistics(z.double(), indices, 8192, True)
    assert (packed.double() - expected).norm() <= 1e-6 * expected.norm()


@only_gpu
def test_a_cuda_graph_replays_it() -> None:
    z, codebook = draw(5000, 32, 32)
    with ops.force("triton"):
        expected = ops.vector_quantize(z, codebook)
        sums = ops.code_statistics(z, expected[1], 32)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            codes, indices = ops.vector_quantize(z, codebook)
            packed = ops.code_statistics(z, indices, 32)
    graph.replay()
    assert torch.equal(codes, expected[0]) and torch.equal(indices, expected[1])
    assert torch.equal(packed, sums)
