"""An op's benchmark as a value, and the cases it makes: providers, gradients, judge.

Each op file says how inputs are drawn, what is called and what it costs; everything that is the
same for all ops is here. Not here: sizes (shapes.py) and timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from colaworld import ops

from .. import timing
from ..case import MODES, Call, Case, Provider, Skipped, Unavailable, Wish, require_compiler
from ..shapes import Shape

Inputs = dict[str, Any]  # arguments of the op by name; tensors among them
Function = Callable[[Inputs], dict[str, Tensor]]  # inputs -> outputs by name
# Largest relative error of a result, where plain torch in the same dtype has less than half of it.
FLOORS = {"float32": 2e-6, "bfloat16": 8e-3, "float64": 1e-12}


@dataclass(frozen=True)
class Definition:
    """What is particular to one op."""

    op: str  # its name in colaworld.ops
    tests: tuple[str, ...]
    draw: Callable[[Shape, torch.Generator], Inputs]  # float32 on the CPU, from the generator
    call: Function  # the public op
    lead: str  # the input that the choice of an implementation looks at
    probe: tuple[int, ...]  # a small shape of it: enough to ask which implementations there are
    differentiable: tuple[str, ...]  # inputs that receive gradients in fwd_bwd
    cost: Callable[[Shape, str, int], tuple[int, int]]  # (shape, mode, itemsize) -> bytes, flops
    others: Mapping[str, Function | Callable[[Shape, str], Function]] = field(default_factory=dict)
    judge: Callable[[Inputs, dict[str, Tensor], dict[str, Tensor]], str | None] | None = None


def forced(name: str, function: Function) -> Function:
    """The same call with one implementation of every op."""

    def call(inputs: Inputs) -> dict[str, Tensor]:
        with ops.force(name):
            return function(inputs)

    return call


def cases(definition: Definition, shapes: Sequence[Shape], wish: Wish) -> Iterator[Case | Skipped]:
    """Every shape in every dtype and mode."""
    if not hasattr(ops, definition.op):
        yield Skipped(definition.op, "this version of colaworld has no such op")
        return
    for shape in shapes:
        for dtype in wish.dtypes:
            for mode in MODES:
                yield _case(definition, shape, dtype, mode, wish.device)


def _case(definition: Definition, shape: Shape, dtype: str, mode: str, device: str) -> Case:
    number = getattr(torch, dtype)
    bytes_moved, flops = definition.cost(shape, mode, number.itemsize)

    @cache  # shared by all providers of the case, and gone with it
    def sets() -> list[tuple[Inputs, dict[str, Tensor]]]:
        first = _inputs(definition, shape, number, device, mode, seed=0)
        many = timing.copies(_size(first), device)
        drawn = [first] + [
            _inputs(definition, shape, number, device, mode, seed=i) for i in range(1, many)
        ]
        weights = _cotangents(forced("reference", definition.call)(first)) if backward else {}
        return [(inputs, weights) for inputs in drawn]

    backward = mode == "fwd_bwd"

    def provider(name: str, make: Callable[[], Function]) -> Provider:
        def calls() -> Sequence[Call]:
            function = make()
            return [_timed(function, inputs, g, definition, backward) for inputs, g in sets()]

        return calls

    functions = _functions(definition, shape, mode, number, device)

    @cache
    def truth() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Results in float64, and the error of plain torch in the dtype, by name."""
        inputs, weights = sets()[0]
        wide = {k: _to(v, torch.float64) for k, v in inputs.items()}
        reference = forced("reference", definition.call)
        exact = results(
            reference, wide, {k: v.double() for k, v in weights.items()}, definition, backward
        )
        plain = results(reference, inputs, weights, definition, backward)
        return exact, {name: _error(plain[name], exact[name]) for name in exact}

    def judge(impl: str) -> str | None:
        inputs, weights = sets()[0]
        found = results(functions[impl](), inputs, weights, definition, backward)
        if definition.judge is not None:
            return definition.judge(inputs, weights, found)
        exact, plain = truth()
        for name, value in exact.items():
            if name not in found:
                continue  # a package that gives less than the op does
            error, bound = _error(found[name], value), max(2 * plain[name], FLOORS[dtype])
            if not error <= bound:
                return f"{name} is off by {error:.2e}, expected at most {bound:.2e}"
        return None

    return Case(
        suite="ops",
        op=definition.op,
        shape=shape.name,
        sizes=shape.sizes,
        dtype=dtype,
        mode=mode,
        providers={name: provider(name, make) for name, make in functions.items()},
        tests=definition.tests,
        judge=judge,
        bytes_moved=bytes_moved,
        flops=flops,
        rotated_mb=lambda: sum(_size(inputs) for inputs, _ in sets()) / 2**20,
        heavy=shape.heavy,
    )


