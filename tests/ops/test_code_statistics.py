"""code_statistics: every implementation against sums in float64 and by hand."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
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
FLOOR = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-6}  # sums run in float32


def draw(N, K, d, *, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, d, generator=g).to(dtype), torch.randint(K, (N,), generator=g)


def in_float64(z, indices, K) -> torch.Tensor:
    chosen = torch.nn.functional.one_hot(indices, K).double()  # [N, K]
    return torch.cat([chosen.t() @ z.double(), chosen.sum(0)[:, None]], 1)


def error(out, expected) -> float:
    return float((out.double() - expected).norm() / expected.norm().clamp(min=1e-300))


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def poisoned_memory():
    """New memory holds NaN (the largest integer), so that what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@each
def test_by_hand(name) -> None:
    z = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    with ops.force(name):
        packed = ops.code_statistics(z, torch.tensor([2, 0, 2]), 4)
    assert packed.tolist() == [[2, 20, 1], [0, 0, 0], [5, 50, 2], [0, 0, 0]]


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (63, 17, 5), (500, 3, 33), (20000, 4, 16)])
def test_against_float64(name, dtype, shape) -> None:
    N, K, d = shape
    z, indices = draw(N, K, d, dtype=dtype)
    with ops.force(name):
        packed = ops.code_statistics(z, indices, K)
    assert packed.shape == (K, d + 1) and packed.is_contiguous()
    assert packed.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = in_float64(z, indices, K)
    plain = torch.zeros(K, d, dtype=packed.dtype).index_add(0, indices, z.to(packed.dtype))
    allowed = max(2 * error(plain, expected[:, :d]), FLOOR[dtype])
    assert error(packed[:, :d], expected[:, :d]) <= allowed
    assert torch.equal(packed[:, d].double(), expected[:, d])


@each
@settings(max_examples=40, deadline=None)
@given(N=st.integers(0, 70), K=st.integers(1, 20), d=st.integers(1, 40), seed=st.integers(0, 99))
def test_any_size(name, N, K, d, seed) -> None:
    z, indices = draw(N, K, d, seed=seed)
    with ops.force(name):
        packed = ops.code_statistics(z, indices, K)
    torch.testing.assert_close(
        packed.double(), in_float64(z, indices, K), rtol=1e-5, atol=1e-5, check_dtype=False
    )


@each
def test_strided_and_expanded_inputs(name) -> None:
    z, indices = draw(30, 7, 10)
    with ops.force(name):
        expected = ops.code_statistics(z, indices, 7)
        for layout in [
            (z.t().contiguous().t(), indices.repeat_interleave(2)[::2]),
            (torch.cat([z, z], 1)[:, :10], indices.flip(0).flip(0)),
        ]:
            assert torch.equal(ops.code_statistics(*layout, 7), expected)
        one = ops.code_statistics(z[:1].expand(8, 10), indices[:1].expand(8), 7)
    torch.testing.assert_close(one[indices[0], :10], 8 * z[0])
    assert one[:, 10].sum() == 8


@each
def test_a_row_that_is_not_a_number_stays_in_its_entry(name) -> None:
    z, indices = draw(200, 6, 5)
    indices[10] = 3
    z[10, 2] = torch.nan
    with ops.force(name):
        packed = ops.code_statistics(z, indices, 6)
    assert packed.isnan().nonzero().tolist() == [[3, 2]]


@each
def test_nothing_is_left_unwritten(name) -> None:
    with poisoned_memory(), ops.force(name):
        for N in (0, 5, 20000):
            z, indices = draw(N, 40, 16)
            indices.clamp_(max=30)
            packed = ops.code_statistics(z, indices, 40)
            assert packed.isfinite().all() and not packed[31:].any()


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_bits_over_runs_and_threads(dtype) -> None:
    z, indices = draw(60000, 5, 24, dtype=dtype)  # several parts
    with ops.force("cpu"):
        with threads(1):
            alone = ops.code_statistics(z, indices, 5)
        for count in (2, 3, 2):
            with threads(count):
                assert torch.equal(ops.code_statistics(z, indices, 5), alone)


@needs_cpu
def test_bfloat16_is_summed_wide() -> None:
    z, indices = torch.ones(3000, 2).bfloat16(), torch.zeros(3000, dtype=torch.int64)
    with ops.force("cpu"):
        assert ops.code_statistics(z, indices, 2).tolist() == [[3000.0] * 3, [0.0] * 3]


@each
def test_gradient_by_hand(name) -> None:
    z, indices = draw(4, 3, 2)
    indices = torch.tensor([1, 0, 1, 1])
    z.requires_grad_()
    with ops.force(name):
        ops.code_statistics(z, indices, 3).backward(torch.arange(9.0).view(3, 3))
    assert z.grad.tolist() == [[3.0, 4.0], [0.0, 1.0], [3.0, 4.0], [3.0, 4.0]]


@each
def test_gradcheck(name) -> None:
    z, indices = draw(7, 4, 3, dtype=torch.float64)
    z.requires_grad_()
    with ops.force(name):
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(lambda z: ops.code_statistics(z, indices, 4).square(), (z,))


