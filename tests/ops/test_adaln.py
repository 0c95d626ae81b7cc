"""adaln: every implementation against its formula, and against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colaworld import ops
from colaworld.ops import _native, reference

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))
)
needs_cpu = CPU.marks[0]
each = pytest.mark.parametrize("name", ["reference", CPU])
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
# Dtypes of (x, y, gate shift and scale, out). Those of compiled kernels; then some that torch helps with.
MIXED = (F32, BF16, F32, BF16)  # what training under autocast runs
KERNELS = [(F32, F32, F32, F32), (F64, F64, F64, F64), (BF16, BF16, BF16, BF16), MIXED]
AROUND = [
    (F32, BF16, F32, F32),
    (F32, F32, F32, BF16),
    (F32, F64, F16, F16),
    (F64, F32, BF16, F32),
    (F32, F16, F64, F16),
    (BF16, F32, F32, BF16),
    (BF16, BF16, F32, F32),
]
NAMES = ("x_out", "out", "dx", "dy", "dgate", "dshift", "dscale")

# Below these an error is rounding, whatever plain torch happens to reach: four units in the last
# place of the result's dtype. In float64 plain torch is the measure itself, which rounds as well.
FLOOR = {F64: 1e-13, F32: 4 * 2.0**-24, F16: 4 * 2.0**-11, BF16: 4 * 2.0**-9}


def inputs(B=2, T=3, S=2, C=4, dtype=torch.float64, requires_grad=False):
    g = torch.Generator().manual_seed(3)

    def draw(*shape):
        x = torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype)
        return x.requires_grad_(requires_grad)

    return draw(B, T, S, C), draw(B, T, S, C), draw(B, T, C), draw(B, T, C), draw(B, T, C)


def by_hand(x, y, gate, shift, scale, eps):
    x_out, out = x.clone(), torch.empty_like(x)
    B, T, S, C = x.shape
    for b in range(B):
        for t in range(T):
            for s in range(S):
                row = x[b, t, s].clone()
                if y is not None:
                    row = row + (y[b, t, s] if gate is None else gate[b, t] * y[b, t, s])
                x_out[b, t, s] = row
                centred = row - row.sum() / C
                normed = centred / ((centred * centred).sum() / C + eps).sqrt()
                out[b, t, s] = normed * (1 + scale[b, t]) + shift[b, t]
    return x_out, out


@each
@pytest.mark.parametrize("branch", ["none", "plain", "gated"])
def test_equals_the_formula(name, branch) -> None:
    x, y, gate, shift, scale = inputs()
    y, gate = {"none": (None, None), "plain": (y, None), "gated": (y, gate)}[branch]
    with ops.force(name):
        got = ops.adaln(x, y, gate=gate, shift=shift, scale=scale, eps=1e-2)
    expected = by_hand(x, y, gate, shift, scale, 1e-2)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@each
def test_a_known_row(name) -> None:
    # Row (1, 3): mean 2, deviation 1, so the layer norm is (-1, 1); times 1 + 1, plus 5.
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    one = torch.ones(1, 1, 2)
    with ops.force(name):
        x_out, out = ops.adaln(x, None, shift=5 * one, scale=one, eps=0.0)
    assert x_out is x
    torch.testing.assert_close(out.flatten(), torch.tensor([3.0, 7.0]))


@each
def test_zero_modulation_and_zero_gate_is_the_plain_norm(name) -> None:
    x, y, _, _, _ = inputs(dtype=torch.float32)
    zero = torch.zeros(2, 3, 4)
    with ops.force(name):
        x_out, out = ops.adaln(x, y, gate=zero, shift=zero, scale=zero)
    assert torch.equal(x_out, x)
    expected = torch.nn.functional.layer_norm(x, (4,), eps=1e-6)
    torch.testing.assert_close(out, expected)


@each
def test_the_norm_reads_the_rounded_stream(name) -> None:
    x, y, gate, shift, scale = inputs(dtype=torch.bfloat16)
    with ops.force(name):
        x_out, out = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)
        _, again = ops.adaln(x_out, None, shift=shift, scale=scale)
    assert x_out.dtype == out.dtype == torch.bfloat16
    assert torch.equal(out, again)


def leaves(B, T, S, C, *, dtypes=None, dtype=None, seed=0):
    """[x, y, gate, shift, scale], and a gradient for each output; float32 numbers inside."""
    of_x, of_y, of_tables, of_out = dtypes or (dtype,) * 4
    g = torch.Generator().manual_seed(seed)

    def draw(dtype, *shape):
        return torch.randn(*shape, generator=g).to(dtype)

    tensors = [draw(of_x, B, T, S, C), draw(of_y, B, T, S, C)]
    tensors += [draw(of_tables, B, T, C) for _ in range(3)]
    return tensors, [draw(of_x, B, T, S, C), draw(of_out, B, T, S, C)]


def all_of(name, tensors, grads, *, wide=False, **kwargs):
    """Outputs and gradients in the order of NAMES, computed by one implementation; `out` in the dtype
    of its gradient, everything in float64 when `wide`."""
    grads = [g.double() if wide else g for g in grads]
    tensors = [t.double() if wide else t for t in tensors]
    x, y, gate, shift, scale = (t.detach().requires_grad_() for t in tensors)
    with ops.force(name):
        outputs = ops.adaln(
            x, y, gate=gate, shift=shift, scale=scale, out_dtype=grads[1].dtype, **kwargs
        )
    found = torch.autograd.grad(outputs, [x, y, gate, shift, scale], grads)
    return [*(o.detach() for o in outputs), *found]


def distance(got, wanted, *, least=1e-300) -> float:
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(least))


def assert_close(tensors, grads, *, eps) -> None:
    """The cpu implementation errs at most twice as much as plain torch in the same dtype."""
    kwargs = {"eps": eps}
    least = dict.fromkeys(NAMES, 1e-300)
    if (
        grads[1].shape[-1] <= 2
    ):  # of so few channels the norm leaves next to nothing: its terms cancel
        terms = float((grads[1].double() * (1 + tensors[4].double()[:, :, None])).norm())
        least["dx"] = least["dy"] = max(terms * eps**-0.5, 1e-300)
        least["dgate"] = max(least["dx"] * float(tensors[1].double().norm()), 1e-300)
    exact = all_of("reference", tensors, grads, wide=True, **kwargs)
    plain = all_of("reference", tensors, grads, **kwargs)
    ours = all_of("cpu", tensors, grads, **kwargs)
    for name, e, p, o in zip(NAMES, exact, plain, ours, strict=True):
        assert o.shape == p.shape and o.dtype == p.dtype and o.is_contiguous(), name
        if o.numel():
            far, usual = (distance(one, e, least=least[name]) for one in (o, p))
            assert far <= max(2 * usual, FLOOR[o.dtype]), (name, far, usual)


@needs_cpu
@pytest.mark.parametrize("dtypes", KERNELS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 7, 33), (1, 2, 130, 16), (2, 2, 65, 19)])
def test_outputs_and_each_gradient(dtypes, shape) -> None:
    # eps keeps the norm of two channels from dividing by a difference near zero.
    assert_close(*leaves(*shape, dtypes=dtypes), eps=1e-2)


@needs_cpu
@pytest.mark.parametrize("dtypes", AROUND, ids=str)
def test_dtypes_that_no_kernel_has(dtypes) -> None:
    assert_close(*leaves(2, 2, 5, 20, dtypes=dtypes), eps=1e-2)


@needs_cpu
@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(0, 2), T=st.integers(0, 3), S=st.integers(0, 9), C=st.integers(1, 50),
    dtypes=st.sampled_from(KERNELS), seed=st.integers(0, 99),
)  # fmt: skip
@example(B=1, T=1, S=1, C=1, dtypes=KERNELS[0], seed=62)
def test_any_shape(B, T, S, C, dtypes, seed) -> None:
    assert_close(*leaves(B, T, S, C, dtypes=dtypes, seed=seed), eps=1e-2)


@each
@pytest.mark.parametrize("branch", ["none", "plain", "gated"])
def test_gradcheck(name, branch) -> None:
    tensors, _ = leaves(1, 2, 3, 5, dtype=torch.float64)
    x, y, gate, shift, scale = (t.requires_grad_() for t in tensors)
    y = None if branch == "none" else y
    gate = gate if branch == "gated" else None

    def call(*tensors):
        given = iter(tensors)
        x, shift, scale = next(given), next(given), next(given)
        return ops.adaln(
            x, next(given, None), gate=next(given, None),
            shift=shift, scale=scale, eps=1e-2,
        )  # fmt: skip

    with ops.force(name):
        given = [t for t in (x, shift, scale, y, gate) if t is not None]
        assert torch.autograd.gradcheck(call, given)


@each
@pytest.mark.parametrize("kept", [0, 1])
def test_one_output_alone(name, kept) -> None:
    tensors, grads = leaves(2, 2, 5, 20, dtype=torch.float64)
    x, y, gate, shift, scale = (t.requires_grad_() for t in tensors)
    got = []
    for which in (name, "reference"):
        with ops.force(which):
            output = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)[kept]
        inputs = [x, y, gate, shift, scale]
        got.append(torch.autograd.grad(output, inputs, grads[kept], materialize_grads=True))
    torch.testing.assert_close(got[0], got[1], rtol=1e-10, atol=1e-10)


@each
def test_the_stream_itself_and_its_norm(name) -> None:
    # Without a branch x_out is x: both ways into x are added.
    x = torch.randn(1, 1, 2, 4, dtype=torch.float64, requires_grad=True)
    m = torch.zeros(1, 1, 4, dtype=torch.float64)
    with ops.force(name):
        x_out, out = ops.adaln(x, None, shift=m, scale=m)
    (both,) = torch.autograd.grad((3 * x_out).sum() + (out**2).sum(), x, retain_graph=True)
    (norm,) = torch.autograd.grad((out**2).sum(), x)
    torch.testing.assert_close(both, norm + 3)


@needs_cpu
def test_strided_and_expanded_inputs() -> None:
    tensors, grads = leaves(2, 3, 4, 10, dtype=torch.float32)
    x, y, gate, shift, scale = tensors

    def same(changed, *, grads=grads):
        exact = all_of("cpu", [t.contiguous() for t in changed], [g.contiguous() for g in grads])
        got = all_of("cpu", changed, grads)
        for name, g, e in zip(NAMES, got, exact, strict=True):
            assert torch.equal(g, e), name

    same([x.transpose(1, 2).contiguous().transpose(1, 2), y.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0), gate, shift, scale])  # fmt: skip
    same([torch.cat([x, x], 3)[..., 5:15], torch.cat([y, y], 2)[:, :, ::2], gate, shift, scale])
    same([x[:, :, :1].expand_as(x), y[:1].expand_as(y), gate, shift, scale])
    row = torch.stack([gate[0, 0], shift[0, 0], scale[0, 0]], 1)  # [C, 3]: stride 3 along C
    same([x, y, *(r.expand(2, 3, 10) for r in row.unbind(1))])
    six = torch.cat([gate, shift, scale], 2).view(2, 3, 3, 10).unbind(2)
    same([x, y, *six])
    same(tensors, grads=[grads[0][:1, :1, :1].expand_as(x), torch.ones(()).expand_as(x)])


@each
def test_autocast_chooses_the_dtype_of_out(name) -> None:
    """Its own, as if the product behind had cast it; the stream keeps its dtype."""
    (x, y, gate, shift, scale), _ = leaves(1, 2, 3, 8, dtypes=MIXED)
    tables = {"gate": gate, "shift": shift, "scale": scale}
    with ops.force(name):
        wide = ops.adaln(x, y, **tables, out_dtype=F32)
        for dtype in (BF16, F16):
            with torch.autocast("cpu", dtype=dtype):
                x_out, out = ops.adaln(x, y, **tables)
                kept = ops.adaln(x, y, **tables, out_dtype=F32)[1]
                double = ops.adaln(x.double(), y, **tables)[1]
            assert (x_out.dtype, out.dtype, kept.dtype, double.dtype) == (F32, dtype, F32, F64)
            torch.testing.assert_close(x_out, wide[0])
            assert distance(out, wide[1].to(dtype).double()) <= FLOOR[dtype] / 4
        assert ops.adaln(x, y, **tables)[1].dtype == F32


@each
def test_a_step_under_autocast_is_that_with_a_cast(name) -> None:
    """Values and gradients through products before and behind, with and without `out_dtype`."""
    (x, _, gate, shift, scale), _ = leaves(2, 2, 5, 16, dtype=F32)
    tables = [t.requires_grad_() for t in (gate, shift, scale)]
    before, behind = torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)
    wanted = [*tables, *before.parameters(), *behind.parameters()]
    found = []
    for out_dtype in (None, F32):
        with ops.force(name), torch.autocast("cpu", dtype=BF16):
            x_out, out = ops.adaln(
                x, before(x), gate=gate, shift=shift, scale=scale, out_dtype=out_dtype
            )
            loss = behind(out).float().square().sum() + x_out.square().sum()
        found.append([loss, *torch.autograd.grad(loss, wanted)])
    # The product rounds what it reads and what it hands back either way; sums in another order.
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@needs_cpu
def test_a_frame_does_not_reach_another() -> None:
    tensors, grads = leaves(1, 3, 66, 20, dtype=torch.float32)
    clean = all_of("cpu", tensors, grads)
    tensors[0][0, 1, 65, 3] = torch.nan
    tensors[1][0, 1, 2] = torch.inf
    grads[1][0, 1, 30, 19] = torch.nan
    got = all_of("cpu", tensors, grads)
    rows = torch.ones(66, dtype=torch.bool)
    rows[[2, 30, 65]] = False
    for name, g, c in zip(NAMES, got, clean, strict=True):
        assert torch.equal(g[:, [0, 2]], c[:, [0, 2]]), name
        if g.ndim == 4:  # rows of the same frame are apart as well
            assert torch.equal(g[:, 1, rows], c[:, 1, rows]), name
    assert got[1][0, 1, 65].isnan().all() and got[2][0, 1, 30].isnan().all()
    assert got[5][0, 1].isnan().tolist() == [c == 19 for c in range(20)]  # dshift: column 19


@needs_cpu
def test_outputs_are_fully_written() -> None:
    tensors, grads = leaves(2, 2, 67, 21, dtype=torch.float32)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        results = all_of("cpu", tensors, grads)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, result in zip(NAMES, results, strict=True):
        assert not result.isnan().any(), name


@needs_cpu
@pytest.mark.parametrize("dtypes", KERNELS, ids=str)
def test_bitwise_equal_over_runs_and_threads(dtypes) -> None:
    tensors, grads = leaves(2, 5, 150, 40, dtypes=dtypes)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            results.append(all_of("cpu", tensors, grads))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for name, g, e in zip(NAMES, result, results[0], strict=True):
            assert torch.equal(g, e), name


@needs_cpu
@pytest.mark.parametrize("branch", ["none", "plain", "gated"])
@pytest.mark.parametrize("dtypes", [KERNELS[0], MIXED], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(branch, dtypes, requires_grad) -> None:
    tensors, _ = leaves(2, 2, 3, 5, dtypes=dtypes)
    x, y, gate, shift, scale = (t.requires_grad_(requires_grad) for t in tensors)
    y = None if branch == "none" else y
    gate = gate if branch == "gated" else None
    arguments = (x, y, gate, shift, scale, 1e-6, dtypes[3])
    torch.library.opcheck(torch.ops.colaworld.adaln.default, arguments)


@needs_cpu
@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("dtypes", [KERNELS[0], MIXED], ids=str)
def test_opcheck_of_the_backward(branch, dtypes) -> None:
    tensors, grads = leaves(2, 2, 3, 5, dtypes=dtypes)
    out = dtypes[3]
    x, y, gate, shift, scale = tensors
    x_out, _, mean, rstd = torch.ops.colaworld.adaln(x, y, gate, shift, scale, 1e-6, out)
    y, gate = (y, gate) if branch else (None, None)
    arguments = (*grads, x_out, y, gate, scale, mean, rstd)
    torch.library.opcheck(torch.ops.colaworld.adaln_backward.default, arguments)


@needs_cpu
def test_a_second_derivative_is_an_error_that_says_what_to_do() -> None:
    (x, y, gate, shift, scale), _ = leaves(1, 1, 2, 4, dtype=torch.float64)
    x.requires_grad_()
    with ops.force("cpu"):
        out = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)[1]
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"within colaworld\.ops\.force"):
        grad.sum().backward()


@each
def test_activation_checkpointing(name) -> None:
    tensors, _ = leaves(1, 2, 3, 8, dtype=torch.float32)
    x, y, gate, shift, scale = (t.requires_grad_() for t in tensors)

    def call(*tensors):
        x, y, gate, shift, scale = tensors
        x_out, out = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)
        return (x_out + out.sin()).sum()

    with ops.force(name):
        plain = torch.autograd.grad(call(x, y, gate, shift, scale), tensors)
        kept = torch.utils.checkpoint.checkpoint(
            call, x, y, gate, shift, scale, use_reentrant=False
        )
        again = torch.autograd.grad(kept, tensors)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@each
def test_compiles_as_one_graph(name) -> None:
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    def call(x, y, gate, shift, scale):
        x_out, out = ops.adaln(x, y, gate=gate, shift=shift, scale=scale)
        return x_out, out * 2

    with ops.force(name):
        for backend in (count, "aot_eager"):
            torch._dynamo.reset()
            compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
            for shape in [(2, 3, 7, 4), (3, 2, 8, 6)]:  # no two equal: they would be one symbol
                tensors, grads = leaves(*shape, dtype=torch.float32)
                results = []
                for function in (call, compiled):
                    inputs = [t.detach().requires_grad_() for t in tensors]
                    outputs = function(*inputs)
                    results.append([*outputs, *torch.autograd.grad(outputs, inputs, grads)])
                torch.testing.assert_close(results[0], results[1])
    assert len(graphs) == 1


@needs_cpu
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa) -> None:
    # Sizes around every border: rows shorter than a vector of 2, 4, 8 and 16 lanes, whole and with
    # a rest.
    program = """