def _functions(
    definition: Definition, shape: Shape, mode: str, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], Function]]:
    """Who can do it: the reference eager and compiled, every implementation, the others."""

    def eager() -> Function:
        return forced("reference", definition.call)

    @cache  # judged and timed as one compilation
    def compiled() -> Function:
        require_compiler(device)
        return forced("reference", torch.compile(definition.call, fullgraph=True, dynamic=False))

    def ours(name: str) -> Function:
        lead = _inputs(definition, shape, dtype, device, mode, seed=0)[definition.lead]
        with ops.force(name):
            (verdict,) = [v for v in ops.explain(definition.op, lead) if v.name == name]
        if not verdict.would_run:
            raise Unavailable(verdict.reason)
        return forced(name, definition.call)

    def other(name: str) -> Function:
        return definition.others[name](shape, mode)  # type: ignore[call-arg,arg-type,return-value]

    probe = torch.empty(definition.probe, dtype=dtype)
    names = [v.name for v in ops.explain(definition.op, probe) if v.name != "reference"]
    functions: dict[str, Callable[[], Function]] = {"eager": eager, "compile": compiled}
    functions |= {name: (lambda name=name: ours(name)) for name in names}
    functions |= {name: (lambda name=name: other(name)) for name in definition.others}
    return functions


def _timed(
    function: Function,
    inputs: Inputs,
    cotangents: dict[str, Tensor],
    definition: Definition,
    backward: bool,
) -> Call:
    if backward:
        return lambda: results(function, inputs, cotangents, definition, True)

    def forward() -> object:
        with torch.no_grad():
            return function(inputs)

    return forward


def results(
    function: Function,
    inputs: Inputs,
    cotangents: dict[str, Tensor],
    definition: Definition,
    backward: bool,
) -> dict[str, Tensor]:
    """Outputs by name and, with `backward`, the gradients as "d <input>"."""
    if not backward:
        with torch.no_grad():
            return function(inputs)
    outputs = function(inputs)
    wanted = {n: inputs[n] for n in definition.differentiable if inputs.get(n) is not None}
    used = {n: g for n, g in cotangents.items() if n in outputs}
    gradients = torch.autograd.grad(
        [outputs[n] for n in used], list(wanted.values()), list(used.values())
    )
    named = {f"d {n}": g for n, g in zip(wanted, gradients, strict=True)}
    return {n: t.detach() for n, t in outputs.items()} | named


def _inputs(
    definition: Definition, shape: Shape, dtype: torch.dtype, device: str, mode: str, *, seed: int
) -> Inputs:
    drawn = definition.draw(shape, torch.Generator().manual_seed(seed))
    inputs = {k: _to(v, dtype, device) for k, v in drawn.items()}
    for name in definition.differentiable if mode == "fwd_bwd" else ():
        if inputs.get(name) is not None:
            inputs[name].requires_grad_()
    return inputs


def _to(value: Any, dtype: torch.dtype, device: str | None = None) -> Any:
    """Floating-point tensors in `dtype`; strides and the wish for a gradient are kept."""
    if isinstance(value, tuple):
        return tuple(_to(v, dtype, device) for v in value)
    if not isinstance(value, Tensor):
        return value
    dtype = dtype if value.is_floating_point() else value.dtype
    to = torch.empty_strided(
        value.shape, value.stride(), dtype=dtype, device=device or value.device
    )
    return to.copy_(value.detach()).requires_grad_(value.requires_grad)


def _cotangents(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What flows back into each output: fixed numbers, never all ones (sums would cancel)."""
    found = {}
    for name, output in outputs.items():
        if output.requires_grad:
            g = torch.Generator().manual_seed(len(found) + 1)
            drawn = torch.randn(output.shape, generator=g)
            found[name] = drawn.to(output.device, output.dtype)
    return found


def _size(inputs: Inputs) -> int:
    """Bytes of the elements of all tensors."""
    tensors = [v for v in inputs.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def _error(found: Tensor, exact: Tensor) -> float:
    """|| found - exact || / || exact ||; NaN and wrong shapes are infinitely far."""
    if found.shape != exact.shape:
        return float("inf")
    gap = torch.linalg.vector_norm(found.double() - exact).item()
    size = torch.linalg.vector_norm(exact).item()
    error = gap / size if size else gap
    return error if error == error else float("inf")
