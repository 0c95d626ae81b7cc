"""The compiled st_attention: outputs and each gradient against the float64 reference, and the rest.

What both implementations must do stands in test_st_attention.py, who runs and what the op refuses
in test_st_attention_op.py.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from colaworld import ops
from colaworld.ops import _native

pytestmark = pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))

# The bound is twice the error of the plain reference in the same dtype, or this where it is lucky:
# four units in the last place of float32, one of bfloat16. In float64 the reference rounds as well
# and has no error to compare with: some hundred units, which a sum that cancels may lose.
FLOOR = {torch.float32: 5e-7, torch.float64: 1e-13, torch.bfloat16: 2.0**-8}
AXES = ["temporal", "spatial"]


def draw(B, T, S, H, D, *, axis, dtype=torch.float32, norm=True, rope=True, seed=0):
    """qkv, q_weight, k_weight, (cos, sin) or None, and a gradient of the output."""
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(B, T, S, 3, H, D, generator=g).to(dtype)
    weights = [(torch.rand(D, generator=g) + 0.5).to(dtype) if norm else None for _ in range(2)]
    tables = None
    if rope:
        angles = torch.randn(T if axis == "temporal" else S, D // 2, generator=g)
        tables = (angles.cos().to(dtype), angles.sin().to(dtype))
    return qkv, *weights, tables, torch.randn(B, T, S, H, D, generator=g).to(dtype)


def results(name, qkv, q_weight, k_weight, tables, grad, **options):
    """Output and gradients by name, of one implementation."""
    leaves = {"dqkv": qkv, "dq_weight": q_weight, "dk_weight": k_weight}
    leaves = {k: v.detach().requires_grad_() for k, v in leaves.items() if v is not None}
    with ops.force(name):
        out = ops.st_attention(
            leaves["dqkv"],
            q_weight=leaves.get("dq_weight"),
            k_weight=leaves.get("dk_weight"),
            rope=tables,
            **options,
        )
    grads = torch.autograd.grad(out, list(leaves.values()), grad)
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def in_double(x):
    if x is None:
        return None
    return tuple(t.double() for t in x) if isinstance(x, tuple) else x.double()


def far_off(draws, *, floor=None, **options) -> dict[str, tuple[float, float]]:
    """Results whose relative error over all draws is above the bound: name -> (error, bound).

    Of a single key the score does not matter: a gradient that cancels to nothing is measured
    against the one that came in.
    """
    dtype = draws[0][0].dtype
    size, plain_off, got_off = {}, {}, {}
    for tensors in draws:
        exact = results("reference", *map(in_double, tensors), **options)
        plain = results("reference", *tensors, **options)
        got = results("cpu", *tensors, **options)
        assert list(got) == list(exact)
        least = 1e-4 * float(tensors[4].double().square().sum()) + 1e-300
        for key, true in exact.items():
            assert got[key].shape == true.shape and got[key].dtype == dtype, key
            size[key] = size.get(key, 0) + max(float(true.square().sum()), least)
            for off, result in ((plain_off, plain), (got_off, got)):
                error = (result[key].double() - true).square().sum()
                off[key] = off.get(key, 0) + float(error)
    wrong = {}
    for key, of in size.items():
        error, plain_error = ((off[key] / of) ** 0.5 for off in (got_off, plain_off))
        bound = max(2 * plain_error, FLOOR[dtype] if floor is None else floor)
        if not error <= bound:
            wrong[key] = (error, bound)
    return wrong


# Lengths around 8 rows, 16 lanes, a panel of 48 and of several; widths around a vector.
SHAPES = [
    (2, 3, 5, 2, 8),
    (1, 16, 2, 3, 72),
    (2, 8, 3, 2, 32),
    (1, 7, 3, 2, 6),
    (1, 17, 1, 1, 40),
    (1, 49, 2, 2, 16),
    (1, 2, 130, 1, 24),
    (1, 1, 63, 3, 128),
    (3, 1, 1, 1, 2),
    (1, 64, 1, 2, 96),
    (1, 2, 97, 1, 64),
]


@pytest.mark.parametrize("dtype", list(FLOOR))
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axis", AXES)
def test_output_and_gradients_against_float64(axis, causal, dtype) -> None:
    for shape in SHAPES:
        draws = [draw(*shape, axis=axis, dtype=dtype, seed=seed) for seed in range(2)]
        assert far_off(draws, axis=axis, causal=causal) == {}, shape


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("norm", "rope"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", list(FLOOR))
def test_without_norm_or_rotation(axis, norm, rope, dtype) -> None:
    tensors = draw(2, 9, 10, 2, 24, axis=axis, dtype=dtype, norm=norm, rope=rope)
    assert far_off([tensors], axis=axis, scale=0.3, eps=1e-2) == {}
    qkv, q_weight, _, tables, grad = tensors
    assert far_off([(qkv, q_weight, None, tables, grad)], axis=axis) == {}


@pytest.mark.parametrize("causal", [False, True])
def test_a_long_sequence(causal) -> None:
    # 2100 keys leave room for a single vector of queries: the narrowest panel.
    tensors = draw(1, 1, 2100, 1, 8, axis="spatial")
    assert far_off([tensors], axis="spatial", causal=causal) == {}


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(0, 2),
    T=st.integers(1, 20),
    S=st.integers(1, 20),
    H=st.integers(1, 3),
    D=st.integers(1, 40),
    axis=st.sampled_from(AXES),
    causal=st.booleans(),
    norm=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(B, T, S, H, D, axis, causal, norm, seed) -> None:
    tensors = draw(B, T, S, H, D, axis=axis, norm=norm, rope=D % 2 == 0, seed=seed)
    # Rounding of one small draw is a matter of luck: a bound for mistakes.
    assert far_off([tensors], floor=2e-5, axis=axis, causal=causal) == {}


@pytest.mark.parametrize("shape", [(0, 2, 3, 1, 4), (1, 0, 3, 1, 4), (1, 2, 0, 1, 4)])
@pytest.mark.parametrize("axis", AXES)
def test_nothing_to_attend_to(axis, shape) -> None:
    got = results("cpu", *draw(*shape, axis=axis), axis=axis)
    assert got["out"].shape == shape
    assert got["dqkv"].shape == (*shape[:3], 3, *shape[3:])
    assert not got["dq_weight"].any() and not got["dk_weight"].any()


@pytest.mark.parametrize("dtype", list(FLOOR))
@pytest.mark.parametrize("axis", AXES)
def test_strides_change_nothing(axis, dtype) -> None:
    qkv, *rest, grad = draw(2, 5, 6, 2, 20, axis=axis, dtype=dtype)
    expected = results("cpu", qkv, *rest, grad, axis=axis)
    apart = qkv.permute(1, 3, 0, 4, 2, 5).contiguous().permute(2, 0, 4, 1, 3, 5)
    every_other = qkv.repeat_interleave(2, 5)[..., ::2]
    a_slice = torch.cat([qkv, qkv], 4)[:, :, :, :, :2]
    turned = grad.transpose(1, 3).contiguous().transpose(1, 3)
    for x, g in [
        (apart, grad),
        (every_other, turned),
        (a_slice, grad.repeat(1, 1, 1, 1, 2)[..., :20]),
    ]:
        got = results("cpu", x, *rest, g, axis=axis)
        for key, value in expected.items():
            assert torch.equal(got[key], value), key


@pytest.mark.parametrize("axis", AXES)
def test_expanded_inputs(axis) -> None:
    qkv, q_weight, k_weight, tables, _ = draw(1, 4, 1, 1, 8, axis=axis, rope=axis == "temporal")
    wide = qkv.expand(2, 4, 3, 3, 2, 8)
    one = torch.ones(1).expand(2, 4, 3, 2, 8)  # what .sum().backward() sends
    got = results("cpu", wide, q_weight, k_weight, tables, one, axis=axis)
    same = results("cpu", wide.contiguous(), q_weight, k_weight, tables, one.clone(), axis=axis)
    for key, value in same.items():
        assert torch.equal(got[key], value), key


@pytest.fixture
def poisoned(monkeypatch):
    """New memory is full of NaN: what an op leaves unwritten shows."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(2, 5, 3, 2, 6), (1, 17, 18, 2, 72)])