import torch
from colaworld import ops
g = torch.Generator().manual_seed(0)
bounds = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}
forms = [(dtype, dtype) for dtype in bounds] + [(torch.float32, torch.bfloat16)]  # of x, of y and out
for dtype, narrow in forms:
  for size in (2, 3, 5, 8, 11, 16, 19, 40):
    shapes = [(1, 2, 6, size)] * 2 + [(1, 2, size)] * 3
    tensors = [torch.randn(*s, generator=g).to(dtype) for s in shapes]
    tensors[1] = tensors[1].to(narrow)
    results = []
    for which in ("cpu", "reference"):
        x, y, gate, shift, scale = inputs = [t.clone().requires_grad_() for t in tensors]
        with ops.force(which):
            outputs = ops.adaln(
                x, y, gate=gate, shift=shift, scale=scale, eps=0.1, out_dtype=narrow
            )
        results.append([*outputs, *torch.autograd.grad(outputs, inputs, tensors[:2])])
    for name, e, p in zip(range(7), *results, strict=True):
        bound, e, p = bounds[e.dtype], e.double(), p.double()
        assert (e - p).norm() <= bound * p.norm().clamp_min(1), (name, dtype, narrow, size)
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "COLAWORLD_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "got '" + isa + "'" in done.stderr:
        pytest.skip(f"this processor or build does not offer {isa}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]


def test_explain_names_the_cpu() -> None:
    verdicts = {v.name: v for v in ops.explain("adaln", torch.zeros(1, 1, 1, 2))}
    assert verdicts["cpu"].would_run == _native.AVAILABLE
    assert verdicts["reference"].would_run != _native.AVAILABLE
    half = {v.name: v.reason for v in ops.explain("adaln", torch.zeros(1, 1, 1, 2).half())}
    empty = {v.name: v.reason for v in ops.explain("adaln", torch.zeros(1, 1, 1, 0))}
    if _native.AVAILABLE:
        assert half["cpu"] == "the dtype is torch.float16, it takes float32, float64 and bfloat16"
        assert empty["cpu"] == "C is 0, it needs at least one channel"


def test_the_reference_adds_up_in_float32() -> None:
    # 2048 channels of 0 and 2048 of 2, mean and deviation 1: a bfloat16 running sum would stop at 512.
    x, zero = torch.tensor([0.0, 2.0]).repeat(2048).bfloat16(), torch.zeros(1, 1, 4096).bfloat16()
    _, out = reference.adaln(x.view(1, 1, 1, 4096), None, None, zero, zero, eps=0.0, out_dtype=BF16)
    assert torch.equal(out.flatten(), x - 1)


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
        ({"out_dtype": torch.int32}, "out_dtype: expected a floating-point dtype, got torch.int32"),
    ]:
        kwargs = {**good, **change}
        with pytest.raises(ValueError, match=message):
            ops.adaln(kwargs.pop("x"), kwargs.pop("y"), **kwargs)


