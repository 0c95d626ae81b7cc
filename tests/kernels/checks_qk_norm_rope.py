"""Checks of qk_norm_rope in Triton, run by test_qk_norm_rope.py: see conftest.py.

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

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float64 if INTERPRETED else torch.bfloat16, torch.float16)
# Under the interpreter one dtype is seconds: the others run with what is slow.
EACH_DTYPE = [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])]
# A few units in the last place: the reference rounds at other points than the kernel.
FLOOR = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
POSITIONS = 7  # rows of the tables where positions name them
NAMES = ("q", "k", "q_weight", "k_weight")

each_norm = pytest.mark.parametrize("norm", ["head", "across", "none"])
each_rotation = pytest.mark.parametrize("rotation", [True, False])


def leaves(shape, dtype, *, norm="head", rotation=True, axes=0, seed=0):
    """[q, k, q_weight, k_weight] and the other arguments of the public function."""
    generator = torch.Generator().manual_seed(seed)
    B, L, H, D = shape
    to = {"device": DEVICE, "dtype": dtype}
    wide = {"generator": generator, "dtype": torch.float64}
    q, k = torch.randn(2, B, L, H, D, **wide).to(**to).unbind()
    weights = (None, None)
    if norm != "none":
        width = H * D if norm == "across" else D
        weights = (torch.rand(2, width, **wide) + 0.5).to(**to).unbind()
    rest = {"norm": norm, "eps": 1e-5}
    if rotation:
        rows = POSITIONS if axes else L
        angles = torch.randn(rows, D // 2, **wide)
        rest |= {"rope": (angles.cos().to(**to), angles.sin().to(**to))}
    if rotation and axes:
        position = torch.randint(0, POSITIONS, (L, axes), generator=generator)
        cut = D // 2 // axes
        rest |= {
            "position": position.to(DEVICE),
            "sections": (D // 2 - cut * (axes - 1), *(cut,) * (axes - 1)),
        }
    inputs = [x if x is None else x.clone().requires_grad_() for x in (q, k, *weights)]
    return inputs, rest


def all_of(name, inputs, rest, grads=None, *, wide=False):
    """Outputs and gradients of the implementation called `name`, by name."""
    if wide:
        inputs = [x if x is None else x.detach().double().requires_grad_() for x in inputs]
        grads = None if grads is None else [g.double() for g in grads]
        if "rope" in rest:
            rest = rest | {"rope": tuple(t.double() for t in rest["rope"])}
    q, k, q_weight, k_weight = inputs
    with ops.force(name):
        outs = ops.qk_norm_rope(q, k, q_weight=q_weight, k_weight=k_weight, **rest)
    found = {"q_out": outs[0].detach(), "k_out": outs[1].detach()}
    if grads is not None:
        names = [n for n, x in zip(NAMES, inputs, strict=True) if x is not None]
        wanted = [x for x in inputs if x is not None]
        found |= dict(zip(names, torch.autograd.grad(outs, wanted, grads), strict=True))
    return found


def gradients(shape, dtype, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(2)]


def distance(got, wanted) -> float:
    """Of two tensors, relative to the second."""
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def check(shape, dtype, **settings_of) -> None:
    """Each output and gradient against the reference in float64, by name."""
    inputs, rest = leaves(shape, dtype, **settings_of)
    grads = gradients(shape, dtype)
    got = all_of("triton", inputs, rest, grads)
    same = all_of("reference", inputs, rest, grads)
    wanted = all_of("reference", inputs, rest, grads, wide=True)
    for name in wanted:
        assert got[name].dtype == same[name].dtype, name
        assert got[name].shape == same[name].shape, name
        assert got[name].is_contiguous(), name
        bound = max(2 * distance(same[name], wanted[name]), FLOOR[dtype])
        assert distance(got[name], wanted[name]) <= bound, name


@each_norm
@each_rotation
@pytest.mark.parametrize("dtype", EACH_DTYPE, ids=str)
@pytest.mark.parametrize(
    ("shape", "axes"), [((2, 3, 3, 8), 0), ((1, 2, 2, 72), 1), ((1, 3, 5, 46), 3)]
)
def test_outputs_and_each_gradient(norm, rotation, dtype, shape, axes) -> None:
    check(shape, dtype, norm=norm, rotation=rotation, axes=axes)


@pytest.mark.parametrize("shape", [(1, 2, 12, 128), (1, 2, 16, 72), (1, 1, 12, 64)])
@pytest.mark.parametrize("norm", ["head", "across"])
def test_the_sizes_of_the_models(norm, shape) -> None:
    check(shape, torch.float32, norm=norm, axes=3)


@pytest.mark.parametrize("D", [1, 3, 17])
@pytest.mark.parametrize("norm", ["head", "across"])
def test_an_odd_head_without_rotation(norm, D) -> None:
    check((1, 3, 2, D), torch.float32, norm=norm, rotation=False)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(
        st.integers(1, 2), st.integers(1, 4), st.integers(1, 5),
        st.integers(1, 20).map(lambda n: 2 * n),
    ),
    norm=st.sampled_from(["head", "across", "none"]),
    rotation=st.booleans(),
    axes=st.integers(0, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(shape, norm, rotation, axes, seed) -> None:
    check(shape, torch.float32, norm=norm, rotation=rotation, axes=axes, seed=seed)


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8)])
def test_empty(shape) -> None:
    inputs, rest = leaves(shape, torch.float32)
    got = all_of("triton", inputs, rest, gradients(shape, torch.float32))
    assert got["q_out"].shape == got["k_out"].shape == got["q"].shape == shape
    assert (got["q_weight"] == 0).all()
    assert (got["k_weight"] == 0).all()


def test_an_axis_without_pairs() -> None:
    """Sections may be empty, at either end and between."""
    inputs, rest = leaves((1, 3, 1, 8), torch.float32, axes=3)
    for sections in ((0, 4, 0), (4, 0, 0), (0, 0, 4), (2, 0, 2)):
        chosen = rest | {"sections": sections}
        got = all_of("triton", inputs, chosen)
        wanted = all_of("reference", inputs, chosen, wide=True)
        assert distance(got["q_out"], wanted["q_out"]) < 1e-6, sections


@pytest.mark.slow
@each_norm
@each_rotation
def test_strided_and_expanded_inputs(norm, rotation) -> None:
    B, L, H, D = 2, 3, 2, 8
    inputs, rest = leaves((B, L, H, D), torch.float32, norm=norm, rotation=rotation)
    grads = gradients((B, L, H, D), torch.float32)
    wanted = all_of("triton", inputs, rest, grads)
    packed = torch.zeros(B, L, 3, H, D, device=DEVICE)
    every_other = torch.zeros(L, H, B, 2 * D, device=DEVICE)[..., ::2].permute(2, 0, 1, 3)
    views = packed.unbind(2)[:2], (every_other, packed[:, :, 2])
    for q, k in views:
        q.copy_(inputs[0].detach())
        k.copy_(inputs[1].detach())
        again = [q.detach().requires_grad_(), k.detach().requires_grad_(), *inputs[2:]]
        got = all_of(
            "triton", again, rest, [g.transpose(1, 2).clone().transpose(1, 2) for g in grads]
        )
        for name in wanted:
            assert torch.equal(got[name], wanted[name]), name
    wide = [inputs[0].detach()[:, :1, :1].expand(B, L, H, D), inputs[1].detach()]
    got = all_of("triton", [*(x.requires_grad_() for x in wide), *inputs[2:]], rest, grads)
    wide = [x.detach().clone(memory_format=torch.contiguous_format) for x in wide]
    wanted = all_of("triton", [*(x.requires_grad_() for x in wide), *inputs[2:]], rest, grads)
    for name in wanted:
        assert torch.equal(got[name], wanted[name]), name


def test_into_scaled_dot_product_attention_on_views_of_a_packed_qkv() -> None:
    """The gradient of the packed tensor, through the prologue and torch's attention."""
    B, L, H, D = 1, 4, 2, 8
    inputs, rest = leaves((B, L, H, D), torch.float32)
    generator = torch.Generator().manual_seed(5)
    qkv = torch.randn(B, L, 3, H, D, generator=generator).to(DEVICE).requires_grad_()
    found = []
    for name in ("triton", "reference"):
        q, k, v = qkv.unbind(2)
        with ops.force(name):
            q, k = ops.qk_norm_rope(q, k, q_weight=inputs[2], k_weight=inputs[3], **rest)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        found.append(torch.autograd.grad(out.square().sum(), qkv)[0])
    assert distance(found[0], found[1].double()) < 1e-5