def test_every_number_of_the_results_is_written(axis, shape, poisoned) -> None:
    for dtype in FLOOR:
        tensors = draw(*shape, axis=axis, dtype=dtype)
        for key, value in results("cpu", *tensors, axis=axis).items():
            assert not value.isnan().any(), (dtype, key)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axis", AXES)
def test_runs_and_threads_give_the_same_bits(axis, causal) -> None:
    before = torch.get_num_threads()
    try:
        # Many short sequences; then a single long one, whose queries are shared among threads.
        for shape in [(2, 9, 11, 3, 40), (1, 1, 500, 1, 16), (1, 500, 1, 1, 16)]:
            tensors = draw(*shape, axis=axis)
            torch.set_num_threads(1)
            expected = results("cpu", *tensors, axis=axis, causal=causal)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                got = results("cpu", *tensors, axis=axis, causal=causal)
                for key, value in expected.items():
                    assert torch.equal(got[key], value), (shape, threads, key)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("axis", AXES)
def test_nan_stays_in_its_own_sequence(axis) -> None:
    qkv, q_weight, k_weight, tables, grad = draw(2, 9, 10, 2, 24, axis=axis)
    clean = results("cpu", qkv, q_weight, k_weight, tables, grad, axis=axis)
    for part in range(3):
        bad = qkv.clone()
        bad[1, 4, 6, part, 1, 5] = torch.nan
        got = results("cpu", bad, q_weight, k_weight, tables, grad, axis=axis)
        mine = torch.zeros(2, 9, 10, 2, dtype=torch.bool)
        mine[(1, slice(None), 6, 1) if axis == "temporal" else (1, 4, slice(None), 1)] = True
        for key in ("out", "dqkv"):
            a, b = got[key], clean[key]
            if key == "dqkv":
                a, b = a.transpose(3, 4).flatten(4), b.transpose(3, 4).flatten(4)
            assert torch.equal(a[~mine], b[~mine]), (part, key)
            assert a[mine].isnan().any(), (part, key)


