"""Checks of temporal attention in Triton, run by test_st_attention.py: see conftest.py.

Everything goes through the public function with the triton implementation forced, so the kernels,
their fake, their gradient and the route of the spatial axis are all in it.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from colaworld import ops
from colaworld.ops import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float64 if INTERPRETED else torch.bfloat16, torch.float16)
# Under the interpreter one dtype is seconds: the others run with what is slow.
EACH_DTYPE = [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])]
# A kernel that rounds as often as the reference may still round elsewhere: a few units in the last
# place of the dtype. float32 on a GPU is three tf32 products, 2^-21 of the largest term.
FLOOR = {
    torch.float64: 1e-14,
    torch.float32: 1e-6 if INTERPRETED else 4e-6,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}
NAMES = ("qkv", "q_weight", "k_weight")


def leaves(shape, dtype, *, norm=True, rope=True, seed=0, axis="temporal"):
    """(qkv, q_weight, k_weight) and (cos, sin), any of the last four None."""
    generator = torch.Generator().manual_seed(seed)
    B, T, S, H, D = shape
    qkv = torch.randn(B, T, S, 3, H, D, generator=generator, dtype=torch.float64)
    weights = (torch.rand(2, D, generator=generator, dtype=torch.float64) + 0.5).unbind()
    length = T if axis == "temporal" else S
    angles = torch.randn(length, D // 2, generator=generator, dtype=torch.float64)
    to = {"device": DEVICE, "dtype": dtype}
    tables = (angles.cos().to(**to), angles.sin().to(**to)) if rope else None
    inputs = [qkv.to(**to), *(w.to(**to) if norm else None for w in weights)]
    return [x if x is None else x.requires_grad_() for x in inputs], tables


def all_of(name, inputs, tables, grad=None, *, wide=False, axis="temporal", causal=False, eps=1e-5):
    """Output and gradients of the implementation called `name`: {"out": ..., "qkv": ..., ...}."""
    if wide:
        inputs = [x if x is None else x.detach().double().requires_grad_() for x in inputs]
        tables = tables if tables is None else tuple(x.double() for x in tables)
        grad = grad if grad is None else grad.double()
    qkv, q_weight, k_weight = inputs
    with ops.force(name):
        out = ops.st_attention(
            qkv, axis=axis, causal=causal, q_weight=q_weight, k_weight=k_weight, eps=eps,
            rope=tables, scale=0.4,
        )  # fmt: skip
    if grad is None:
        return {"out": out.detach()}
    wanted = [x for x in inputs if x is not None]
    found = torch.autograd.grad(out, wanted, grad)
    names = [n for n, x in zip(NAMES, inputs, strict=True) if x is not None]
    return {"out": out.detach(), **dict(zip(names, found, strict=True))}


def distance(got, wanted) -> float:
    """Of two tensors, relative to the second."""
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def check(shape, dtype, *, norm=True, rope=True, seed=0, axis="temporal", **options) -> None:
    """The output and each gradient against the reference in float64, by name."""
    inputs, tables = leaves(shape, dtype, norm=norm, rope=rope, seed=seed, axis=axis)
    B, T, S, H, D = shape
    generator = torch.Generator().manual_seed(seed + 1)
    grad = torch.randn(B, T, S, H, D, generator=generator).to(DEVICE, dtype)
    options["axis"] = axis
    got = all_of("triton", inputs, tables, grad, **options)
    same = all_of("reference", inputs, tables, grad, **options)
    wanted = all_of("reference", inputs, tables, grad, wide=True, **options)
    for name in wanted:
        assert got[name].dtype == same[name].dtype, name
        assert got[name].shape == same[name].shape, name
        if T == 1 and name != "out":  # the softmax of one score has no gradient: compare with dv's
            error = (got[name].double() - wanted[name]).norm() / grad.double().norm()
            assert error <= 4 * FLOOR[dtype], (name, error)
            continue
        bound = max(2 * distance(same[name], wanted[name]), FLOOR[dtype])
        assert distance(got[name], wanted[name]) <= bound, name


@pytest.mark.parametrize("dtype", EACH_DTYPE, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 5, 3, 1, 24), (1, 8, 1, 2, 72), (1, 16, 1, 1, 96), (1, 17, 2, 1, 64), (1, 32, 1, 1, 128)],
)
def test_outputs_and_each_gradient(shape, causal, dtype) -> None:
    check(shape, dtype, causal=causal)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_without_norm_or_rotation(norm, rope) -> None:
    check((2, 3, 1, 2, 40), torch.float32, norm=norm, rope=rope)


def test_a_head_of_an_odd_number_of_channels() -> None:
    check((1, 4, 2, 1, 7), torch.float32, rope=False)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(
        st.integers(1, 2), st.integers(1, 32), st.integers(1, 3), st.integers(1, 2),
        st.integers(1, 40).map(lambda n: 2 * n),
    ),
    causal=st.booleans(),
    norm=st.booleans(),
    rope=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(shape, causal, norm, rope, seed) -> None:
    check(shape, torch.float32, causal=causal, norm=norm, rope=rope, seed=seed)


@pytest.mark.parametrize("shape", [(0, 3, 2, 1, 8), (1, 3, 0, 1, 8), (1, 0, 2, 1, 8)])
def test_empty(shape) -> None:
    inputs, tables = leaves(shape, torch.float32)
    grad = torch.zeros(*shape[:3], *shape[3:], device=DEVICE)
    got = all_of("triton", inputs, tables, grad)
    assert got["out"].shape == shape
    assert got["qkv"].shape == inputs[0].shape
    assert (got["q_weight"] == 0).all()
    assert (got["k_weight"] == 0).all()


def test_strided_and_expanded_inputs() -> None:
    B, T, S, H, D = 2, 3, 2, 2, 24
    inputs, tables = leaves((B, T, S, H, D), torch.float32)
    grad = torch.randn(B, T, S, H, D, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    plain = inputs[0].detach()
    wanted = all_of("triton", inputs, tables, grad)
    everywhere = torch.zeros(S, H, T, B, 3, 2 * D, device=DEVICE)
    strided = everywhere[..., ::2].permute(3, 2, 0, 4, 1, 5)
    strided.copy_(plain)
    odd = torch.zeros(B, T, S, 3, H, D + 1, device=DEVICE)[..., :D]
    odd.copy_(plain)
    moved = plain.transpose(1, 2).contiguous().transpose(1, 2)
    for qkv in (strided, odd, moved):
        got = all_of("triton", [qkv.requires_grad_(), *inputs[1:]], tables, grad)
        for name in wanted:
            assert torch.equal(got[name], wanted[name]), name
    wide = plain[:1, :, :, :, :1].expand(B, T, S, 3, H, D)
    got = all_of(
        "triton", [wide.requires_grad_(), *inputs[1:]], tables, grad[:, :, :1].expand_as(grad)
    )
    copied = [wide.detach().contiguous().requires_grad_(), *inputs[1:]]
    wanted = all_of("triton", copied, tables, grad[:, :, :1].expand_as(grad).contiguous())
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


def test_weights_and_tables_of_another_dtype() -> None:
    """Half-precision activations with float32 parameters, as under autocast."""
    inputs, tables = leaves((1, 4, 1, 1, 16), torch.float16)
    wide = [inputs[0], *(w.detach().float().requires_grad_() for w in inputs[1:])]
    grad = torch.ones(1, 4, 1, 1, 16, device=DEVICE, dtype=torch.float16)
    same = all_of("triton", inputs, tables, grad)
    got = all_of("triton", wide, tuple(t.float() for t in tables), grad)
    assert got["q_weight"].dtype == torch.float32
    for name in same:
        assert distance(got[name], same[name].double()) < 2e-3, name


@pytest.mark.parametrize("part", [0, 1, 2, "grad"])
@pytest.mark.parametrize("T", [3, 16])
def test_a_nan_stays_in_its_location(part, T) -> None:
    inputs, tables = leaves((1, T, 3, 2, 16), torch.float32)
    grad = torch.ones(1, T, 3, 2, 16, device=DEVICE)
    clean = all_of("triton", inputs, tables, grad)
    with torch.no_grad():
        if part == "grad":
            grad[0, 1, 1, 0, 3] = float("nan")
        else:
            inputs[0][0, 1, 1, part, 0, 3] = float("nan")
    got = all_of("triton", inputs, tables, grad)
    here = torch.zeros(3, 2, dtype=torch.bool, device=DEVICE)
    here[1, 0] = True  # [S, H]
    dqkv = got["qkv"].permute(2, 4, 0, 1, 3, 5)
    assert dqkv[here].isnan().any()
    assert torch.equal(dqkv[~here], clean["qkv"].permute(2, 4, 0, 1, 3, 5)[~here])
    out, was = (x["out"].permute(2, 3, 0, 1, 4) for x in (got, clean))
    assert out[here].isnan().any() == (part != "grad")
    assert torch.equal(out[~here], was[~here])


def test_rows_of_zeros_without_eps_are_nan_alone() -> None:
    """0 / 0 in a real row is what the formula says; the rows of padding must not add theirs."""
    inputs, tables = leaves((1, 3, 2, 1, 8), torch.float32)
    with torch.no_grad():
        inputs[0][0, :, 1] = 0
    grad = torch.ones(1, 3, 2, 1, 8, device=DEVICE)
    got = all_of("triton", inputs, tables, grad, eps=0.0)
    assert got["out"][:, :, 0].isfinite().all()
    assert got["qkv"][:, :, 0].isfinite().all()
    assert got["out"][:, :, 1].isnan().all()


def test_outputs_are_fully_written(monkeypatch) -> None:
    inputs, tables = leaves((1, 5, 3, 2, 24), torch.float32)
    grad = torch.ones(1, 5, 3, 2, 24, device=DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert inputs[0].new_empty((4,)).isnan().all(), "new memory is poisoned"
        got = all_of("triton", inputs, tables, grad)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in got.items():
        assert tensor.isfinite().all(), name


def test_bitwise_equal_over_runs() -> None:
    inputs, tables = leaves((2, 6, 3, 2, 24), torch.float32)
    grad = torch.ones(2, 6, 3, 2, 24, device=DEVICE)
    first, second = (all_of("triton", inputs, tables, grad) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.slow
def test_several_locations_of_one_program(monkeypatch) -> None:
    """A program of the backward pass works on many locations when there are many; here on all."""
    from colaworld.kernels import st_attention as kernels

    inputs, tables = leaves((2, 3, 5, 2, 16), torch.float32)
    grad = torch.randn(2, 3, 5, 2, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    wanted = all_of("triton", inputs, tables, grad)
    for programs in (1, 7):
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        got = all_of("triton", inputs, tables, grad)
        assert torch.equal(got["qkv"], wanted["qkv"])
        for name in NAMES[1:]:
            assert distance(got[name], wanted[name].double()) < 1e-6, name


@pytest.mark.skipif(not INTERPRETED, reason="float64 runs in the interpreter alone")
@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck(causal) -> None:
    inputs, tables = leaves((1, 3, 1, 1, 4), torch.float64)

    def run(qkv, q_weight, k_weight):
        with ops.force("triton"):
            return ops.st_attention(
                qkv, axis="temporal", causal=causal, q_weight=q_weight, k_weight=k_weight,
                rope=tables,
            )  # fmt: skip

    torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
def test_opcheck(norm) -> None:
    (qkv, q_weight, k_weight), tables = leaves((1, 3, 2, 1, 8), torch.float32, norm=norm)
    arguments = (qkv, q_weight, k_weight, *tables, True, False, 1e-5, 0.3)
    torch.library.opcheck(torch.ops.colaworld.st_attention_triton, arguments)
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    arguments = (torch.ones(1, 3, 2, 1, 8, device=DEVICE), *detached)
    torch.library.opcheck(torch.ops.colaworld.st_attention_backward_triton, arguments)


def test_a_second_derivative_is_an_error_that_says_what_to_do() -> None:
    inputs, tables = leaves((1, 3, 1, 1, 8), torch.float32)
    with ops.force("triton"):
        out = ops.st_attention(inputs[0], axis="temporal", q_weight=inputs[1], rope=tables)
    (first,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"force\('reference'\)"):
        first.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("axis", ["temporal", "spatial"])
def test_compiles_as_one_graph(axis, dynamic) -> None:
    torch.compiler.reset()

    def run(qkv, q_weight, k_weight, cos, sin):
        return ops.st_attention(
            2 * qkv, axis=axis, q_weight=q_weight, k_weight=k_weight, rope=(cos, sin)
        )

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((1, 3, 2, 2, 8), (1, 4, 3, 2, 8)):
        inputs, tables = leaves(shape, torch.float32, axis=axis)
        with ops.force("triton"):
            out, wanted = compiled(*inputs, *tables), run(*inputs, *tables)
        torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)
        grads = [torch.autograd.grad(x.square().sum(), inputs) for x in (out, wanted)]
        for name, got, want in zip(NAMES, *grads, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("axis", ["temporal", "spatial"])
def test_activation_checkpointing(axis) -> None:
    inputs, tables = leaves((1, 3, 2, 1, 8), torch.float32, axis=axis)

    def run(qkv, q_weight, k_weight):
        with ops.force("triton"):
            return ops.st_attention(
                qkv, axis=axis, q_weight=q_weight, k_weight=k_weight, rope=tables
            ).square()

    wanted = torch.autograd.grad(run(*inputs).sum(), inputs)
    got = torch.autograd.grad(checkpoint(run, *inputs, use_reentrant=False).sum(), inputs)
    for name, a, b in zip(NAMES, got, wanted, strict=True):
        assert torch.equal(a, b), name


def test_autocast_changes_nothing() -> None:
    inputs, tables = leaves((1, 3, 2, 1, 8), torch.float32)
    wanted = all_of("triton", inputs, tables)["out"]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = all_of("triton", inputs, tables)["out"]
    assert torch.equal(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_the_spatial_axis(causal, dtype) -> None:
    check((2, 2, 5, 2, 8), dtype, axis="spatial", causal=causal)


@pytest.mark.parametrize(("norm", "rope"), [(False, False), (False, True), (True, False)])
def test_the_spatial_axis_without_norm_or_rotation(norm, rope) -> None:
    check((1, 2, 3, 2, 8), torch.float32, axis="spatial", norm=norm, rope=rope)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 33, 2, 1, 8), (1, 3, 2, 1, 136)])
def test_what_is_too_long_or_too_wide_for_the_kernel(shape) -> None:
    check(shape, torch.float32)


@pytest.mark.parametrize("axis", ["temporal", "spatial"])
def test_one_weight_and_tables_with_gradient(axis) -> None:
    (qkv, q_weight, _), tables = leaves((1, 3, 4, 2, 8), torch.float32, axis=axis)
    tables = tuple(t.requires_grad_() for t in tables)
    found = []
    for name in ("triton", "reference"):
        with ops.force(name):
            out = ops.st_attention(qkv, axis=axis, q_weight=q_weight, rope=tables)
            plain = ops.st_attention(qkv, axis=axis, q_weight=q_weight)
        found.append((out, plain, *torch.autograd.grad((out * plain).sum(), (qkv, q_weight))))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_tables_receive_no_gradient() -> None:
    inputs, tables = leaves((1, 3, 2, 1, 8), torch.float32)
    tables = tuple(t.requires_grad_() for t in tables)
    for name in ("triton", "reference"):
        with ops.force(name):
            out = ops.st_attention(inputs[0], axis="temporal", rope=tables)
        found = torch.autograd.grad(out.square().sum(), tables, allow_unused=True)
        assert found == (None, None), name


def test_errors_name_the_argument() -> None:
    (qkv, *_), _ = leaves((1, 3, 2, 1, 8), torch.float32)
    op = torch.ops.colaworld.st_attention_triton
    rest = (None, None, None, None)
    with pytest.raises(ValueError, match="temporal: expected True"):
        op(qkv.detach(), *rest, False, False, 1e-5, 1.0)
    with pytest.raises(ValueError, match="T <= 32"):
        op(torch.ones(1, 33, 1, 3, 1, 8, device=DEVICE), *rest, True, False, 1e-5, 1.0)
    with ops.force("triton"), pytest.raises(ops.NoImplementationError, match="it takes float32"):
        ops.st_attention(qkv.to(torch.float8_e4m3fn), axis="temporal")


def test_explain_names_triton() -> None:
    qkv = torch.ones(1, 3, 2, 3, 1, 8, device=DEVICE)
    with ops.force("triton"):
        verdicts = {v.name: v for v in ops.explain("st_attention", qkv)}
    assert verdicts["triton"].would_run
    assert not verdicts["reference"].would_run
    assert reference.st_attention is not None