@pytest.mark.parametrize("part", [0, 1, "grad"])
@pytest.mark.parametrize("norm", ["head", "across"])
def test_a_nan_stays_in_its_token(norm, part) -> None:
    shape = (1, 5, 3, 8)
    inputs, rest = leaves(shape, torch.float32, norm=norm)
    grads = gradients(shape, torch.float32)
    clean = all_of("triton", inputs, rest, grads)
    with torch.no_grad():
        (grads[0] if part == "grad" else inputs[part])[0, 2, 1, 3] = float("nan")
    got = all_of("triton", inputs, rest, grads)
    touched = {"q", "q_out"} if part == 0 else {"k", "k_out"} if part == 1 else {"q"}
    elsewhere = torch.tensor([0, 1, 3, 4], device=DEVICE)
    for name in ("q_out", "k_out", "q", "k"):
        same = torch.equal(got[name][:, elsewhere], clean[name][:, elsewhere])
        assert same, name
        assert got[name][0, 2].isnan().any() == (name in touched), name
        if norm == "head":
            assert got[name][0, 2, [0, 2]].isfinite().all(), "the other heads of the token"


def test_zeros_without_eps_leave_the_weights_of_others_alone() -> None:
    """Padding heads (3 of 4) are rows of zeros: with eps = 0 their 0 / 0 must not reach a sum."""
    shape = (1, 2, 3, 8)
    inputs, rest = leaves(shape, torch.float32)
    got = all_of("triton", inputs, rest | {"eps": 0.0}, gradients(shape, torch.float32))
    for name, tensor in got.items():
        assert tensor.isfinite().all(), name


