"""gelu: every implementation against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colaworld import ops
from colaworld.ops import _native, reference

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))
)
needs_cpu = CPU.marks[0]
each = pytest.mark.parametrize("name", ["reference", CPU])
# Of the norm: arithmetic in float32 or float64; bfloat16 rounds once, at the end.
ALLOWED = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 4e-3}


def draw(*shape: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=g)).to(dtype)


def sigmoid_of(x: torch.Tensor) -> torch.Tensor:
    """(1 + tanh u) / 2 in float64, without the cancellation of 1 + tanh."""
    x = x.double()
    return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float(
        (out.detach().double() - expected.detach()).norm()
        / expected.detach().norm().clamp(min=1e-300)
    )


@each
@pytest.mark.parametrize("dtype", list(ALLOWED))
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 5), (3, 40, 33), (2, 65536)])
def test_against_float64(name, dtype, shape) -> None:
    x, weight = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    wide = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(wide * sigmoid_of(wide), wide, weight.double())
    x.requires_grad_()
    with ops.force(name):
        y = ops.gelu(x)
        (gradient,) = torch.autograd.grad(y, x, weight)
    assert y.shape == x.shape and y.dtype == gradient.dtype == dtype
    assert error(y, wide * sigmoid_of(wide)) <= ALLOWED[dtype]
    assert error(gradient, expected) <= ALLOWED[dtype]


@needs_cpu
def test_small_results_keep_their_digits() -> None:
    x = torch.linspace(-5, -0.5, 1000)
    with ops.force("cpu"):
        y = ops.gelu(x)
    torch.testing.assert_close(y.double(), x.double() * sigmoid_of(x), rtol=2e-5, atol=0)


@each
def test_the_ends_of_the_range(name) -> None:
    x = torch.tensor([torch.nan, torch.inf, 1e20, -1e20, 0.0, 3e38])
    with ops.force(name):
        y = ops.gelu(x)
    assert y[0].isnan() and y[1:].tolist() == [math.inf, x[2].item(), 0, 0, x[5].item()]


@needs_cpu
def test_gradients_at_the_ends_are_numbers() -> None:
    x = torch.tensor([1e20, -1e20, 3e38, -3e38, 0.0], requires_grad=True)
    with ops.force("cpu"):
        ops.gelu(x).sum().backward()
    assert x.grad.tolist() == [1, 0, 1, 0, 0.5]


@needs_cpu
@pytest.mark.parametrize("dtype", list(ALLOWED))
def test_any_strides(dtype) -> None:
    x = draw(6, 34, dtype=dtype)
    with ops.force("cpu"):
        whole = ops.gelu(x)
        assert torch.equal(ops.gelu(x.t()), whole.t())
        assert torch.equal(ops.gelu(x[:, 1::3]), whole[:, 1::3])
        assert torch.equal(ops.gelu(x[:1].expand(4, 34)), whole[:1].expand(4, 34))


@needs_cpu
@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 80), start=st.integers(0, 5))
def test_where_an_element_stands_changes_no_bit(n, start) -> None:
    x = draw(96)
    with ops.force("cpu"):
        assert torch.equal(ops.gelu(x[start : start + n]), ops.gelu(x)[start : start + n])


@each
def test_gradcheck(name) -> None:
    x = draw(5, 3, dtype=torch.float64).requires_grad_()
    with ops.force(name):
        assert torch.autograd.gradcheck(ops.gelu, (x,))


@needs_cpu
def test_opcheck() -> None:
    for x in (draw(3, 5), draw(3, 5).requires_grad_(), draw(4, 6).t(), draw(0, 2)):
        torch.library.opcheck(torch.ops.colaworld.gelu.default, (x,))
    torch.library.opcheck(torch.ops.colaworld.gelu_backward.default, (draw(3, 5), draw(3, 5)))


@each
def test_compiles_as_one_graph_with_any_size(name) -> None:
    torch._dynamo.reset()
    with ops.force(name):
        compiled = torch.compile(ops.gelu, fullgraph=True, dynamic=True, backend="aot_eager")
        for n in (3, 17, 40):
            torch.testing.assert_close(compiled(draw(n, 4)), ops.gelu(draw(n, 4)))


@each
def test_errors_name_the_argument(name) -> None:
    with ops.force(name), pytest.raises(ValueError, match=r"x: expected a floating-point .*int64"):
        ops.gelu(torch.ones(3, dtype=torch.int64))


@needs_cpu
def test_the_compiled_op_checks_for_itself() -> None:
    op = torch.ops.colaworld.gelu_backward
    for arguments, message in [
        ((draw(3), draw(4)), r"gelu_backward: grad: expected \[4\], got \[3\]"),
        ((draw(4), draw(2, 2)), r"grad: expected \[2, 2\], got \[4\]"),
        ((draw(4).double(), draw(4)), "grad: expected Float as x is, got Double"),
        ((draw(4).half(), draw(4).half()), "x: expected float32, float64 or bfloat16, got Half"),
    ]:
        with pytest.raises(ValueError, match=message):
            op(*arguments)


@needs_cpu
def test_a_second_derivative_is_refused() -> None:
    x = draw(3).requires_grad_()
    with ops.force("cpu"):
        (first,) = torch.autograd.grad(ops.gelu(x).sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"gelu: .* no second derivative"):
            first.sum().backward()


def test_the_reference_is_the_definition() -> None:
    x = draw(50, dtype=torch.float64)
    torch.testing.assert_close(reference.gelu(x), x * sigmoid_of(x), rtol=1e-12, atol=1e-15)


def random_call(draw):
    """For test_any_call.py."""
    x = draw.tensor(draw.size(), draw.size(40))
    if draw.random.random() < 0.1:
        x = x.long()
    return lambda: (ops.gelu(x),)
