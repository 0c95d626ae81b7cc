"""Checks of qkv_norm_rope in Triton, run by test_qk_norm_rope.py: see conftest.py.

Not here: what its forward shares with qk_norm_rope (checks_qk_norm_rope.py).
"""

from __future__ import annotations

import os

import pytest
import torch

from colaworld import ops

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float64 if INTERPRETED else torch.bfloat16, torch.float16)
# Under the interpreter one dtype is seconds: the others run with what is slow.
EACH_DTYPE = [DTYPES[0], *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])]
# A few units in the last place: the reference rounds at other points than the kernel.
FLOOR = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
NAMES = ("q_out", "k_out", "v_out", "dqkv", "dq_weight", "dk_weight")

each_norm = pytest.mark.parametrize("norm", [True, False])
each_rotation = pytest.mark.parametrize("rotation", [True, False])


def case(shape, dtype, *, norm=True, rotation=True):
    """[qkv, q_weight, k_weight], the other arguments, and a gradient for each output."""
    generator = torch.Generator().manual_seed(0)
    B, L, H, D = shape

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    weights = draw(2, D).unbind() if norm else (None, None)
    angles = draw(L, D // 2).double()
    rope = {"rope": (angles.cos().to(dtype), angles.sin().to(dtype))} if rotation else {}
    return [draw(B, L, 3, H, D), *weights], {"eps": 1e-5, **rope}, draw(3, *shape).unbind()


def distance(got, wanted) -> float:
    """Of two tensors, relative to the second."""
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def all_of(name, inputs, rest, grads, *, wide=False):
    """Outputs and gradients of the implementation called `name`, by name."""
    to = torch.float64 if wide else inputs[0].dtype
    inputs = [x if x is None else x.detach().to(to).requires_grad_() for x in inputs]
    if "rope" in rest:
        rest = rest | {"rope": tuple(t.to(to) for t in rest["rope"])}
    qkv, q_weight, k_weight = inputs
    with ops.force(name):
        outs = ops.qkv_norm_rope(qkv, q_weight=q_weight, k_weight=k_weight, **rest)
    there = [x for x in inputs if x is not None]
    found = torch.autograd.grad(outs, there, [g.to(to) for g in grads])
    return dict(zip(NAMES, (*(o.detach() for o in outs), *found), strict=False))


@each_norm
@each_rotation
@pytest.mark.parametrize("dtype", EACH_DTYPE, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 3, 8), (1, 2, 2, 72), (1, 3, 5, 46)])
def test_outputs_and_each_gradient(norm, rotation, dtype, shape) -> None:
    inputs, rest, grads = case(shape, dtype, norm=norm, rotation=rotation)
    got, same = (all_of(name, inputs, rest, grads) for name in ("triton", "reference"))
    wanted = all_of("reference", inputs, rest, grads, wide=True)
    assert got["dqkv"].is_contiguous() and torch.equal(got["dqkv"][:, :, 2], grads[2])
    for name in wanted:
        assert got[name].dtype == same[name].dtype and got[name].shape == same[name].shape, name
        bound = max(2 * distance(same[name], wanted[name]), FLOOR[dtype])
        assert distance(got[name], wanted[name]) <= bound, name


@each_norm
def test_strided_tensors(norm) -> None:
    inputs, rest, grads = case((2, 3, 2, 8), torch.float32, norm=norm)
    wanted = all_of("triton", inputs, rest, grads)
    apart = inputs[0].permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4)
    every_other = torch.stack([inputs[0], inputs[0]], -1).flatten(-2)[..., ::2]
    spread = [g.transpose(1, 2).contiguous().transpose(1, 2) for g in grads]
    for qkv in (apart, every_other):
        got = all_of("triton", [qkv, *inputs[1:]], rest, spread)
        for name in wanted:
            assert torch.equal(got[name], wanted[name]), name


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8)])
def test_empty(shape) -> None:
    inputs, rest, grads = case(shape, torch.float32)
    got = all_of("triton", inputs, rest, grads)
    assert got["dqkv"].shape == inputs[0].shape
    assert (got["dq_weight"] == 0).all() and (got["dk_weight"] == 0).all()


@each_norm
def test_outputs_are_fully_written(norm) -> None:
    inputs, rest, grads = case((1, 3, 3, 10), torch.float32, norm=norm)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        got = all_of("triton", inputs, rest, grads)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in got.values())


@pytest.mark.slow
def test_several_tokens_of_one_program(monkeypatch) -> None:
    from colaworld.kernels import qk_norm_rope as kernels

    inputs, rest, grads = case((2, 5, 3, 8), torch.float32)
    wanted = all_of("triton", inputs, rest, grads)
    for programs in (1, 4):
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        got = all_of("triton", inputs, rest, grads)
        assert torch.equal(got["dqkv"], wanted["dqkv"])
        for name in NAMES[4:]:
            assert distance(got[name], wanted[name].double()) < 1e-6, name


@pytest.mark.slow
@each_norm
def test_opcheck_of_the_backward(norm) -> None:
    inputs, rest, grads = case((1, 2, 2, 8), torch.float32, norm=norm)
    qkv, *weights = (x if x is None else x.detach() for x in inputs)
    given = (qkv if norm else None, *weights, *rest["rope"], 1e-5)
    torch.library.opcheck(torch.ops.colaworld.qkv_norm_rope_backward_triton, (*grads, *given))
