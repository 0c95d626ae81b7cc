"""qk_norm_rope: every implementation against its formula, and against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from colaworld import ops
from colaworld.ops import _native

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))
)
needs_cpu = CPU.marks[0]
each = pytest.mark.parametrize("name", ["reference", CPU])
each_norm = pytest.mark.parametrize("norm", ["head", "across", "none"])
each_rotation = pytest.mark.parametrize("rotation", [True, False])

# Below these an error is rounding, whatever plain torch happens to reach: four units in the last
# place of the result's dtype. In float64 plain torch is the measure itself, which rounds as well.
FLOOR = {torch.float64: 1e-13, torch.float32: 4 * 2.0**-24, torch.bfloat16: 4 * 2.0**-9}
POSITIONS = 7  # rows of the tables when a position is given


def leaves(B, L, H, D, *, norm="head", rotation=True, axes=0, dtype=torch.float32, seed=0):
    """Tensors that need a gradient, the other arguments, and a gradient for each output."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    tensors = {"q": draw(B, L, H, D), "k": draw(B, L, H, D)}
    if norm != "none":
        width = H * D if norm == "across" else D
        tensors |= {"q_weight": draw(width), "k_weight": draw(width)}
    rest = {"norm": norm, "eps": 1e-2}
    if rotation:
        angle = (
            torch.rand(POSITIONS if axes else L, D // 2, generator=g, dtype=torch.float64) * 6.28
        )
        rest |= {"rope": (angle.cos(), angle.sin())}
        if axes:
            rest["position"] = torch.randint(POSITIONS, (L, axes), generator=g)
            rest["sections"] = (D // 2 - (axes - 1) * (D // 6), *[D // 6] * (axes - 1))
    return tensors, rest, [draw(B, L, H, D), draw(B, L, H, D)]


def all_of(name, tensors, rest, grads, *, wide=False):
    """Outputs and gradients by name, computed by one implementation."""
    tensors = {n: (t.double() if wide else t).detach() for n, t in tensors.items()}
    tensors = {n: t.requires_grad_() for n, t in tensors.items()}
    with ops.force(name):
        outputs = ops.qk_norm_rope(**tensors, **rest)
    grads = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(tensors.values()), grads)
    return {
        "q_out": outputs[0].detach(),
        "k_out": outputs[1].detach(),
        **{f"d{n}": g for n, g in zip(tensors, found, strict=True)},
    }


def distance(got, wanted) -> float:
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))


def by_hand(x, weight, rest):
    """One token, one head, one pair at a time."""
    out = x.clone()
    B, L, H, D = x.shape
    for b in range(B):
        for t in range(L):
            token = x[b, t]
            if rest["norm"] == "across":
                token = token / ((token**2).sum() / (H * D) + rest["eps"]).sqrt()
                token = token * weight.view(H, D)
            for h in range(H):
                row = token[h]
                if rest["norm"] == "head":
                    row = row / ((row**2).sum() / D + rest["eps"]).sqrt() * weight
                out[b, t, h] = row
                if "rope" not in rest:
                    continue
                cos, sin = rest["rope"]
                axis_of = [a for a, n in enumerate(rest.get("sections", ())) for _ in range(n)]
                for p in range(D // 2):
                    place = rest["position"][t, axis_of[p]] if axis_of else t
                    c, s = cos[place, p], sin[place, p]
                    x0, x1 = row[2 * p], row[2 * p + 1]
                    out[b, t, h, 2 * p] = x0 * c - x1 * s
                    out[b, t, h, 2 * p + 1] = x1 * c + x0 * s
    return out


@each
@each_norm
@each_rotation
@pytest.mark.parametrize("axes", [0, 1, 3])
def test_equals_the_formula(name, norm, rotation, axes) -> None:
    tensors, rest, _ = leaves(
        2, 3, 2, 12, norm=norm, rotation=rotation, axes=axes, dtype=torch.float64
    )
    with ops.force(name):
        q, k = ops.qk_norm_rope(**tensors, **rest)
    for got, x, weight in [(q, "q", "q_weight"), (k, "k", "k_weight")]:
        expected = by_hand(tensors[x], tensors.get(weight), rest)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@each
def test_a_known_token(name) -> None:
    # Mean square of (3, 4) is 12.5; a quarter turn sends (a, b) to (-b, a).
    q = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    rope = (torch.zeros(1, 1), torch.ones(1, 1))
    weight = torch.tensor([1.0, 2.0])
    with ops.force(name):
        out, plain = ops.qk_norm_rope(
            q, q, q_weight=weight, k_weight=weight / weight, eps=0.0, rope=rope
        )
    root = 12.5**0.5
    torch.testing.assert_close(out.flatten(), torch.tensor([-8 / root, 3 / root]))
    torch.testing.assert_close(plain.flatten(), torch.tensor([-4 / root, 3 / root]))


@needs_cpu
@each_norm
@each_rotation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7, 2, 2), (2, 35, 3, 8), (1, 3, 2, 72), (1, 70, 1, 46)])
def test_outputs_and_each_gradient(norm, rotation, dtype, shape) -> None:
    case = leaves(*shape, norm=norm, rotation=rotation, axes=3, dtype=dtype)
    exact = all_of("reference", *case, wide=True)
    plain, ours = all_of("reference", *case), all_of("cpu", *case)
    for name, e in exact.items():
        p, o = plain[name], ours[name]
        assert o.shape == p.shape and o.dtype == p.dtype == dtype and o.is_contiguous(), name
        bound = max(2 * distance(p, e), FLOOR[dtype])
        assert distance(o, e) <= bound, (name, distance(o, e), distance(p, e))