@pytest.mark.parametrize("length", [5, 16, 70])
def test_a_causal_query_does_not_meet_a_nan_ahead(length) -> None:
    first = length // 2
    tensors = draw(1, length, 1, 1, 16, axis="temporal")
    clean = results("cpu", *tensors, axis="temporal", causal=True)
    bad = tensors[0].clone()
    bad[:, first] = torch.nan
    got = results("cpu", bad, *tensors[1:], axis="temporal", causal=True)
    assert torch.equal(got["out"][:, :first], clean["out"][:, :first])
    assert torch.equal(got["dqkv"][:, :first, :, 0], clean["dqkv"][:, :first, :, 0])
    assert got["out"][:, first:].isnan().all()


def test_large_scores_do_not_overflow() -> None:
    tensors = draw(1, 6, 2, 1, 16, axis="temporal")
    got = results("cpu", tensors[0], None, None, None, tensors[4], axis="temporal", scale=1e4)
    q, k, v = tensors[0].double().unbind(3)
    best = torch.einsum("btshd,bushd->btshu", q, k).argmax(-1)  # a softmax of one winner
    expected = v.gather(1, best[..., None].expand(-1, -1, -1, -1, 16))
    torch.testing.assert_close(got["out"].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axis", AXES)
def test_gradcheck(axis, causal) -> None:
    qkv, q_weight, k_weight, (cos, sin), _ = draw(1, 3, 4, 2, 4, axis=axis, dtype=torch.float64)

    def call(qkv, q_weight, k_weight, cos, sin):
        with ops.force("cpu"):
            return ops.st_attention(
                qkv,
                axis=axis,
                causal=causal,
                q_weight=q_weight,
                k_weight=k_weight,
                rope=(cos, sin),
            )

    leaves = [x.requires_grad_() for x in (qkv, q_weight, k_weight)]
    assert torch.autograd.gradcheck(call, (*leaves, cos, sin))
    out = call(*leaves, cos.requires_grad_(), sin.requires_grad_())
    assert torch.autograd.grad(out.sum(), cos, allow_unused=True) == (None,)  # they are constants


@pytest.mark.parametrize("shape", [(0, 2, 3, 1, 4), (2, 3, 4, 2, 6)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(shape, norm, requires_grad) -> None:
    qkv, q_weight, k_weight, (cos, sin), grad = draw(*shape, axis="spatial", norm=norm)
    options = (cos, sin, False, True, 1e-6, 0.5)
    torch.library.opcheck(
        torch.ops.colaworld.st_attention_backward.default,
        (grad, qkv, q_weight, k_weight, *options),
    )
    for x in (qkv, q_weight, k_weight):
        if x is not None:
            x.requires_grad_(requires_grad)
    strided = qkv.transpose(1, 2).contiguous().transpose(1, 2)
    for x in (qkv, strided):
        torch.library.opcheck(
            torch.ops.colaworld.st_attention.default, (x, q_weight, k_weight, *options)
        )


@pytest.mark.parametrize("axis", AXES)
def test_compiles_as_one_graph_with_any_size(axis) -> None:
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    def call(qkv, q_weight, k_weight, tables):
        return ops.st_attention(
            qkv, axis=axis, causal=True, q_weight=q_weight, k_weight=k_weight, rope=tables
        ).square()

    with ops.force("cpu"):
        first = draw(2, 5, 6, 2, 8, axis=axis)
        torch.compile(call, fullgraph=True, dynamic=True, backend=count)(*first[:4])
        assert len(graphs) == 1
        targets = [str(node.target) for node in graphs[0].graph.nodes]
        assert sum("colaworld.st_attention" in target for target in targets) == 1
        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in [(2, 5, 6, 2, 8), (3, 7, 4, 2, 8)]:
            *tensors, tables, grad = draw(*shape, axis=axis)
            outcomes = []
            for function in (call, compiled):
                leaves = [x.detach().clone().requires_grad_() for x in tensors]
                out = function(*leaves, tables)
                outcomes.append((out.detach(), *torch.autograd.grad(out, leaves, grad)))
            torch.testing.assert_close(outcomes[0], outcomes[1])


def test_activation_checkpointing_gives_the_same_bits() -> None:
    *tensors, tables, grad = draw(1, 5, 6, 2, 8, axis="temporal")

    def call(qkv, q_weight, k_weight):
        return ops.st_attention(
            qkv, axis="temporal", q_weight=q_weight, k_weight=k_weight, rope=tables
        )

    with ops.force("cpu"):
        leaves = [x.detach().requires_grad_() for x in tensors]
        expected = torch.autograd.grad(call(*leaves), leaves, grad)
        got = torch.autograd.grad(checkpoint(call, *leaves, use_reentrant=False), leaves, grad)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa) -> None:
    # These tests again in a process of their own: the choice is made when the first op runs.
    tests = "test_output_and_gradients_against_float64 and spatial or test_a_causal_query"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", tests],
        env={**os.environ, "COLAWORLD_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if f"got '{isa}'" in done.stdout:
        pytest.skip(f"this processor or build does not offer {isa}")
    assert done.returncode == 0, done.stdout + done.stderr