@each_norm
@each_rotation
def test_outputs_are_fully_written(norm, rotation) -> None:
    shape = (1, 3, 3, 10)
    inputs, rest = leaves(shape, torch.float32, norm=norm, rotation=rotation)
    torch.use_deterministic_algorithms(True)
    try:
        assert inputs[0].new_empty((4,)).isnan().all(), "new memory is poisoned"
        got = all_of("triton", inputs, rest, gradients(shape, torch.float32))
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in got.items():
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("norm", ["head", "across"])
def test_bitwise_equal_over_runs(norm) -> None:
    shape = (2, 5, 3, 8)
    inputs, rest = leaves(shape, torch.float32, norm=norm)
    grads = gradients(shape, torch.float32)
    first, second = (all_of("triton", inputs, rest, grads) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["head", "across"])
def test_several_tokens_of_one_program(norm, monkeypatch) -> None:
    from colaworld.kernels import qk_norm_rope as kernels

    shape = (2, 5, 3, 8)
    inputs, rest = leaves(shape, torch.float32, norm=norm)
    grads = gradients(shape, torch.float32)
    wanted = all_of("triton", inputs, rest, grads)
    for programs in (1, 4):
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        got = all_of("triton", inputs, rest, grads)
        assert torch.equal(got["q"], wanted["q"])
        assert torch.equal(got["k"], wanted["k"])
        for name in NAMES[2:]:
            assert distance(got[name], wanted[name].double()) < 1e-6, name


@pytest.mark.skipif(not INTERPRETED, reason="float64 runs in the interpreter alone")
@each_norm
@each_rotation
def test_gradcheck(norm, rotation) -> None:
    inputs, rest = leaves((1, 2, 2, 4), torch.float64, norm=norm, rotation=rotation)

    def run(q, k, *weights):
        q_weight, k_weight = weights or (None, None)
        with ops.force("triton"):
            return ops.qk_norm_rope(q, k, q_weight=q_weight, k_weight=k_weight, **rest)

    torch.autograd.gradcheck(run, [x for x in inputs if x is not None], fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["head", "none"])
def test_opcheck(norm) -> None:
    inputs, rest = leaves((1, 2, 2, 8), torch.float32, norm=norm)
    options = ((), 1e-5, False)
    arguments = (*inputs, *rest["rope"], None, *options)
    torch.library.opcheck(torch.ops.colaworld.qk_norm_rope_triton, arguments)
    detached = [x if x is None else x.detach() for x in inputs]
    grads = gradients((1, 2, 2, 8), torch.float32)
    arguments = (*grads, *detached, *rest["rope"], None, *options)
    torch.library.opcheck(torch.ops.colaworld.qk_norm_rope_backward_triton, arguments)