@needs_cpu
@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(0, 2), L=st.integers(0, 5), H=st.integers(1, 3), half=st.integers(1, 40),
    norm=st.sampled_from(["head", "across", "none"]), axes=st.sampled_from([0, 1, 3]),
    rotation=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(B, L, H, half, norm, axes, rotation, seed) -> None:
    case = leaves(
        B, L, H, 2 * half, norm=norm, rotation=rotation, axes=axes, dtype=torch.float64, seed=seed
    )
    exact, ours = all_of("reference", *case), all_of("cpu", *case)
    for name, e in exact.items():
        torch.testing.assert_close(
            ours[name], e, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@needs_cpu
@pytest.mark.parametrize("D", [1, 3, 17, 33])
@each_norm
def test_an_odd_head_without_rotation(norm, D) -> None:
    case = leaves(2, 3, 2, D, norm=norm, rotation=False, dtype=torch.float64)
    exact, ours = all_of("reference", *case), all_of("cpu", *case)
    for name, e in exact.items():
        torch.testing.assert_close(ours[name], e, rtol=1e-10, atol=1e-10)


@each
@each_norm
@each_rotation
def test_gradcheck(name, norm, rotation) -> None:
    tensors, rest, _ = leaves(1, 2, 2, 6, norm=norm, rotation=rotation, axes=3, dtype=torch.float64)
    keys = list(tensors)

    def call(*values):
        return ops.qk_norm_rope(**dict(zip(keys, values, strict=True)), **rest)

    with ops.force(name):
        assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in tensors.values()])


@each
def test_turns_keep_lengths_and_relative_angles(name) -> None:
    # q . k after the rotation depends on the difference of the positions alone.
    from_zero = torch.outer(torch.arange(6.0, dtype=torch.float64), torch.tensor([1.0, 0.1, 0.01]))
    q, k = (torch.randn(1, 1, 1, 6, dtype=torch.float64).expand(1, 6, 1, 6) for _ in range(2))
    with ops.force(name):
        a, b = ops.qk_norm_rope(q, k, norm="none", rope=(from_zero.cos(), from_zero.sin()))
    torch.testing.assert_close(a.norm(dim=-1), q.norm(dim=-1))
    scores = torch.einsum("blhd,bmhd->lm", a, b)
    for offset in range(-5, 6):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert (scores[0] - scores[0, 0]).abs()[1:].min() > 1e-6


@each
def test_into_scaled_dot_product_attention_on_views_of_a_packed_qkv(name) -> None:
    qkv = torch.randn(2, 5, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64)
    q, k, v = qkv.unbind(2)
    results = []
    for which in (name, "reference"):
        with ops.force(which):
            a, b = ops.qk_norm_rope(q, k, q_weight=weight, k_weight=weight)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (a, b, v)))
        results.append((out, *torch.autograd.grad(out.square().sum(), qkv, retain_graph=True)))
    torch.testing.assert_close(results[0], results[1])