@needs_cpu
@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 2), (13, 5, 4)])
def test_opcheck(shape, counts) -> None:
    N, K, d = shape
    z, indices = draw(N, K, d)
    for requires_grad in (False, True):
        arguments = (z.clone().requires_grad_(requires_grad), indices, K, counts)
        torch.library.opcheck(torch.ops.colaworld.code_statistics.default, arguments)


@each
def test_compiles_as_one_graph_with_any_size(name) -> None:
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    def call(z, indices, codebook):
        packed = ops.code_statistics(z, indices, codebook.shape[0])
        return (packed[:, :-1] - codebook).square().sum()

    with ops.force(name):
        torch.compile(call, fullgraph=True, dynamic=True, backend=count)(
            *draw(10, 6, 4), torch.ones(6, 4)
        )
        assert len(graphs) == 1
        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        for N, K in [(10, 6), (17, 9)]:
            z, indices = draw(N, K, 4)
            made = []
            for function in (call, compiled):
                leaf = z.clone().requires_grad_()
                loss = function(leaf, indices, torch.ones(K, 4))
                loss.backward()
                made.append((loss.detach(), leaf.grad))
            torch.testing.assert_close(made[0], made[1])


@each
def test_checkpointing_and_autocast_change_nothing(name) -> None:
    z, indices = draw(50, 6, 4)
    leaf = z.clone().requires_grad_()
    with ops.force(name):
        expected = ops.code_statistics(z, indices, 6)
        again = checkpoint(
            lambda z: ops.code_statistics(z, indices, 6).square(), leaf, use_reentrant=False
        )
        again.sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ops.code_statistics(z, indices, 6), expected)
    torch.testing.assert_close(leaf.grad, 2 * expected[indices, :4])


@each
def test_errors_name_the_argument(name) -> None:
    z, indices = draw(4, 3, 2)
    low, high = indices.clone(), indices.clone()
    low[2], high[1], high[3] = -1, 3, 9
    for arguments, message in [
        ((z[0], indices, 3), r"z: expected \[N, d\] with d >= 1, got \[2\]"),
        ((z[:, :0], indices, 3), r"z: expected \[N, d\] with d >= 1, got \[4, 0\]"),
        ((z.long(), indices, 3), "z: expected a floating-point tensor, got torch.int64"),
        ((z, indices[:3], 3), r"indices: expected \[4\], got \[3\]"),
        ((z, indices.int(), 3), "indices: expected torch.int64, got torch.int32"),
        ((z, indices, 0), "K: expected >= 1, got 0"),
        ((z, low, 3), r"indices: expected values in \[0, 3\), got -1 in row 2"),
        ((z, high, 3), r"indices: expected values in \[0, 3\), got 3 in row 1"),
    ]:
        with ops.force(name), pytest.raises(ValueError, match=message):
            ops.code_statistics(*arguments)


@needs_cpu
def test_the_compiled_op_checks_for_itself() -> None:
    op = torch.ops.colaworld.code_statistics
    z, indices = draw(4, 3, 2)
    wrong = indices.clone()
    wrong[2] = 2**40
    for arguments, message in [
        ((z[0], indices, 3, True), r"code_statistics: z: expected \[N, d\] with d >= 1, got \[2\]"),
        ((z, indices[:3], 3, True), r"code_statistics: indices: expected \[4\], got \[3\]"),
        ((z, indices.int(), 3, True), "code_statistics: indices: expected Long, got Int"),
        ((z, indices, 0, True), "code_statistics: K: expected >= 1, got 0"),
        ((z, wrong, 3, False), r"indices: expected values in \[0, 3\), got 1099511627776 in row 2"),
        ((z.half(), indices, 3, True), "code_statistics: z: expected float32, .* got Half"),
    ]:
        with pytest.raises(ValueError, match=message):
            op(*arguments)


def test_the_reference_is_the_definition() -> None:
    z, indices = draw(50, 6, 4, dtype=torch.float64)
    packed = reference.code_statistics(z, indices, 6, True)
    for k in range(6):
        torch.testing.assert_close(packed[k, :4], z[indices == k].sum(0))
        assert packed[k, 4] == (indices == k).sum()


# What is faster is a prediction; that the rule says so is what is tested.
@pytest.mark.parametrize(
    ("sizes", "first"),
    [
        ((4096, 32, 32), None),
        ((1_000_000, 1024, 32), None),
        ((4096, 8192, 64), None),  # a sort's launches cost more than looking
        ((1_000_000, 8192, 64), "triton"),
        ((0, 8192, 64), None),
    ],
)
def test_sizes_choose_between_the_kernels_of_a_gpu(sizes, first) -> None:
    (N, K, d), rule = sizes, _dispatch._PREFERS["code_statistics"]
    facts = _dispatch.CallInfo("cuda", torch.float32, (N, d), entries=K)
    found = rule(facts)
    assert (None if found is None else found.name) == first
    assert rule(replace(facts, device="cpu")) is None
    assert rule(replace(facts, entries=None)) is None


def random_call(draw):
    """For test_any_call.py."""
    N, K, d = draw.size(40), draw.size(20), draw.size(20)
    z = draw.tensor(N, d)
    high = max(1, K + (draw.random.random() < 0.1))
    indices = torch.randint(high, (N,), generator=draw.generator)
    return lambda: (ops.code_statistics(z, indices, K),)
