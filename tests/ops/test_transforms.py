"""Forward-mode AD and torch.func: the kernels refuse by name, the references do them.

Not here: reverse-mode gradients (the test of each op).
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from colaworld import ops
from colaworld.cli.bench import suite

needs_cpu = pytest.mark.skipif(
    ops.build_info() is None, reason=f"no compiled ops: {ops.why_not_compiled()}"
)
# The examples of the benchmarks: every op that has a derivative.
EXAMPLES = {
    op: definition
    for op, definition in suite("ops").DEFINITIONS.items()
    if op in ops.names() and definition.differentiable
}
OPS = {op: definition.differentiable for op, definition in EXAMPLES.items()}
EACH = [(op, name) for op, names in OPS.items() for name in names]
each_input = pytest.mark.parametrize(("op", "name"), EACH)
each_op = pytest.mark.parametrize("op", OPS)


def test_every_op_has_an_example() -> None:
    called = {name for d in suite("ops").DEFINITIONS.values() for name in d.called}
    assert set(ops.names()) <= called, "each needs a Definition in benchmarks/ops"


def call(op: str, name: str):
    """The op as a function of one input, and that input; float64."""
    d = EXAMPLES[op]
    given = d.inputs(d.tiny, torch.float64, "cpu", False, seed=0)

    def run(value: torch.Tensor) -> torch.Tensor:
        made = [out for out in d.call({**given, name: value}).values() if out.is_floating_point()]
        return torch.cat([out.flatten() for out in made]) if len(made) > 1 else made[0]

    return run, given[name]


def refused(op: str, how: str):
    return pytest.raises(
        NotImplementedError, match=rf"^{op}: {how}.*colaworld\.ops\.force\('reference'\)"
    )


@needs_cpu
@each_input
def test_the_kernels_refuse_dual_numbers(op, name) -> None:
    run, value = call(op, name)
    with ops.force("cpu"), forward_ad.dual_level():
        run(value)  # without a tangent there is nothing to lose
        with refused(op, "forward-mode AD"):
            run(forward_ad.make_dual(value, torch.ones_like(value)))


@needs_cpu
@each_input
def test_the_kernels_refuse_transforms(op, name) -> None:
    run, value = call(op, name)
    with ops.force("cpu"):
        with refused(op, "torch.func"):
            torch.func.grad(lambda v: run(v).sum())(value)
        with refused(op, "torch.func"):
            torch.func.jvp(run, (value,), (torch.ones_like(value),))
        with refused(op, "torch.func"):
            torch.func.vmap(run)(value[None])


@needs_cpu
def test_what_has_no_derivative_may_have_a_tangent() -> None:
    """The search does not differentiate z, so a straight-through estimate works in forward mode."""
    run, z = call("vector_quantize", "z")
    tangent = torch.arange(z.numel(), dtype=torch.float64).reshape(z.shape)
    for name in ("cpu", "reference"):
        with ops.force(name), forward_ad.dual_level():
            dual = forward_ad.make_dual(z, tangent)
            codes = run(dual)
            assert forward_ad.unpack_dual(codes).tangent is None
            through = forward_ad.unpack_dual(codes + (dual - dual.detach())).tangent
            assert torch.equal(through, tangent), name


@needs_cpu
@each_op
def test_inside_a_transform_of_something_else_the_kernels_run(op) -> None:
    run, value = call(op, OPS[op][0])
    with ops.force("cpu"):
        plain = run(value)
        found = torch.func.grad(lambda scale: (scale * run(value).detach()).sum())(plain.sum())
    assert torch.equal(found, plain.sum())


@each_input
def test_the_references_do_them(op, name) -> None:
    run, value = call(op, name)
    g = torch.Generator().manual_seed(1)
    # torch's fused attention has no forward mode; that of the plain formula is what counts.
    with ops.force("reference"), sdpa_kernel(SDPBackend.MATH):
        leaf = value.clone().requires_grad_()
        out = run(leaf)
        v = torch.randn(out.shape, generator=g, dtype=torch.float64)
        u = torch.randn(value.shape, generator=g, dtype=torch.float64)
        if out.requires_grad:
            (expected,) = torch.autograd.grad(out, leaf, v)
        else:
            expected = torch.zeros_like(value)
        found = torch.func.grad(lambda x: (run(x) * v).sum())(value)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        _, forward = torch.func.jvp(run, (value,), (u,))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(run(forward_ad.make_dual(value, u))).tangent
    assert expected.any(), "the input does nothing"
    along = (expected * u).sum()
    torch.testing.assert_close((forward * v).sum(), along, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dual, forward, rtol=1e-12, atol=1e-12)
