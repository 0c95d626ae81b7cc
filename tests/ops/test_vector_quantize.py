"""vector_quantize: every implementation against distances in float64, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.fx.experimental.proxy_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from colaworld import ops
from colaworld.ops import _dispatch, _native, reference

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))
)
needs_cpu = CPU.marks[0]
each = pytest.mark.parametrize("name", ["reference", CPU])


def draw(N, K, d, *, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, d, generator=g).to(dtype), torch.randn(K, d, generator=g).to(dtype)


def wrong_codes(z, codebook, indices) -> int:
    """Rows whose code is further away than the nearest one by more than rounding, in float64.

    The bound is that of a sum of d + 1 products in float32: (d + 1) * 2**-23 times their size.
    """
    z, codebook = z.double(), codebook.double()
    distance = (z[:, None] - codebook[None]).square().sum(-1)  # [N, K]
    chosen = distance.gather(1, indices[:, None])[:, 0]
    size = z.square().sum(1) + codebook.square().sum(1).max()
    return int((chosen - distance.min(1).values > (z.shape[1] + 1) * 2.0**-23 * size).sum())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (63, 17, 5), (500, 100, 33), (97, 513, 8), (12, 16, 64)]
)
def test_finds_the_nearest(name, dtype, shape) -> None:
    z, codebook = draw(*shape, dtype=dtype)
    with ops.force(name):
        codes, indices = ops.vector_quantize(z, codebook)
    assert codes.dtype == dtype and codes.shape == z.shape
    assert indices.dtype == torch.int64 and indices.shape == z.shape[:1]
    assert torch.equal(codes, codebook[indices])
    assert wrong_codes(z, codebook, indices) == 0


@each
def test_float64_is_exact(name) -> None:
    z, codebook = draw(300, 70, 9, dtype=torch.float64)
    with ops.force(name):
        _, indices = ops.vector_quantize(z, codebook)
    assert torch.equal(indices, (z[:, None] - codebook).square().sum(-1).argmin(1))


@each
@settings(max_examples=60, deadline=None)
@given(N=st.integers(0, 70), K=st.integers(1, 70), d=st.integers(1, 40), seed=st.integers(0, 99))
def test_any_size(name, N, K, d, seed) -> None:
    z, codebook = draw(N, K, d, seed=seed)
    with ops.force(name):
        codes, indices = ops.vector_quantize(z, codebook)
    assert codes.shape == (N, d) and torch.equal(codes, codebook[indices])
    if N:
        assert wrong_codes(z, codebook, indices) == 0


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_lowest_index_wins_a_tie(name, dtype) -> None:
    # Entries 2 and 3 of an orthonormal book, repeated far apart: every lane and block meets a tie.
    book = torch.eye(5).repeat(11, 1).to(dtype)  # entry k equals entry k % 5
    z = torch.eye(5).repeat(9, 1).to(dtype)
    with ops.force(name):
        _, indices = ops.vector_quantize(z, book)
    assert torch.equal(indices, torch.arange(45) % 5)
    with ops.force(name):
        _, halfway = ops.vector_quantize((z[2:3] + z[3:4]) / 2, book)
    assert halfway.tolist() == [2]


@each
@pytest.mark.parametrize("K", [1, 7, 40])
def test_rows_that_are_not_numbers(name, K) -> None:
    z, codebook = draw(20, K, 6)
    clean = z.clone()
    z[3] = torch.nan
    z[11, 2] = torch.nan
    with ops.force(name):
        codes, indices = ops.vector_quantize(z, codebook)
        _, expected = ops.vector_quantize(clean, codebook)
    expected[3] = expected[11] = 0
    assert torch.equal(indices, expected)
    assert torch.equal(codes, codebook[expected])


@each
def test_an_entry_that_is_not_a_number_never_wins(name) -> None:
    z, codebook = draw(50, 40, 4)
    for k in (0, 5, 16, 39):
        codebook[k] = torch.nan
    with ops.force(name):
        _, indices = ops.vector_quantize(z, codebook)
    sound = [k for k in range(40) if k not in (0, 5, 16, 39)]
    assert set(indices.tolist()) <= set(sound)
    expected = torch.tensor(sound)[torch.cdist(z, codebook[sound]).argmin(1)]
    assert torch.equal(indices, expected)


@each
def test_strided_and_expanded_inputs(name) -> None:
    z, codebook = draw(30, 20, 10)
    layouts = [
        (z.t().contiguous().t(), codebook.t().contiguous().t()),
        (torch.cat([z, z], 1)[:, :10], torch.cat([codebook, codebook], 0)[::1][:20]),
        (z.repeat_interleave(2, 1)[:, ::2], codebook.repeat_interleave(3, 0)[::3]),
    ]
    with ops.force(name):
        expected = ops.vector_quantize(z, codebook)
        for layout in layouts:
            got = ops.vector_quantize(*layout)
            assert torch.equal(got[1], expected[1]) and torch.equal(got[0], expected[0])
        one = ops.vector_quantize(z[:1].expand(8, 10), codebook[:1].expand(5, 10))
    if name == "cpu":  # the reference's matrix product may round equal columns differently
        assert one[1].tolist() == [0] * 8
    assert torch.equal(one[0], codebook[:1].expand(8, 10))


@each
def test_a_row_does_not_depend_on_its_neighbours(name) -> None:
    z, codebook = draw(213, 77, 12)
    with ops.force(name):
        codes, indices = ops.vector_quantize(z, codebook)
        again = ops.vector_quantize(z, codebook)
        one_by_one = torch.cat([ops.vector_quantize(row[None], codebook)[1] for row in z[:40]])
    assert torch.equal(indices, again[1]) and torch.equal(codes, again[0])
    assert torch.equal(one_by_one, indices[:40])


@each
def test_gradient_is_the_segmented_sum(name) -> None:
    z = torch.tensor([[0.1], [0.9], [1.2], [5.0]], requires_grad=True)
    codebook = torch.tensor([[0.0], [1.0], [9.0]], requires_grad=True)
    with ops.force(name):
        codes, indices = ops.vector_quantize(z, codebook)
    assert indices.tolist() == [0, 1, 1, 1]  # 5 is as far from 1 as from 9: the lower index
    assert not indices.requires_grad
    codes.backward(torch.tensor([[1.0], [10.0], [100.0], [1000.0]]))
    assert codebook.grad.flatten().tolist() == [1.0, 1110.0, 0.0]
    assert z.grad is None or not z.grad.any()


@each
def test_gradcheck(name) -> None:
    z, codebook = draw(7, 4, 3, dtype=torch.float64)
    with ops.force(name):
        assert torch.autograd.gradcheck(
            lambda c: ops.vector_quantize(z, c)[0].square(), (codebook.requires_grad_(),)
        )
        assert torch.autograd.gradgradcheck(
            lambda c: ops.vector_quantize(z, c)[0].square(), (codebook,)
        )


@needs_cpu
def test_bfloat16_gradients_are_summed_wide() -> None:
    # 1000 rows of one entry: in bfloat16 a running sum of ones stops at 256.
    z, codebook = torch.zeros(1000, 1).bfloat16(), torch.zeros(1, 1).bfloat16().requires_grad_()
    with ops.force("cpu"):
        ops.vector_quantize(z, codebook)[0].sum().backward()
    assert codebook.grad.item() == 1000


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codebook_gradient_against_float64(name, dtype) -> None:
    z, codebook = draw(2000, 6, 12, dtype=dtype)
    grad, _ = draw(2000, 1, 12, seed=1, dtype=dtype)
    codebook.requires_grad_()
    with ops.force(name):
        codes, indices = ops.vector_quantize(z, codebook)
        codes.backward(grad)
    expected = torch.zeros(6, 12, dtype=torch.float64).index_add(0, indices, grad.double())
    plain = codebook.detach().clone().requires_grad_()
    torch.nn.functional.embedding(indices, plain).backward(grad)
    off = [
        (made.double() - expected).norm() / expected.norm() for made in (codebook.grad, plain.grad)
    ]
    assert codebook.grad.dtype == dtype and codebook.grad.is_contiguous()
    assert off[0] <= max(2 * off[1], 1e-6)


@needs_cpu
def test_nothing_is_recorded_that_needs_no_gradient() -> None:
    z, codebook = draw(5, 3, 2)
    with ops.force("cpu"):
        assert not ops.vector_quantize(z.requires_grad_(), codebook)[0].requires_grad
        codebook.requires_grad_()
        with torch.no_grad():
            assert not ops.vector_quantize(z, codebook)[0].requires_grad
        codes, indices = ops.vector_quantize(z, codebook)
        assert codes.requires_grad and not indices.requires_grad
        with torch.inference_mode():
            assert ops.vector_quantize(z, codebook)[0].is_inference()


@needs_cpu
def test_the_eager_way_is_seen_by_modes() -> None:
    """Fake tensors, and a graph traced without torch.compile."""
    z, codebook = draw(9, 4, 3, dtype=torch.float64)
    with ops.force("cpu"):
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(x) for x in (z, codebook)]
            codes, indices = ops.vector_quantize(*fake)
            assert codes.shape == (9, 3) and indices.dtype == torch.int64

        def loss(codebook):
            return ops.vector_quantize(z, codebook)[0].square().sum()

        graph = torch.fx.experimental.proxy_tensor.make_fx(loss)(codebook)
        assert any("vector_quantize" in str(node.target) for node in graph.graph.nodes)


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_bits_over_runs_and_threads(dtype) -> None:
    z, codebook = draw(3000, 40, 24, dtype=dtype)
    before, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            leaf = codebook.clone().requires_grad_()
            with ops.force("cpu"):
                codes, indices = ops.vector_quantize(z, leaf)
                (codes * z).sum().backward()
            made.append((codes.detach(), indices, leaf.grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


@each
def test_nothing_is_left_unwritten(name) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # new memory holds NaN, or the largest integer
    try:
        with ops.force(name):
            for N, K, d in [(0, 3, 2), (13, 5, 3), (100, 33, 17)]:
                codes, indices = ops.vector_quantize(*draw(N, K, d))
                assert codes.isfinite().all() and (indices < K).all() and (indices >= 0).all()
    finally:
        torch.use_deterministic_algorithms(before)


@each
def test_checkpointing_and_autocast_change_nothing(name) -> None:
    z, codebook = draw(50, 6, 4)

    def loss(codebook):
        return (ops.vector_quantize(z, codebook)[0] * z).sum()

    grads = []
    with ops.force(name):
        for run in (loss, lambda c: checkpoint(loss, c, use_reentrant=False)):
            leaf = codebook.clone().requires_grad_()
            run(leaf).backward()
            grads.append(leaf.grad)
        expected = ops.vector_quantize(z, codebook)
        with torch.autocast("cpu", torch.bfloat16):
            codes, indices = ops.vector_quantize(z, codebook)
    assert torch.equal(*grads)
    assert codes.dtype == torch.float32 and torch.equal(codes, codebook[indices])
    if name == "cpu":  # the reference's matrix product is autocast's to round
        assert torch.equal(indices, expected[1])


@needs_cpu
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 2), (13, 5, 4)])
def test_opcheck(shape, requires_grad) -> None:
    z, codebook = draw(*shape)
    codebook.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.colaworld.vector_quantize.default, (z, codebook))


@each
def test_compiles_as_one_graph_with_any_number_of_rows(name) -> None:
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    def call(z, codebook):
        codes, indices = ops.vector_quantize(z, codebook)
        return (z + (codes - z).detach() + codes).square().sum(), indices

    with ops.force(name):
        torch.compile(call, fullgraph=True, dynamic=True, backend=count)(*draw(10, 6, 4))
        assert len(graphs) == 1
        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        for N, K in [(10, 6), (17, 9)]:
            z, codebook = draw(N, K, 4)
            grads = []
            for function in (call, compiled):
                c = codebook.clone().requires_grad_()
                loss, indices = function(z, c)
                loss.backward()
                grads.append((loss.detach(), indices, c.grad))
            torch.testing.assert_close(grads[0], grads[1])


def test_the_reference_bounds_its_memory(monkeypatch) -> None:
    z, codebook = draw(100, 30, 5)
    whole = reference.vector_quantize(z, codebook)[1]
    monkeypatch.setattr(reference, "SCORE_BLOCK", 7 * 30)
    seen = []
    real = torch.addmm

    def addmm(*args, **kwargs):
        out = real(*args, **kwargs)
        seen.append(out.numel())
        return out

    monkeypatch.setattr(torch, "addmm", addmm)
    assert torch.equal(reference.vector_quantize(z, codebook)[1], whole)
    assert max(seen) <= 7 * 30 and len(seen) == 15


def test_errors_name_the_argument() -> None:
    z, codebook = draw(4, 3, 2)
    for arguments, message in [
        ((z[0], codebook), r"z: expected \[N, d\], got \[2\]"),
        ((z.long(), codebook), "z: expected a floating-point tensor, got torch.int64"),
        ((z, codebook[:, :1]), r"codebook: expected \[K, 2\], got \[3, 1\]"),
        ((z, codebook[:0]), r"codebook: expected K >= 1 and d >= 1, got \[0, 2\]"),
        ((z[:, :0], codebook[:, :0]), r"codebook: expected K >= 1 and d >= 1, got \[3, 0\]"),
        ((z, codebook.double()), "codebook: expected torch.float32 as z is, got torch.float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.vector_quantize(*arguments)


@needs_cpu
def test_the_compiled_op_checks_for_itself() -> None:
    op = torch.ops.colaworld.vector_quantize
    z, codebook = draw(4, 3, 2)
    for arguments, message in [
        ((z[0], codebook), r"vector_quantize: z: expected \[N, d\], got \[2\]"),
        ((z, codebook[:, :1]), r"vector_quantize: codebook: expected \[K, 2\], got \[3, 1\]"),
        ((z, codebook[:0]), r"vector_quantize: codebook: expected K >= 1"),
        ((z, codebook.double()), r"vector_quantize: codebook: expected Float as z is, got Double"),
        ((z.half(), codebook.half()), r"vector_quantize: z: expected float32, .* got Half"),
    ]:
        with pytest.raises(ValueError, match=message):
            op(*arguments)


# What is faster is a prediction; that the rule says so is what is tested.
@pytest.mark.parametrize(
    ("sizes", "first"),
    [
        ((4096, 32, 32), None),
        ((4096, 1024, 32), None),
        ((65536, 1024, 32), "triton"),
        ((1_000_000, 8192, 64), "triton"),
        ((1_000_000, 8192, 8), "triton"),
        ((1_000_000, 8, 8), None),  # as long as it takes to read the rows
        ((0, 8192, 64), None),
    ],
)
def test_sizes_choose_between_the_kernels_of_a_gpu(sizes, first) -> None:
    (N, K, d), rule = sizes, _dispatch._PREFERS["vector_quantize"]
    for dtype in (torch.float32, torch.bfloat16):
        facts = _dispatch.CallInfo("cuda", dtype, (N, d), entries=K)
        found = rule(facts)
        assert (None if found is None else found.name) == first
        assert rule(replace(facts, device="cpu")) is None
        assert rule(replace(facts, entries=None)) is None


def random_call(draw):
    """For test_any_call.py."""
    N, K, d = draw.size(40), draw.size(40), draw.size(20)
    z, codebook = draw.tensor(N, d), draw.tensor(K, d)

    def call():
        codes, indices = ops.vector_quantize(z, codebook)
        assert torch.equal(codes, codebook[indices])
        # Ties may be named differently: compare distances, not indices.
        return ((z.double() - codes.double()).square().sum(1),)

    return call
