"""Checks of adaln in Triton, run by test_adaln.py: see conftest.py.

Everything goes through the public function with the triton implementation forced, so the kernels,
their fake and their gradient are all in it.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from colaworld import ops
from colaworld.kernels import adaln as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
# Dtypes of (x, y, gate shift and scale, out); the second is what training under autocast runs.
NARROW = F16 if INTERPRETED else BF16
MIXED = (F32, NARROW, F32, NARROW)
DTYPES = [
    (F32,) * 4,
    MIXED,
    (F16,) * 4,
    (F64 if INTERPRETED else BF16,) * 4,
    (NARROW, F32, F32, F32),
]
# Under the interpreter one form is seconds: the others run with what is slow.
EACH_FORM = [*DTYPES[:2], *(pytest.param(form, marks=pytest.mark.slow) for form in DTYPES[2:])]
# Four units in the last place: below that an error is rounding, whatever plain torch happens to reach.
FLOOR = {F64: 1e-13, F32: 4 * 2.0**-24, F16: 4 * 2.0**-11, BF16: 4 * 2.0**-9}
NAMES = ("x_out", "out", "dx", "dy", "dgate", "dshift", "dscale")
needs_float64 = pytest.mark.skipif(
    not INTERPRETED, reason="the kernels take float64 in numpy alone"
)
only_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")


def leaves(B, T, S, C, *, dtypes=None, dtype=None, seed=0):
    """[x, y, gate, shift, scale], and a gradient for each output."""
    of_x, of_y, of_tables, of_out = dtypes or (dtype,) * 4
    g = torch.Generator().manual_seed(seed)

    def draw(dtype, *shape):
        return torch.randn(*shape, generator=g).to(DEVICE, dtype)

    tensors = [draw(of_x, B, T, S, C), draw(of_y, B, T, S, C)]
    tensors += [draw(of_tables, B, T, C) for _ in range(3)]
    return tensors, [draw(of_x, B, T, S, C), draw(of_out, B, T, S, C)]


def all_of(name, tensors, grads, *, wide=False, branch="gated", **kwargs):
    """Outputs and gradients of one implementation: {"x_out": ..., "dx": ..., ...}; `out` in the dtype
    of its gradient, everything in float64 when `wide`."""
    grads = [g.double() if wide else g for g in grads]
    tensors = [t.detach().double() if wide else t.detach() for t in tensors]
    x, y, gate, shift, scale = (t.requires_grad_() for t in tensors)
    y = None if branch == "none" else y
    gate = gate if branch == "gated" else None
    with ops.force(name):
        outputs = ops.adaln(
            x, y, gate=gate, shift=shift, scale=scale, out_dtype=grads[1].dtype, **kwargs
        )
        wanted = {"dx": x, "dy": y, "dgate": gate, "dshift": shift, "dscale": scale}
        wanted = {name: t for name, t in wanted.items() if t is not None}
        found = torch.autograd.grad(outputs, list(wanted.values()), grads)
    made = dict(zip(("x_out", "out"), (o.detach() for o in outputs), strict=True))
    return made | dict(zip(wanted, found, strict=True))


def distance(got, wanted) -> float:
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300)).item()


def check(tensors, grads, **kwargs) -> None:
    """Each result errs at most twice as much as plain torch in the same dtype."""
    exact = all_of("reference", tensors, grads, wide=True, **kwargs)
    plain = all_of("reference", tensors, grads, **kwargs)
    ours = all_of("triton", tensors, grads, **kwargs)
    assert ours.keys() == exact.keys()
    for name, o in ours.items():
        assert o.shape == plain[name].shape and o.dtype == plain[name].dtype, name
        assert o.is_contiguous(), name
        if o.numel():
            bound = max(2 * distance(plain[name], exact[name]), FLOOR[o.dtype])
            assert distance(o, exact[name]) <= bound, (name, distance(o, exact[name]), bound)


@pytest.mark.parametrize("dtypes", EACH_FORM, ids=str)
def test_outputs_and_each_gradient(dtypes) -> None:
    # 19 rows: three blocks each way, with a rest. 150 channels of 128 + 64 lanes.
    check(*leaves(2, 3, 19, 150, dtypes=dtypes), eps=1e-2)


@pytest.mark.parametrize("branch", ["none", "plain", "gated"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 9, 2), (2, 1, 3, 192), (1, 1, 2, 33)])
def test_with_and_without_a_branch(branch, shape) -> None:
    check(*leaves(*shape, dtype=torch.float32), branch=branch, eps=1e-2)


def test_the_widest_row() -> None:
    check(*leaves(1, 1, 3, kernels.MAX_CHANNELS, dtype=torch.float32))


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    B=st.integers(0, 2), T=st.integers(0, 2), S=st.integers(0, 10), C=st.integers(1, 40),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(B, T, S, C, seed) -> None:
    check(*leaves(B, T, S, C, dtype=torch.float32, seed=seed), eps=1e-1)


@pytest.mark.slow
def test_many_row_blocks() -> None:
    # 200 rows, 25 blocks: the second pass walks over two tiles, the last with a rest.
    check(*leaves(1, 1, 200, 5, dtype=torch.float32), eps=1e-1)


@pytest.mark.slow
def test_strided_and_expanded_inputs() -> None:
    (x, y, gate, shift, scale), grads = leaves(2, 3, 5, 12, dtype=torch.float32)
    plain = all_of("triton", [x, y, gate, shift, scale], grads)
    every_other = torch.stack([x, x], -1).flatten(-2)[..., ::2]
    layouts = [
        (x.transpose(1, 2).contiguous().transpose(1, 2), y.transpose(2, 3).contiguous().mT),
        (every_other, torch.cat([y, y], -1)[..., :12]),
    ]
    six = torch.stack([gate, shift, scale], 2)  # as one product makes them: [B, T, 3, C]
    for layout in layouts:
        turned = [g.transpose(0, 1).contiguous().transpose(0, 1) for g in grads]
        got = all_of("triton", [*layout, *six.unbind(2)], turned)
        for name in plain:
            assert torch.equal(got[name], plain[name]), name
    rows = [m[:, :1].expand(2, 3, 12) for m in (gate, shift, scale)]  # a modulation for a clip
    one = torch.full((1, 1, 1), 0.5, device=DEVICE).expand(2, 3, 12)  # one number for all
    same = x[:, :1, :1].expand(2, 3, 5, 12)
    for tensors in ([x, y, *rows], [x, y, one, one, one], [same, same, gate, shift, scale]):
        check(tensors, grads)
        check(tensors, [grads[0][:1, :1, :1, :1].expand_as(x), grads[1]])


def test_a_row_does_not_reach_another() -> None:
    tensors, grads = leaves(1, 3, 18, 20, dtype=torch.float32)
    clean = all_of("triton", tensors, grads)
    tensors[0][0, 1, 5, 3] = torch.nan
    tensors[1][0, 1, 2] = torch.inf
    grads[1][0, 1, 17, 19] = torch.nan
    got = all_of("triton", tensors, grads)
    rows = torch.ones(18, dtype=torch.bool)
    rows[[2, 5, 17]] = False
    for name in clean:
        assert torch.equal(got[name][:, [0, 2]], clean[name][:, [0, 2]]), name
        if got[name].ndim == 4:
            assert torch.equal(got[name][:, 1, rows], clean[name][:, 1, rows]), name
    assert got["out"][0, 1, 5].isnan().all() and got["dx"][0, 1, 17].isnan().all()
    assert got["dshift"][0, 1].isnan().tolist() == [c == 19 for c in range(20)]


def test_outputs_are_fully_written() -> None:
    tensors, grads = leaves(2, 2, 11, 21, dtype=torch.float32)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        results = all_of("triton", tensors, grads)
        statistics = torch.ops.colaworld.adaln_triton(*tensors, 1e-6, F32)[2:]
    finally:
        torch.use_deterministic_algorithms(False)
    for name, result in results.items():
        assert not result.isnan().any(), name
    assert not any(s.isnan().any() for s in statistics)


@pytest.mark.slow
def test_bitwise_equal_over_runs() -> None:
    tensors, grads = leaves(2, 3, 20, 24, dtype=torch.float16)
    first, second = (all_of("triton", tensors, grads) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_one_output_alone() -> None:
    tensors, grads = leaves(1, 2, 3, 8, dtype=torch.float32)
    for which in (0, 1):
        found = []
        for name in ("triton", "reference"):
            x, y, gate, shift, scale = (t.detach().requires_grad_() for t in tensors)
            with ops.force(name):
                outputs = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)
                found.append(torch.autograd.grad(outputs[which], [x, y, gate], grads[which]))
        torch.testing.assert_close(*found)


@needs_float64
def test_gradcheck() -> None:
    tensors, _ = leaves(1, 2, 2, 3, dtype=torch.float64)

    def call(x, y, gate, shift, scale):
        return ops.adaln(x, y, gate=gate, shift=shift, scale=scale, eps=0.1)

    with ops.force("triton"):
        inputs = tuple(t.requires_grad_() for t in tensors)
        assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["none", "gated"])
def test_opcheck(branch) -> None:
    tensors, grads = leaves(2, 2, 3, 5, dtypes=MIXED)
    x, y, gate, shift, scale = (t.requires_grad_() for t in tensors)
    y, gate = (None, None) if branch == "none" else (y, gate)
    op = torch.ops.colaworld.adaln_triton.default
    torch.library.opcheck(op, (x, y, gate, shift, scale, 1e-6, NARROW))
    with torch.no_grad():
        x_out, _, mean, rstd = op(x, y, gate, shift, scale, 1e-6, NARROW)
        stream = x if y is None else x_out
    arguments = (*grads, stream, y, gate, scale, mean, rstd)
    arguments = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
    torch.library.opcheck(torch.ops.colaworld.adaln_backward_triton.default, arguments)


def test_a_second_derivative_is_an_error_that_says_what_to_do() -> None:
    (x, y, gate, shift, scale), _ = leaves(1, 1, 2, 4, dtype=torch.float32)
    x.requires_grad_()
    with ops.force("triton"):
        out = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)[1]
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"within colaworld\.ops\.force"):
            grad.sum().backward()


def test_checkpointing_changes_nothing() -> None:
    tensors, _ = leaves(1, 2, 3, 8, dtype=torch.float32)
    tensors = [t.requires_grad_() for t in tensors]

    def call(x, y, gate, shift, scale):
        x_out, out = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)
        return (x_out + out.sin()).sum()

    with ops.force("triton"):
        plain = torch.autograd.grad(call(*tensors), tensors)
        again = torch.autograd.grad(checkpoint(call, *tensors, use_reentrant=False), tensors)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    def call(x, y, gate, shift, scale):
        x_out, out = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)
        return x_out, out * 2

    with ops.force("triton"):
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        for shape in [(2, 3, 7, 4), (3, 2, 8, 6)]:
            tensors, grads = leaves(*shape, dtype=torch.float32)
            results = []
            for function in (call, compiled):
                inputs = [t.detach().requires_grad_() for t in tensors]
                outputs = function(*inputs)
                results.append([*outputs, *torch.autograd.grad(outputs, inputs, grads)])
            torch.testing.assert_close(results[0], results[1])


def test_refusals_and_errors() -> None:
    empty, wide = torch.zeros(1, 1, 1, 0), torch.zeros(1, 1, 1, kernels.MAX_CHANNELS + 1)
    for x in (empty, wide):
        reasons = {v.name: v.reason for v in ops.explain("adaln", x.to(DEVICE))}
        assert reasons["triton"] == f"C is {x.shape[3]}, it takes 1 to 5120 channels"
        m = torch.zeros(1, 1, x.shape[3], device=DEVICE)
        with pytest.raises(ValueError, match=r"adaln_triton: x: expected .* 1 <= C <= 5120"):
            torch.ops.colaworld.adaln_triton(x.to(DEVICE), None, None, m, m, 1e-6, F32)


@only_gpu
def test_more_than_two_to_the_31_numbers() -> None:
    S = (1 << 31) // 1024 // 2 + 5
    x = torch.randn(1, 2, S, 1024, device=DEVICE, dtype=torch.bfloat16)
    m = torch.randn(1, 2, 1024, device=DEVICE)
    with ops.force("triton"):
        x_out, out = ops.adaln(x, x, gate=m, shift=m, scale=m)
        last = ops.adaln(*[x[:, 1:, -3:]] * 2, gate=m[:, 1:], shift=m[:, 1:], scale=m[:, 1:])
    assert torch.equal(x_out[:, 1:, -3:], last[0]) and torch.equal(out[:, 1:, -3:], last[1])


@only_gpu
def test_a_cuda_graph_replays_it() -> None:
    tensors, grads = leaves(2, 3, 20, 48, dtypes=MIXED)
    expected = all_of("triton", tensors, grads)
    x, y, gate, shift, scale = (t.requires_grad_() for t in tensors)
    graph = torch.cuda.CUDAGraph()
    with ops.force("triton"), torch.cuda.graph(graph):
        outputs = ops.adaln(x, y, gate=gate, shift=shift, scale=scale, out_dtype=BF16)
        found = torch.autograd.grad(outputs, [x, y, gate, shift, scale], grads)
    graph.replay()
    for name, got in zip(NAMES, (*outputs, *found), strict=True):
        assert torch.equal(got, expected[name]), name