@needs_cpu
@each_norm
@each_rotation
def test_strided_and_expanded_inputs(norm, rotation) -> None:
    tensors, rest, grads = leaves(2, 4, 3, 10, norm=norm, rotation=rotation)
    q, k = tensors["q"], tensors["k"]
    expected = all_of("cpu", tensors, rest, grads)

    def same(q, k, grads=grads, expected=expected):
        got = all_of("cpu", {**tensors, "q": q, "k": k}, rest, grads)
        for name, e in expected.items():
            assert torch.equal(got[name], e), name

    same(q.transpose(1, 2).contiguous().transpose(1, 2), k.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0))  # fmt: skip
    same(*torch.stack([q, k, k], 2).unbind(2)[:2])
    same(torch.cat([q, q], 3)[..., 3:13].roll(3, 3), torch.cat([k, k], 2)[:, :, :3])
    spread = [g.transpose(1, 2).contiguous().transpose(1, 2) for g in grads]
    same(q, k, grads=spread)
    one = [torch.ones(()).expand_as(q)] * 2
    same(q, k, grads=one, expected=all_of("cpu", tensors, rest, [g.contiguous() for g in one]))
    wide = q[:1, :1, :1].expand_as(q)
    copied = all_of("cpu", {**tensors, "q": wide.contiguous()}, rest, grads)
    same(wide, k, expected=copied)


@each
@pytest.mark.parametrize("wrong", [POSITIONS, -1])
def test_a_position_outside_of_the_tables(name, wrong) -> None:
    tensors, rest, _ = leaves(1, 4, 1, 8, axes=1)
    rest["position"][2, 0] = wrong
    message = rf"position: expected rows 0 .. P - 1 of tables with P = 7 rows, got {wrong}"
    with ops.force(name), pytest.raises(ValueError, match=message):
        ops.qk_norm_rope(**tensors, **rest)


@each
def test_one_output_alone_and_tables_without_gradient(name) -> None:
    tensors, rest, grads = leaves(1, 3, 2, 8, dtype=torch.float64)
    tensors = {n: t.requires_grad_() for n, t in tensors.items()}
    rest["rope"] = tuple(t.requires_grad_() for t in rest["rope"])
    with ops.force(name):
        q, k = ops.qk_norm_rope(**tensors, **rest)
    inputs = [*tensors.values(), *rest["rope"]]
    dq, dk, dq_weight, dk_weight, dcos, dsin = torch.autograd.grad(
        q, inputs, grads[0], allow_unused=True
    )
    assert dq.any() and dq_weight.any() and dcos is None and dsin is None
    assert dk is None or not dk.any()
    assert dk_weight is None or not dk_weight.any()
    assert k.shape == q.shape


@needs_cpu
def test_dtypes_of_weights_and_tables_may_differ() -> None:
    tensors, rest, grads = leaves(1, 3, 2, 24)
    tensors = {n: t.bfloat16() if n in "qk" else t for n, t in tensors.items()}
    exact = all_of("reference", tensors, rest, grads, wide=True)
    plain, ours = (all_of(n, tensors, rest, grads) for n in ("reference", "cpu"))
    for name, e in exact.items():
        assert ours[name].dtype == plain[name].dtype, name
        bound = max(2 * distance(plain[name], e), FLOOR[torch.bfloat16])
        assert distance(ours[name], e) <= bound, name


@needs_cpu
@each_norm
@each_rotation
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bfloat16_rounds_once_and_the_reference_up_to_three_times(norm, rotation, seed) -> None:
    tensors, rest, grads = leaves(
        2, 20, 3, 72, norm=norm, rotation=rotation, dtype=torch.bfloat16, seed=seed
    )
    exact = all_of("reference", tensors, rest, grads, wide=True)
    plain, ours = (all_of(n, tensors, rest, grads) for n in ("reference", "cpu"))
    roundings = (0 if norm == "none" else 2) + rotation
    for name in ("q_out", "k_out"):
        e = exact[name]
        unit = 2.0**-8 * e.abs()
        if rotation:  # it mixes a pair, and what was rounded before with it
            pairs = e.unflatten(-1, (-1, 2))
            unit = 2.0**-8 * pairs.norm(dim=-1, keepdim=True).expand_as(pairs).flatten(-2)
        slack = unit / 64  # the float32 arithmetic before a rounding, and products of roundings
        gap_of_ours, gap_of_plain = (x[name].double() - e for x in (ours, plain))
        assert (gap_of_ours.abs() <= unit + slack).all(), name
        assert (gap_of_plain.abs() <= roundings * unit + slack).all(), name


