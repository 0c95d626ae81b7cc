"""st_attention, every implementation, against attention written out by hand in float64.

Not here: what only the compiled op has to prove (test_st_attention_cpu.py).
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colaworld import ops
from colaworld.ops import _native

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))
)


@pytest.fixture(params=["reference", CPU], autouse=True)
def implementation(request):
    """Every test of this file runs on every implementation."""
    with ops.force(request.param):
        yield request.param


def by_hand(qkv, axis, causal, q_weight, k_weight, eps, angles, scale):
    """One output vector at a time, with complex numbers for the rotation: slow and plain."""
    B, T, S, _, H, D = qkv.shape
    out = torch.zeros(B, T, S, H, D, dtype=torch.float64)

    def prepare(x, weight, position):
        if weight is not None:
            x = x / torch.sqrt((x * x).sum() / D + eps) * weight
        if angles is not None:
            turned = torch.view_as_complex(x.reshape(-1, 2).contiguous()) * torch.polar(
                torch.ones_like(angles[position]), angles[position]
            )
            x = torch.view_as_real(turned).reshape(-1)
        return x

    for b in range(B):
        for t in range(T):
            for s in range(S):
                here = t if axis == "temporal" else s
                others = range(here + 1 if causal else (T if axis == "temporal" else S))
                for h in range(H):
                    q = prepare(qkv[b, t, s, 0, h], q_weight, here)
                    rows = [qkv[b, o, s] if axis == "temporal" else qkv[b, t, o] for o in others]
                    keys = [
                        prepare(r[1, h], k_weight, o) for r, o in zip(rows, others, strict=True)
                    ]
                    scores = torch.stack([(q * k).sum() * scale for k in keys])
                    weights = torch.exp(scores - scores.max())
                    weights = weights / weights.sum()
                    out[b, t, s, h] = sum(w * r[2, h] for w, r in zip(weights, rows, strict=True))
    return out


@pytest.mark.parametrize("axis", ["spatial", "temporal"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_equals_attention_by_hand(axis, causal, norm, rope, generator) -> None:
    B, T, S, H, D = 2, 3, 5, 2, 6
    wide = {"dtype": torch.float64, "generator": generator}
    qkv = torch.randn(B, T, S, 3, H, D, **wide)
    q_weight, k_weight = (
        (torch.rand(D, **wide) + 0.5, torch.rand(D, **wide)) if norm else (None, None)
    )
    angles = torch.randn(T if axis == "temporal" else S, D // 2, **wide) if rope else None
    got = ops.st_attention(
        qkv,
        axis=axis,
        causal=causal,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=1e-3,
        rope=(angles.cos(), angles.sin()) if rope else None,
        scale=0.7,
    )
    expected = by_hand(qkv, axis, causal, q_weight, k_weight, 1e-3, angles, 0.7)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_default_scale_is_one_over_root_d(generator) -> None:
    qkv = torch.randn(1, 1, 4, 3, 1, 9, generator=generator)
    a = ops.st_attention(qkv, axis="spatial")
    torch.testing.assert_close(a, ops.st_attention(qkv, axis="spatial", scale=1 / math.sqrt(9)))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it stays the same for all
)
@given(
    shape=st.tuples(*[st.integers(0, 2)] + [st.integers(1, 5)] * 2 + [st.integers(1, 3)] * 2),
    axis=st.sampled_from(["spatial", "temporal"]),
    causal=st.booleans(),
)
def test_any_shape_and_strides(shape, axis, causal) -> None:
    B, T, S, H, half = shape
    generator = torch.Generator().manual_seed(7)
    # Heads before the three parts in memory, and every other channel: nothing is contiguous.
    held = torch.randn(T, B, S, H, 3, 4 * half, generator=generator)
    qkv = held.permute(1, 0, 2, 4, 3, 5)[..., ::2]
    got = ops.st_attention(qkv, axis=axis, causal=causal)
    assert got.shape == (B, T, S, H, 2 * half)
    torch.testing.assert_close(got, ops.st_attention(qkv.contiguous(), axis=axis, causal=causal))


@pytest.mark.parametrize("axis", ["spatial", "temporal"])
def test_causal_attention_never_looks_ahead(axis, generator) -> None:
    qkv = torch.randn(1, 4, 4, 3, 2, 4, generator=generator)
    before = ops.st_attention(qkv, axis=axis, causal=True)
    changed = qkv.clone()
    index = (
        (slice(None), slice(2, None))
        if axis == "temporal"
        else (slice(None), slice(None), slice(2, None))
    )
    changed[index] = 100.0
    after = ops.st_attention(changed, axis=axis, causal=True)
    keep = (
        (slice(None), slice(0, 2))
        if axis == "temporal"
        else (slice(None), slice(None), slice(0, 2))
    )
    assert torch.equal(before[keep], after[keep])
    assert not torch.equal(before[index], after[index])


@pytest.mark.parametrize("axis", ["spatial", "temporal"])
def test_nan_stays_in_its_own_sequence(axis, generator) -> None:
    qkv = torch.randn(1, 3, 3, 3, 1, 4, generator=generator)
    qkv[0, 1, 1] = torch.nan
    bad = ops.st_attention(qkv, axis=axis).isnan().any(-1).any(-1)[0]
    expected = torch.zeros(3, 3, dtype=torch.bool)
    if axis == "spatial":
        expected[1] = True
    else:
        expected[:, 1] = True
    assert torch.equal(bad, expected)


def test_gradients(generator) -> None:
    wide = {"dtype": torch.float64, "generator": generator, "requires_grad": True}
    qkv, q_weight, k_weight = (torch.randn(s, **wide) for s in [(1, 2, 3, 3, 1, 2), (2,), (2,)])
    angles = torch.randn(3, 1, dtype=torch.float64, generator=generator)

    def call(qkv, q_weight, k_weight):
        return ops.st_attention(
            qkv,
            axis="spatial",
            causal=True,
            q_weight=q_weight,
            k_weight=k_weight,
            rope=(angles.cos(), angles.sin()),
        )

    assert torch.autograd.gradcheck(call, (qkv, q_weight, k_weight))


def test_bfloat16_norm_and_rotation_run_in_float32(generator) -> None:
    qkv = torch.randn(1, 4, 2, 3, 1, 8, generator=generator).bfloat16()
    weight = torch.ones(8)
    angles = torch.randn(4, 4, generator=generator)
    rope = (angles.cos(), angles.sin())
    kwargs = {"axis": "temporal", "q_weight": weight, "k_weight": weight, "rope": rope}
    got = ops.st_attention(qkv, **kwargs)
    exact = ops.st_attention(qkv.double(), **kwargs)
    assert got.dtype == torch.bfloat16
    assert (got - exact).norm() / exact.norm() < 1e-2


def test_compiles_as_one_graph(generator) -> None:
    torch._dynamo.reset()
    qkv = torch.randn(2, 3, 4, 3, 2, 4, generator=generator, requires_grad=True)
    weight = torch.ones(4)

    def call(x):
        return ops.st_attention(x, axis="temporal", q_weight=weight, k_weight=weight)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(qkv), call(qkv))
    more = torch.randn(3, 5, 2, 3, 2, 4, generator=generator)
    torch.testing.assert_close(compiled(more), call(more))


NO_HEADS = """
import torch
from colaworld import ops
for axis in ("temporal", "spatial"):
    qkv, weight = torch.ones(2, 3, 4, 3, 0, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    with ops.force({implementation!r}):
        out = ops.st_attention(qkv, axis=axis, q_weight=weight, k_weight=weight)
    made = torch.autograd.grad(out.sum(), (qkv, weight))
    print(*out.shape, *made[0].shape, *made[1].tolist())
print(*ops.st_attention(torch.ones(2, 3, 4, 3, 0, 8), axis="temporal", backend="sdpa").shape)
"""


def test_without_heads_there_is_an_empty_answer(implementation) -> None:
    # In a process of its own: torch 2.11's attention divides by the heads, and that ends the process.
    program = NO_HEADS.format(implementation=implementation)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    line = "2 3 4 0 8 2 3 4 3 0 8" + 8 * " 0.0"
    assert done.stdout.splitlines() == [line, line, "2 3 4 0 8"]


def test_errors_name_the_argument() -> None:
    qkv = torch.zeros(1, 2, 3, 3, 1, 4)
    table = torch.zeros(2, 2)
    for kwargs, message in [
        (
            {"qkv": torch.zeros(1, 2, 3, 2, 1, 4)},
            r"qkv: expected \[B, T, S, 3, H, D\], got \[1, 2, 3, 2",
        ),
        ({"qkv": qkv.long()}, "qkv: expected a floating-point"),
        ({"axis": "time"}, "axis: expected 'spatial' or 'temporal', got 'time'"),
        ({"q_weight": torch.ones(3)}, r"q_weight: expected \[4\], got \[3\]"),
        ({"k_weight": torch.ones(3)}, r"k_weight: expected \[4\], got \[3\]"),
        ({"rope": (table, table)}, r"rope cos: expected \[3, 2\], got \[2, 2\]"),
        ({"qkv": torch.zeros(1, 1, 2, 3, 1, 3), "rope": (table, table)}, "even D, got D = 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.st_attention(**{"qkv": qkv, "axis": "spatial", **kwargs})


def random_call(draw):
    """For test_any_call.py."""
    B, T, S, H = draw.size(3), draw.size(), draw.size(), draw.size(3)
    D = draw.random.choice([1, 2, 8, 8, 16, 24, 7])
    axis = draw.random.choice(["temporal", "spatial"])
    length = T if axis == "temporal" else S
    qkv = draw.tensor(B, T, S, 3, H, D)
    options = {
        "axis": axis,
        "causal": draw.random.random() < 0.5,
        "q_weight": draw.maybe(D),
        "k_weight": draw.maybe(D),
        "rope": draw.rope(length, max(1, D // 2)),
    }
    return lambda: (ops.st_attention(qkv, **options),)