def test_a_second_derivative_is_an_error_that_says_what_to_do() -> None:
    inputs, rest = leaves((1, 2, 1, 8), torch.float32)
    with ops.force("triton"):
        out, _ = ops.qk_norm_rope(
            inputs[0], inputs[1], q_weight=inputs[2], k_weight=inputs[3], **rest
        )
    (first,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"force\('reference'\)"):
        first.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("norm", "axes"), [("head", 0), ("across", 3), ("none", 1)])
def test_compiles_as_one_graph(norm, axes, dynamic) -> None:
    torch.compiler.reset()

    def run(q, k, q_weight, k_weight, options):
        return ops.qk_norm_rope(2 * q, 3 * k, q_weight=q_weight, k_weight=k_weight, **options)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((1, 3, 2, 8), (2, 4, 2, 8)):
        inputs, rest = leaves(shape, torch.float32, norm=norm, axes=axes)
        with ops.force("triton"):
            got, wanted = compiled(*inputs, rest), run(*inputs, rest)
        there = [x for x in inputs if x is not None]
        grads = [
            torch.autograd.grad(sum(o.square().sum() for o in outs), there)
            for outs in (got, wanted)
        ]
        for a, b in zip((*got, *grads[0]), (*wanted, *grads[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_activation_checkpointing() -> None:
    inputs, rest = leaves((1, 3, 2, 8), torch.float32)

    def run(q, k, q_weight, k_weight):
        with ops.force("triton"):
            q, k = ops.qk_norm_rope(q, k, q_weight=q_weight, k_weight=k_weight, **rest)
        return q.square() + k

    wanted = torch.autograd.grad(run(*inputs).sum(), inputs)
    got = torch.autograd.grad(checkpoint(run, *inputs, use_reentrant=False).sum(), inputs)
    for name, a, b in zip(NAMES, got, wanted, strict=True):
        assert torch.equal(a, b), name


def test_autocast_and_weights_of_another_dtype() -> None:
    inputs, rest = leaves((1, 3, 2, 8), torch.float32)
    wanted = all_of("triton", inputs, rest)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = all_of("triton", inputs, rest)
    assert torch.equal(got["q_out"], wanted["q_out"])
    narrow = [x.detach().half().requires_grad_() for x in inputs[:2]]
    mixed = all_of("triton", [*narrow, *inputs[2:]], rest, gradients((1, 3, 2, 8), torch.float16))
    assert mixed["q_out"].dtype == torch.float16
    assert mixed["q_weight"].dtype == torch.float32
    assert distance(mixed["q_out"], wanted["q_out"].double()) < 2e-3


@pytest.mark.skipif(
    not INTERPRETED, reason="on a GPU the check is asynchronous and ends the process"
)
@pytest.mark.parametrize("wrong", [POSITIONS, -1])
def test_a_position_outside_of_the_tables(wrong) -> None:
    inputs, rest = leaves((1, 3, 2, 8), torch.float32, axes=1)
    rest["position"][1, 0] = wrong
    with ops.force("triton"), pytest.raises(ValueError, match="position"):
        ops.qk_norm_rope(*inputs[:2], q_weight=inputs[2], k_weight=inputs[3], **rest)


@pytest.mark.parametrize("wrong", [POSITIONS, -1])
def test_the_kernel_reads_nothing_outside_of_the_tables(wrong) -> None:
    from colaworld.kernels import qk_norm_rope as kernels

    inputs, rest = leaves((1, 3, 2, 8), torch.float32, axes=1)
    rest["position"][1, 0] = wrong
    out, _ = kernels.qk_norm_rope(
        *(x.detach() for x in inputs), *rest["rope"], rest["position"], rest["sections"],
        eps=1e-5, across=False,
    )  # fmt: skip
    assert out[0, 1].isnan().all()
    assert out[0, [0, 2]].isfinite().all()


def test_what_it_refuses() -> None:
    q = torch.ones(1, 1, 129, 128, device=DEVICE)
    with ops.force("triton"), pytest.raises(ops.NoImplementationError, match="16384 at most"):
        ops.qk_norm_rope(q, q, norm="none")
    with ops.force("triton"):
        verdicts = {v.name: v for v in ops.explain("qk_norm_rope", q[:, :, :12])}
    assert verdicts["triton"].would_run