@needs_cpu
def test_autocast_changes_nothing() -> None:
    tensors, rest, grads = leaves(1, 3, 2, 8)
    plain = all_of("cpu", tensors, rest, grads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = all_of("cpu", tensors, rest, grads)
    assert all(torch.equal(cast[n], p) for n, p in plain.items())


@needs_cpu
@pytest.mark.parametrize("norm", ["head", "across"])
def test_a_token_does_not_reach_another(norm) -> None:
    tensors, rest, grads = leaves(2, 40, 3, 20, norm=norm)
    clean = all_of("cpu", tensors, rest, grads)
    tensors["q"][1, 7, 2, 19] = torch.nan
    grads[1][0, 5, 1, 3] = torch.inf
    got = all_of("cpu", tensors, rest, grads)
    for name, bad in [("q_out", (1, 7)), ("dq", (1, 7)), ("dk", (0, 5))]:
        sound = torch.ones(2, 40, 3, dtype=torch.bool)
        sound[bad] = False
        if norm == "head":  # the other heads of the token are apart as well
            sound[bad] = torch.arange(3) != (2 if name != "dk" else 1)
        assert torch.equal(got[name][sound], clean[name][sound]), name
        assert not got[name][~sound].isfinite().any(), name
    assert torch.equal(got["k_out"], clean["k_out"])
    assert got["dq_weight"].isnan().any() and not got["dk_weight"].isfinite().all()


@needs_cpu
@each_norm
@each_rotation
def test_outputs_are_fully_written(norm, rotation) -> None:
    case = leaves(2, 33, 2, 22, norm=norm, rotation=rotation, axes=3)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        results = all_of("cpu", *case)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, result in results.items():
        assert not result.isnan().any(), name


@needs_cpu
@pytest.mark.parametrize("norm", ["head", "across"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitwise_equal_over_runs_and_threads(norm, dtype) -> None:
    case = leaves(2, 200, 4, 48, norm=norm, dtype=dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            results.append(all_of("cpu", *case))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for name, e in results[0].items():
            assert torch.equal(result[name], e), name


@needs_cpu
@each_norm
@each_rotation
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(norm, rotation, requires_grad) -> None:
    tensors, rest, _ = leaves(1, 3, 2, 6, norm=norm, rotation=rotation, axes=3)
    q, k, *weights = (t.requires_grad_(requires_grad) for t in tensors.values())
    cos, sin = (t.float() for t in rest["rope"]) if rotation else (None, None)
    arguments = (
        q, k, *(weights or (None, None)), cos, sin, rest.get("position"), rest.get("sections", ()),
        1e-6, norm == "across",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.colaworld.qk_norm_rope.default, arguments)


@needs_cpu
@pytest.mark.parametrize("norm", ["head", "none"])
def test_opcheck_of_the_backward(norm) -> None:
    tensors, rest, grads = leaves(1, 3, 2, 6, norm=norm)
    cos, sin = (t.float() for t in rest["rope"])
    normed = list(tensors.values()) if norm == "head" else [None] * 4
    arguments = (*grads, *normed, cos, sin, None, (), 1e-6, False)
    torch.library.opcheck(torch.ops.colaworld.qk_norm_rope_backward.default, arguments)


@needs_cpu
def test_a_second_derivative_is_an_error_that_says_what_to_do() -> None:
    tensors, rest, _ = leaves(1, 2, 1, 4)
    q = tensors["q"].requires_grad_()
    with ops.force("cpu"):
        out = ops.qk_norm_rope(**tensors, **rest)[0]
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"within colaworld\.ops\.force"):
        grad.sum().backward()


@each
def test_activation_checkpointing(name) -> None:
    tensors, rest, _ = leaves(1, 3, 2, 8)
    keys, values = list(tensors), [t.requires_grad_() for t in tensors.values()]

    def call(*values):
        q, k = ops.qk_norm_rope(**dict(zip(keys, values, strict=True)), **rest)
        return (q * k).sin().sum()

    with ops.force(name):
        plain = torch.autograd.grad(call(*values), values)
        kept = torch.utils.checkpoint.checkpoint(call, *values, use_reentrant=False)
        again = torch.autograd.grad(kept, values)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@each
@pytest.mark.parametrize(
    ("norm", "axes"),
    [("head", 0), ("across", 3), pytest.param("none", 1, marks=pytest.mark.slow)],
)
def test_compiles_as_one_graph(name, norm, axes) -> None:
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    with ops.force(name):
        for backend in (count, "aot_eager"):
            torch._dynamo.reset()
            call = torch.compile(ops.qk_norm_rope, fullgraph=True, dynamic=True, backend=backend)
            for shape in [(2, 4, 5, 12), (3, 9, 8, 12)]:  # no two equal: they would be one symbol
                tensors, rest, grads = leaves(*shape, norm=norm, axes=axes)
                results = []
                for function in (ops.qk_norm_rope, call):
                    inputs = {n: t.detach().requires_grad_() for n, t in tensors.items()}
                    outputs = function(**inputs, **rest)
                    found = torch.autograd.grad(outputs, list(inputs.values()), grads)
                    results.append([*outputs, *found])
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
for dtype in bounds:
  for size in (2, 4, 6, 8, 12, 16, 18, 24, 40, 72):
    draw = lambda *shape: torch.randn(*shape, generator=g).to(dtype)
    tensors = [draw(1, 3, 2, size), draw(1, 3, 2, size), draw(size), draw(size)]
    angle = torch.rand(3, size // 2, generator=g)
    rope = (angle.cos(), angle.sin())
    results = []
    for which in ("cpu", "reference"):
        q, k, a, b = inputs = [t.clone().requires_grad_() for t in tensors]
        with ops.force(which):
            outputs = ops.qk_norm_rope(q, k, q_weight=a, k_weight=b, rope=rope, eps=0.1)
        results.append([*outputs, *torch.autograd.grad(outputs, inputs, tensors[:2])])
    for name, e, p in zip(range(6), *results, strict=True):
        e, p = e.double(), p.double()
        assert (e - p).norm() <= bounds[dtype] * p.norm().clamp_min(1), (name, dtype, size)
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
    verdicts = {v.name: v for v in ops.explain("qk_norm_rope", torch.zeros(1, 1, 1, 2))}
    assert verdicts["cpu"].would_run == _native.AVAILABLE
    assert verdicts["reference"].would_run != _native.AVAILABLE
    half = {v.name: v.reason for v in ops.explain("qk_norm_rope", torch.zeros(1, 1, 1, 2).half())}
    if _native.AVAILABLE:
        assert half["cpu"] == "the dtype is torch.float16, it takes float32, float64 and bfloat16"


def test_errors_name_the_argument() -> None:
    tensors, rest, _ = leaves(2, 3, 2, 6, axes=3)
    good = {**tensors, **rest}
    cos, sin = rest["rope"]
    for change, message in [
        ({"q": good["q"][0]}, r"q: expected \[B, L, H, D\], got \[3, 2, 6\]"),
        ({"q": good["q"].long()}, "q: expected a floating-point tensor, got torch.int64"),
        ({"k": good["k"][:, :1]}, r"k: expected \[2, 3, 2, 6\], got \[2, 1, 2, 6\]"),
        ({"k": good["k"].double()}, "k: expected torch.float32 as q is, got torch.float64"),
        ({"norm": "layer"}, "norm: expected 'head', 'across' or 'none', got 'layer'"),
        ({"norm": "none"}, "q_weight: expected None for norm='none'"),
        ({"k_weight": None}, "k_weight: expected a weight for norm='head'"),
        ({"norm": "across"}, r"q_weight: expected \[12\], got \[6\]"),
        ({"rope": None}, "position: given without the tables"),
        ({"rope": (cos[:, :1], sin)}, r"rope cos: expected \[7, 3\], got \[7, 1\]"),
        ({"rope": (cos, sin[:6])}, r"rope sin: expected \[7, 3\], got \[6, 3\]"),
        ({"position": None, "sections": None}, r"rope cos: expected \[3, 3\], got \[7, 3\]"),
        ({"position": None, "rope": (cos[:3], sin[:3])}, "sections: given without a position"),
        ({"position": good["position"][:2]}, r"position: expected \[3, 3\], got \[2, 3\]"),
        ({"position": good["position"].int()}, "position: expected .* int64, got .* torch.int32"),
        ({"sections": None}, "sections: expected 3 counts for the 3 axes"),
        (
            {"sections": (2, 2, 2)},
            r"sections: expected counts that sum to D/2 = 3, got \(2, 2, 2\)",
        ),
        ({"sections": (1, 2)}, r"position: expected \[3, 2\], got \[3, 3\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.qk_norm_rope(**{**good, **change})
    odd = torch.zeros(1, 1, 1, 3)
    with pytest.raises(ValueError, match="rope: rotates pairs, so q needs an even D, got D = 3"):
        ops.qk_norm_rope(odd, odd, norm="none", rope=(cos, sin))


@needs_cpu
def test_the_compiled_op_checks_for_itself() -> None:
    op = torch.ops.colaworld.qk_norm_rope
    tensors, rest, grads = leaves(2, 3, 2, 6, axes=3)
    cos, sin = (t.float() for t in rest["rope"])
    good = [*tensors.values(), cos, sin, rest["position"], (1, 1, 1), 1e-6, False]
    op(*good)
    q, k, position = good[0], good[1], good[6]
    for place, change, message in [
        (0, q[0], r"qk_norm_rope: q: expected \[B, L, H, D\], got \[3, 2, 6\]"),
        (0, q.half(), "qk_norm_rope: q: expected float32, float64 or bfloat16, got Half"),
        (0, q[:, :, :0], r"qk_norm_rope: q?k?: expected .*"),
        (1, k[:1], r"qk_norm_rope: k: expected \[2, 3, 2, 6\], got \[1, 3, 2, 6\]"),
        (1, k.double(), "qk_norm_rope: k: expected Float, got Double"),
        (2, None, "qk_norm_rope: q_weight and k_weight: expected both or neither"),
        (2, torch.ones(5), r"qk_norm_rope: q_weight: expected \[6\], got \[5\]"),
        (3, torch.ones(6).double(), "qk_norm_rope: k_weight: expected Float, got Double"),
        (4, None, "qk_norm_rope: cos and sin: expected both or neither"),
        (4, cos[:, :2], r"qk_norm_rope: cos: expected \[7, 3\], got \[7, 2\]"),
        (5, sin[:3], r"qk_norm_rope: sin: expected \[7, 3\], got \[3, 3\]"),
        (6, None, "qk_norm_rope: cos: expected 3 rows, one for each token, got 7"),
        (6, position[:2], r"qk_norm_rope: position: expected \[3, 3\], got \[2, 3\]"),
        (6, position.int(), "qk_norm_rope: position: expected int64, got Int"),
        (6, position + 7, r"qk_norm_rope: position: expected rows 0 .. P - 1 of tables with P = 7"),
        (
            7,
            (1, 1, 2),
            "qk_norm_rope: sections: expected counts that sum to D/2 = 3, got a sum of 4",
        ),
        (7, (4, -1, 0), "qk_norm_rope: sections: expected counts that sum to D/2 = 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            op(*good[:place], change, *good[place + 1 :])
    back = torch.ops.colaworld.qk_norm_rope_backward
    with pytest.raises(
        ValueError, match="qk_norm_rope_backward: grad_k: expected Float, got Double"
    ):
        back(grads[0], grads[1].double(), *good)
    with pytest.raises(
        ValueError, match="qk_norm_rope_backward: q and k: expected with the weights"
    ):
        back(*grads, None, None, *good[2:])


def random_call(draw):
    """For test_any_call.py."""
    B, L, H = draw.size(3), draw.size(), draw.size(3)
    D = draw.random.choice([2, 8, 16, 6, 7])
    norm = draw.random.choice(["head", "across", "none"])
    width = H * D if norm == "across" else D
    q, k = draw.tensor(B, L, H, D), draw.tensor(B, L, H, D)
    options = {
        "q_weight": None if norm == "none" else draw.tensor(width),
        "k_weight": None if norm == "none" else draw.tensor(width),
        "norm": norm,
        "rope": draw.rope(L, max(1, D // 2)),
    }
    return lambda: ops.qk_norm_rope(q, k, **options)
