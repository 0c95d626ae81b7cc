"""qkv_norm_rope: the parts of qk_norm_rope, and one gradient, written once.

Not here: what it shares with qk_norm_rope, the forward kernel and the arithmetic (test_qk_norm_rope.py).
"""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.backends.common import aot_autograd

from colaworld import ops
from colaworld.ops import _native

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))
)
needs_cpu = CPU.marks[0]
each = pytest.mark.parametrize("name", ["reference", CPU])
each_norm = pytest.mark.parametrize("norm", [True, False])
each_rotation = pytest.mark.parametrize("rotation", [True, False])
# As in test_qk_norm_rope.py: below these an error is rounding.
FLOOR = {torch.float64: 1e-13, torch.float32: 4 * 2.0**-24, torch.bfloat16: 4 * 2.0**-9}


def leaves(B, L, H, D, *, norm=True, rotation=True, dtype=torch.float32, seed=0):
    """Tensors that need a gradient, the other arguments, and a gradient for each output."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    tensors = {"qkv": draw(B, L, 3, H, D)}
    if norm:
        tensors |= {"q_weight": draw(D), "k_weight": draw(D)}
    rest = {"eps": 1e-2}
    if rotation:
        angle = torch.rand(L, D // 2, generator=g, dtype=torch.float64) * 6.28
        rest["rope"] = (angle.cos(), angle.sin())
    return tensors, rest, [draw(B, L, H, D) for _ in range(3)]


def all_of(name, tensors, rest, grads, *, wide=False):
    """Outputs and gradients by name, computed by one implementation."""
    tensors = {n: (t.double() if wide else t).detach() for n, t in tensors.items()}
    tensors = {n: t.requires_grad_() for n, t in tensors.items()}
    with ops.force(name):
        outputs = ops.qkv_norm_rope(**tensors, **rest)
    grads = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(tensors.values()), grads)
    return {
        **{n: o.detach() for n, o in zip(("q", "k", "v"), outputs, strict=True)},
        **{f"d{n}": g for n, g in zip(tensors, found, strict=True)},
    }


def distance(got, wanted) -> float:
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))


@each
def test_the_parts_are_those_of_qk_norm_rope(name) -> None:
    tensors, rest, _ = leaves(2, 5, 3, 8)
    weights = {n: tensors[n] for n in ("q_weight", "k_weight")}
    with ops.force(name):
        q, k, v = ops.qkv_norm_rope(**tensors, **rest)
        wanted = ops.qk_norm_rope(*tensors["qkv"].unbind(2)[:2], **weights, **rest)
    assert torch.equal(q, wanted[0]) and torch.equal(k, wanted[1])
    assert q.is_contiguous() and k.is_contiguous()
    assert v.data_ptr() == tensors["qkv"][:, :, 2].data_ptr(), "the values are not copied"
    assert v.shape == q.shape and v.stride() == tensors["qkv"][:, :, 2].stride()


@needs_cpu
@each_norm
@each_rotation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7, 2, 2), (2, 35, 3, 8), (1, 3, 2, 72), (1, 70, 1, 46)])
def test_outputs_and_each_gradient(norm, rotation, dtype, shape) -> None:
    case = leaves(*shape, norm=norm, rotation=rotation, dtype=dtype)
    exact = all_of("reference", *case, wide=True)
    plain, ours = all_of("reference", *case), all_of("cpu", *case)
    for name, e in exact.items():
        p, o = plain[name], ours[name]
        assert o.shape == p.shape and o.dtype == p.dtype == dtype, name
        bound = max(2 * distance(p, e), FLOOR[dtype])
        assert distance(o, e) <= bound, (name, distance(o, e), distance(p, e))
    assert ours["dqkv"].is_contiguous()
    assert torch.equal(ours["dqkv"][:, :, 2], case[2][2]), "values have neither norm nor rotation"


@needs_cpu
@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(0, 2), L=st.integers(0, 5), H=st.integers(1, 3), half=st.integers(1, 40),
    norm=st.booleans(), rotation=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(B, L, H, half, norm, rotation, seed) -> None:
    case = leaves(B, L, H, 2 * half, norm=norm, rotation=rotation, dtype=torch.float64, seed=seed)
    exact, ours = all_of("reference", *case), all_of("cpu", *case)
    for name, e in exact.items():
        torch.testing.assert_close(
            ours[name], e, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@each
@each_norm
@each_rotation
def test_gradcheck(name, norm, rotation) -> None:
    tensors, rest, _ = leaves(1, 2, 2, 6, norm=norm, rotation=rotation, dtype=torch.float64)
    keys = list(tensors)

    def call(*values):
        return ops.qkv_norm_rope(**dict(zip(keys, values, strict=True)), **rest)

    with ops.force(name):
        assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in tensors.values()])


@needs_cpu
@each_norm
def test_strided_and_expanded_tensors(norm) -> None:
    tensors, rest, grads = leaves(2, 4, 3, 10, norm=norm)
    expected = all_of("cpu", tensors, rest, grads)
    qkv = tensors["qkv"]

    def same(qkv, grads):
        got = all_of("cpu", {**tensors, "qkv": qkv}, rest, grads)
        for name, e in expected.items():
            assert torch.equal(got[name], e), name

    spread = [g.transpose(1, 2).contiguous().transpose(1, 2) for g in grads]
    same(qkv, spread)  # as an attention with heads ahead of tokens leaves them
    same(qkv.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0), grads)
    same(torch.cat([qkv, qkv], 4)[..., 3:13].roll(3, 4), grads)
    one = [torch.ones(()).expand_as(g) for g in grads]
    copied = all_of("cpu", tensors, rest, [g.contiguous() for g in one])
    got = all_of("cpu", tensors, rest, one)
    assert all(torch.equal(got[name], e) for name, e in copied.items())


@each
@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_output_alone(name, which) -> None:
    tensors, rest, grads = leaves(1, 3, 2, 8, dtype=torch.float64)
    qkv = tensors["qkv"].requires_grad_()
    rest["rope"] = tuple(t.requires_grad_() for t in rest["rope"])
    with ops.force(name):
        out = ops.qkv_norm_rope(**tensors, **rest)[which]
    dqkv, dcos = torch.autograd.grad(out, [qkv, rest["rope"][0]], grads[0], allow_unused=True)
    others = [i for i in range(3) if i != which]
    assert dqkv[:, :, which].any() and not dqkv[:, :, others].any() and dcos is None


@needs_cpu
def test_dtypes_of_weights_and_tables_may_differ_and_autocast_changes_nothing() -> None:
    tensors, rest, grads = leaves(1, 3, 2, 24)
    tensors["qkv"] = tensors["qkv"].bfloat16()
    plain, ours = (all_of(n, tensors, rest, grads) for n in ("reference", "cpu"))
    for name, p in plain.items():
        assert ours[name].dtype == p.dtype, name
        assert distance(ours[name], p.double()) < 2e-2, name
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = all_of("cpu", tensors, rest, grads)
    assert all(torch.equal(cast[name], o) for name, o in ours.items())


@needs_cpu
@each_norm
def test_outputs_are_fully_written(norm) -> None:
    case = leaves(2, 33, 2, 22, norm=norm)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.empty(3).isnan().all()
        results = all_of("cpu", *case)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(result.isfinite().all() for result in results.values())


@needs_cpu
def test_bitwise_equal_over_runs_and_threads() -> None:
    case = leaves(2, 200, 4, 48)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            results.append(all_of("cpu", *case))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(result[name], e) for name, e in results[0].items())


@needs_cpu
@each_norm
def test_opcheck_of_the_backward(norm) -> None:
    tensors, rest, grads = leaves(1, 3, 2, 6, norm=norm)
    cos, sin = (t.float() for t in rest["rope"])
    given = list(tensors.values()) if norm else [None] * 3
    arguments = (*grads, *given, cos, sin, 1e-6)
    torch.library.opcheck(torch.ops.colaworld.qkv_norm_rope_backward.default, arguments)


@needs_cpu
def test_a_second_derivative_is_an_error_that_says_what_to_do() -> None:
    tensors, rest, _ = leaves(1, 2, 1, 4)
    qkv = tensors["qkv"].requires_grad_()
    with ops.force("cpu"):
        out = ops.qkv_norm_rope(**tensors, **rest)[0]
    (grad,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"within colaworld\.ops\.force"):
        grad.sum().backward()


@each
def test_activation_checkpointing(name) -> None:
    tensors, rest, _ = leaves(1, 3, 2, 8)
    keys, values = list(tensors), [t.requires_grad_() for t in tensors.values()]

    def call(*values):
        q, k, v = ops.qkv_norm_rope(**dict(zip(keys, values, strict=True)), **rest)
        return (q * k * v).sin().sum()

    with ops.force(name):
        plain = torch.autograd.grad(call(*values), values)
        kept = torch.utils.checkpoint.checkpoint(call, *values, use_reentrant=False)
        again = torch.autograd.grad(kept, values)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@each
@each_norm
def test_compiles_as_one_graph(name, norm) -> None:
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    with ops.force(name):
        for backend in (count, "aot_eager"):
            torch._dynamo.reset()
            call = torch.compile(ops.qkv_norm_rope, fullgraph=True, dynamic=True, backend=backend)
            for shape in [(2, 4, 5, 12), (6, 9, 8, 12)]:  # no two equal: they would be one symbol
                tensors, rest, grads = leaves(*shape, norm=norm)
                results = []
                for function in (ops.qkv_norm_rope, call):
                    inputs = {n: t.detach().requires_grad_() for n, t in tensors.items()}
                    outputs = function(**inputs, **rest)
                    found = torch.autograd.grad(outputs, list(inputs.values()), grads)
                    results.append([*outputs, *found])
                torch.testing.assert_close(results[0], results[1])
    assert len(graphs) == 1


@needs_cpu
def test_between_attention_and_projection_stands_one_op_and_views() -> None:
    """What the compiled backward of a projection, the prologue and SDPA is made of: no copy."""
    seen = []

    def keep(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    def attention(x, projection, weight):
        qkv = (x @ projection).view(2, 1, 5, 3, 2, 8)
        return ops.st_attention(
            qkv, axis="spatial", q_weight=weight, k_weight=weight, backend="sdpa"
        )

    torch._dynamo.reset()
    x, projection, weight = torch.randn(10, 16), torch.randn(16, 48), torch.randn(8)
    leaves = projection.requires_grad_(), weight.requires_grad_()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    with ops.force("cpu"):
        torch.compile(attention, fullgraph=True, backend=backend)(x, *leaves).sum().backward()
    forward, backward = seen
    views = {f"aten.{name}.default" for name in ("view", "t", "detach", "expand", "alias")}
    views |= {"aten.transpose.int", "aten.unbind.int", "<built-in function getitem>"}
    assert set(forward) - views == {
        "aten.mm.default",
        "colaworld.qk_norm_rope.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
    }
    assert set(backward) - views == {
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
        "colaworld.qkv_norm_rope_backward.default",
        "aten.mm.default",
        "aten.add.Tensor",  # queries and keys share a weight here
    }


def test_errors_name_the_argument() -> None:
    tensors, rest, _ = leaves(2, 3, 2, 6)
    good = {**tensors, **rest}
    cos, sin = rest["rope"]
    for change, message in [
        ({"qkv": good["qkv"][:, :, :2]}, r"qkv: expected \[B, L, 3, H, D\], got \[2, 3, 2, 2, 6\]"),
        ({"qkv": good["qkv"].long()}, "qkv: expected a floating-point tensor, got torch.int64"),
        ({"k_weight": None}, "q_weight and k_weight: expected both or neither, got one"),
        ({"q_weight": torch.ones(12)}, r"q_weight: expected \[6\], got \[12\]"),
        ({"k_weight": torch.ones(1)}, r"k_weight: expected \[6\], got \[1\]"),
        ({"rope": (cos[:, :1], sin)}, r"rope cos: expected \[3, 3\], got \[3, 1\]"),
        ({"rope": (cos, sin[:2])}, r"rope sin: expected \[3, 3\], got \[2, 3\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.qkv_norm_rope(**{**good, **change})
    odd = {"qkv": torch.zeros(1, 1, 3, 1, 3), "rope": (cos, sin)}
    with pytest.raises(ValueError, match="rope: rotates pairs, so qkv needs an even D, got D = 3"):
        ops.qkv_norm_rope(**odd)


@needs_cpu
def test_the_compiled_backward_checks_for_itself() -> None:
    op = torch.ops.colaworld.qkv_norm_rope_backward
    tensors, rest, grads = leaves(2, 3, 2, 6)
    cos, sin = (t.float() for t in rest["rope"])
    good = [*grads, *tensors.values(), cos, sin, 1e-6]
    op(*good)
    for place, change, message in [
        (0, grads[0][:1], r"grad_q: expected \[2, 3, 2, 6\], got \[1, 3, 2, 6\]"),
        (1, grads[1].double(), "grad_k: expected Float, got Double"),
        (2, grads[2][..., :4], r"grad_v: expected \[2, 3, 2, 6\], got \[2, 3, 2, 4\]"),
        (3, None, "qkv: expected with the weights of a norm, and only with them"),
        (3, good[3][:, :, :2], r"qkv: expected \[B, L, 3, H, D\], got \[2, 3, 2, 2, 6\]"),
        (4, None, "qkv: expected with the weights of a norm, and only with them"),
        (5, None, "q_weight and k_weight: expected both or neither"),
        (5, torch.ones(4), r"k_weight: expected \[6\], got \[4\]"),
        (6, cos[:2], r"sin: expected \[2, 3\], got \[3, 3\]"),
        (7, None, "cos and sin: expected both or neither"),
    ]:
        with pytest.raises(ValueError, match="qkv_norm_rope_backward: " + message):
            op(*good[:place], change, *good[place + 1 :])


def random_call(draw):
    """For test_any_call.py."""
    B, L, H = draw.size(3), draw.size(), draw.size(3)
    D = draw.random.choice([2, 8, 16, 6, 7])
    norm = draw.random.random() < 0.5
    options = {
        "q_weight": draw.tensor(D) if norm else None,
        "k_weight": draw.tensor(D) if norm else None,
        "rope": draw.rope(L, max(1, D // 2)),
    }
    qkv = draw.tensor(B, L, 3, H, D)
    return lambda: ops.qkv_norm_rope(qkv, **options)