@needs_cpu
def test_the_compiled_op_checks_for_itself() -> None:
    op = torch.ops.colaworld.adaln
    (x, y, gate, shift, scale), _ = leaves(2, 3, 2, 4, dtype=torch.float32)
    good = [x, y, gate, shift, scale, 1e-6, F32]
    for place, change, message in [
        (0, x[0], r"adaln: x: expected \[B, T, S, C\], got \[3, 2, 4\]"),
        (0, x[..., :0], r"adaln: x: expected C >= 1, got \[2, 3, 2, 0\]"),
        (0, x.half(), "adaln: x: expected float32, float64 or bfloat16, got Half"),
        (1, y[:1], r"adaln: y: expected \[2, 3, 2, 4\] as x has, got \[1, 3, 2, 4\]"),
        (1, y.double(), "adaln: y: expected Float as out is, got Double"),
        (6, BF16, "adaln: y: expected BFloat16 as out is, got Float"),
        (6, F64, "adaln: out_dtype: expected Float or BFloat16 beside an x of Float, got Double"),
        (1, None, "adaln: gate: given without a branch y"),
        (2, gate[0], r"adaln: gate: expected \[2, 3, 4\], got \[3, 4\]"),
        (3, shift[..., :1], r"adaln: shift: expected \[2, 3, 4\], got \[2, 3, 1\]"),
        (4, scale.long(), "adaln: scale: expected float32, float64 or bfloat16, got Long"),
    ]:
        arguments = [*good[:place], change, *good[place + 1 :]]
        with pytest.raises(ValueError, match=message):
            op(*arguments)
    back = torch.ops.colaworld.adaln_backward
    x_out, _, mean, rstd = op(*good)
    with pytest.raises(ValueError, match="adaln_backward: grad_x_out: expected Float as x is"):
        back(x.bfloat16(), x, x_out, y, gate, scale, mean, rstd)
    with pytest.raises(ValueError, match="adaln_backward: grad_out: expected Float or BFloat16"):
        back(x, x.double(), x_out, y, gate, scale, mean, rstd)
    with pytest.raises(ValueError, match="adaln_backward: y: expected BFloat16 as out is"):
        back(x, x.bfloat16(), x_out, y, gate, scale, mean, rstd)
    with pytest.raises(ValueError, match="adaln_backward: mean: expected what the forward"):
        back(x, x, x_out, y, gate, scale, mean[:1], rstd)
    with pytest.raises(ValueError, match="adaln_backward: y and gate: expected both or neither"):
        back(x, x, x_out, y, None, scale, mean, rstd)


def random_call(draw):
    """For test_any_call.py."""
    B, T, S, C = draw.size(3), draw.size(4), draw.size(), draw.random.choice([1, 3, 8, 17, 64])
    x, y = draw.tensor(B, T, S, C), draw.maybe(B, T, S, C)
    gate = draw.maybe(B, T, C)
    shift, scale = draw.tensor(B, T, C), draw.tensor(B, T, C)
    return lambda: ops.adaln(x, y, gate=gate, shift=shift, scale=scale)
