"""adaln against its formula, one location at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colaworld import ops


def inputs(B=2, T=3, S=2, C=4, dtype=torch.float64, requires_grad=False):
    g = torch.Generator().manual_seed(3)

    def draw(*shape):
        x = torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype)
        return x.requires_grad_(requires_grad)

    return draw(B, T, S, C), draw(B, T, S, C), draw(B, T, C), draw(B, T, C), draw(B, T, C)


def by_hand(x, y, gate, shift, scale, eps, norm):
    x_out, out = x.clone(), torch.empty_like(x)
    B, T, S, C = x.shape
    for b in range(B):
        for t in range(T):
            for s in range(S):
                row = x[b, t, s].clone()
                if y is not None:
                    row = row + (y[b, t, s] if gate is None else gate[b, t] * y[b, t, s])
                x_out[b, t, s] = row
                centred = row - row.sum() / C if norm == "layer" else row
                normed = centred / ((centred * centred).sum() / C + eps).sqrt()
                out[b, t, s] = normed * (1 + scale[b, t]) + shift[b, t]
    return x_out, out


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("branch", ["none", "plain", "gated"])
def test_equals_the_formula(norm, branch) -> None:
    x, y, gate, shift, scale = inputs()
    y, gate = {"none": (None, None), "plain": (y, None), "gated": (y, gate)}[branch]
    got = ops.adaln(x, y, gate=gate, shift=shift, scale=scale, eps=1e-2, norm=norm)
    expected = by_hand(x, y, gate, shift, scale, 1e-2, norm)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_known_row() -> None:
    # Row (1, 3): mean 2, deviation 1, so the layer norm is (-1, 1); times 1 + 1, plus 5.
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    one = torch.ones(1, 1, 2)
    x_out, out = ops.adaln(x, None, shift=5 * one, scale=one, eps=0.0)
    assert torch.equal(x_out, x)
    torch.testing.assert_close(out.flatten(), torch.tensor([3.0, 7.0]))


def test_zero_modulation_and_zero_gate_is_the_plain_norm() -> None:
    x, y, _, _, _ = inputs(dtype=torch.float32)
    zero = torch.zeros(2, 3, 4)
    x_out, out = ops.adaln(x, y, gate=zero, shift=zero, scale=zero)
    assert torch.equal(x_out, x)
    expected = torch.nn.functional.layer_norm(x, (4,), eps=1e-6)
    torch.testing.assert_close(out, expected)


def test_the_norm_reads_the_rounded_stream() -> None:
    x, y, gate, shift, scale = inputs(dtype=torch.bfloat16)
    x_out, out = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)
    assert x_out.dtype == out.dtype == torch.bfloat16
    _, again = ops.adaln(x_out, None, shift=shift, scale=scale)
    assert torch.equal(out, again)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_gradients(norm) -> None:
    tensors = inputs(1, 2, 2, 3, requires_grad=True)

    def call(x, y, gate, shift, scale):
        return ops.adaln(x, y, gate=gate, shift=shift, scale=scale, norm=norm)

    assert torch.autograd.gradcheck(call, tensors)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))
def test_any_shape_and_expanded_modulation(B, T, S, C) -> None:
    x, y, _, _, _ = inputs(B, T, S, C)
    m = torch.full((1, 1, 1), 0.5, dtype=torch.float64).expand(B, T, C)
    got = ops.adaln(x, y, gate=m, shift=m, scale=m)
    expected = ops.adaln(x, y, gate=m.contiguous(), shift=m.contiguous(), scale=m.contiguous())
    assert got[0].shape == got[1].shape == (B, T, S, C)
    torch.testing.assert_close(got, expected)


def test_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    call = torch.compile(ops.adaln, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 3, 2, 4), (1, 2, 5, 6)]:
        x, y, gate, shift, scale = inputs(*shape, dtype=torch.float32)
        kwargs = {"gate": gate, "shift": shift, "scale": scale}
        torch.testing.assert_close(call(x, y, **kwargs), ops.adaln(x, y, **kwargs))


def test_errors_name_the_argument() -> None:
    x, y, gate, shift, scale = inputs()
    good = {"x": x, "y": y, "gate": gate, "shift": shift, "scale": scale}
    for change, message in [
        ({"x": x[0]}, r"x: expected \[B, T, S, C\], got \[3, 2, 4\]"),
        ({"x": x.long()}, "x: expected a floating-point"),
        ({"y": y[:1]}, r"y: expected \[2, 3, 2, 4\], got \[1, 3, 2, 4\]"),
        ({"gate": gate[:1]}, r"gate: expected \[2, 3, 4\]"),
        ({"shift": x}, r"shift: expected \[2, 3, 4\], got \[2, 3, 2, 4\]"),
        ({"scale": scale[..., :1]}, r"scale: expected \[2, 3, 4\], got \[2, 3, 1\]"),
        ({"y": None}, "gate: given without a branch"),
        ({"norm": "batch"}, "norm: expected 'layer' or 'rms', got 'batch'"),
    ]:
        kwargs = {**good, **change}
        with pytest.raises(ValueError, match=message):
            ops.adaln(kwargs.pop("x"), kwargs.pop("y"), **kwargs)
