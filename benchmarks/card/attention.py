"""Torch's attention by backend, and FlexAttention, at the sequences of our models.

What a model could call instead of a kernel of its own, without norm and rotation: q, k and v are views
of one packed tensor, as a projection leaves them. Not here: ours (`ops.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

from .. import shapes
from ..case import MODES, Call, Case, Unavailable
from ..ops.definition import FLOORS
from ..ops.st_attention import BACKENDS
from ..shapes import Shape
from . import stage
from .stage import Asked, Point

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
_JUDGED = 4  # sequences: float64 scores of all of them would not fit


def points(asked: Asked) -> Iterable[Point]:
    names = [f"sdpa:{name}" for name in BACKENDS] + ([] if asked.quick else ["flex"])
    for shape in shapes.card_attention():
        for mode in MODES:
            made = case(shape, mode, names, asked)
            yield Point(made.label, lambda made=made: stage.of_case(made, asked), seconds=4)


def case(shape: Shape, mode: str, names: Iterable[str], asked: Asked, dtype="bfloat16") -> Case:
    """One shape, everybody in `names`; results answer to float64 on the first sequences."""
    N, n, H, D = (shape.sizes[name] for name in ("N", "n", "H", "D"))
    draw = torch.Generator().manual_seed(0)

    def inputs() -> tuple[Tensor, ...]:
        if "all" not in kept:
            packed = torch.randn(N, n, 3, H, D, generator=draw)
            packed = packed.to(asked.device, getattr(torch, dtype))
            views = tuple(x.transpose(1, 2) for x in packed.unbind(2))  # [N, H, n, D], strided
            grad = torch.randn(N, n, H, D, generator=draw).to(packed).transpose(1, 2)
            kept["all"] = (*(x.requires_grad_(mode == "fwd_bwd") for x in views), grad)
        return kept["all"]

    kept: dict[str, tuple[Tensor, ...]] = {}

    def results(attend: Attend, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
        if mode == "fwd":
            with torch.no_grad():
                return [attend(q, k, v)]
        out = attend(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), grad)]

    def judge(name: str) -> str | None:
        few = [x.detach()[:_JUDGED].requires_grad_(x.requires_grad) for x in inputs()]
        wide = [x.detach().double().requires_grad_(x.requires_grad) for x in few]
        plain = named("sdpa:math")
        found, near, exact = (
            results(a, *x) for a, x in ((named(name), few), (plain, few), (plain, wide))
        )
        whats = ("out", "dq", "dk", "dv")
        for what, ours, theirs, true in zip(whats, found, near, exact, strict=False):
            off, allowed = ((x.double() - true).norm() / true.norm() for x in (ours, theirs))
            bound = max(2 * allowed.item(), FLOORS[dtype])
            if not off.item() <= bound:
                return f"{what} is off by {off.item():.2e}, expected at most {bound:.2e}"
        return None

    def provider(name: str) -> Callable[[], list[Call]]:
        return lambda: [lambda: results(named(name), *inputs())]

    one = N * n * H * D * getattr(torch, dtype).itemsize
    product = 2 * N * H * n * n * D
    forward = mode == "fwd"
    return Case(
        suite="card",
        op="attention",
        shape=shape.name,
        sizes=shape.sizes,
        dtype=dtype,
        mode=mode,
        providers={name: provider(name) for name in names},
        judge=judge,
        bytes_moved=(4 if forward else 12) * one,
        flops=(2 if forward else 7) * product,
        close=kept.clear,
    )


def named(name: str) -> Attend:
    """The function called `name`; it raises Unavailable where torch has no such kernel here."""
    if name == "flex":
        return _flex

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[name.removeprefix("sdpa:")]):
            try:
                return F.scaled_dot_product_attention(q, k, v)
            except RuntimeError as error:
                if "No available kernel" not in str(error):
                    raise
                raise Unavailable(f"SDPA refuses its {name} backend here") from None

    return attend


_compiled: dict[str, Attend] = {}


def _flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if q.device.type == "cpu" and q.requires_grad:
        raise Unavailable("FlexAttention has no gradient on a CPU")
    if "flex" not in _compiled:
        _compiled["flex"] = torch.compile(flex_attention, dynamic=False)
    return _compiled["flex"](q, k, v)


if __name__ == "__main__":
    sys.exit(stage.main(points, __doc__))
