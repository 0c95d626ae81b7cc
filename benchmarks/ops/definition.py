"""An op's benchmark as a value, and the cases it makes: providers, gradients, verification.

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
from torch.nn.attention import SDPBackend, sdpa_kernel

from colaworld import ops

from .. import timing
from ..case import MODES, Call, Case, Provider, Request, Skipped, Unavailable, require_compiler
from ..shapes import Shape

Inputs = dict[str, Any]  # arguments of the op by name; tensors among them
Function = Callable[[Inputs], dict[str, Tensor]]  # inputs -> outputs by name
# Largest relative error of a result, where plain torch in the same dtype has less than half of it.
FLOORS = {"float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3, "float64": 1e-12}


@dataclass(frozen=True)
class Definition:
    """What is particular to one op."""

    op: str  # its name in colaworld.ops, and in the rows
    tests: tuple[str, ...]
    draw: Callable[[Shape, torch.Generator], Inputs]  # float32, on the generator's device
    call: Function  # the public op
    lead: str  # the input that the choice of an implementation looks at
    probe: tuple[int, ...]  # a small shape of it: enough to ask which implementations there are
    differentiable: tuple[str, ...]  # inputs that receive gradients in fwd_bwd
    cost: Callable[[Shape, str, int], tuple[int, int]]  # (shape, mode, itemsize) -> bytes, flops
    others: Mapping[str, Callable[[Shape, str], Function]] = field(default_factory=dict)
    verify: Callable[[Inputs, dict[str, Tensor], dict[str, Tensor]], str | None] | None = None
    axis: Callable[[Shape], str | None] = lambda _: None  # what the choice is told beside the lead
    wide: Callable[[Shape], Sequence[str]] = lambda _: ()  # inputs that stay float32 in bfloat16
    calls: tuple[str, ...] | None = None  # ops of colaworld that it calls; None: the one it is
    changes: tuple[str, ...] = ()  # inputs that a call writes to
    modes: tuple[str, ...] = MODES


def normal(g: torch.Generator, *shape: int) -> Tensor:
    """Random numbers, drawn where they are used."""
    return torch.randn(*shape, generator=g, device=g.device)


def forced(name: str, function: Function) -> Function:
    """The same call with one implementation of every op."""

    def call(inputs: Inputs) -> dict[str, Tensor]:
        with ops.force(name):
            return function(inputs)

    return call


def compiled(function: Function, backend: SDPBackend | None = None) -> Function:
    """`function` in one graph of torch.compile, torch's attention in it held to `backend`.

    The backend is named inside the graph, so that graphs that differ by it are told apart by every
    cache of the compiler. Raises Unavailable where torch has no such kernel for the call.
    """

    def pinned(inputs: Inputs) -> dict[str, Tensor]:
        if backend is None:
            return function(inputs)
        with sdpa_kernel(backend):
            return function(inputs)

    return available(torch.compile(pinned, fullgraph=True, dynamic=False))


def available(function: Function) -> Function:
    """The same; Unavailable in place of torch's error about a missing attention kernel."""

    def call(inputs: Inputs) -> dict[str, Tensor]:
        try:
            return function(inputs)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            raise Unavailable("torch's SDPA refuses this backend here") from None

    return call


def cases(
    definition: Definition, shapes: Sequence[Shape], request: Request
) -> Iterator[Case | Skipped]:
    """Every shape in every dtype and mode."""
    called = definition.calls if definition.calls is not None else (definition.op,)
    missing = [name for name in called if not hasattr(ops, name)]
    if missing:
        yield Skipped(definition.op, f"this version of colaworld has no op {missing[0]}")
        return
    for shape in shapes:
        for dtype in request.dtypes:
            for mode in definition.modes:
                yield _case(definition, called, shape, dtype, mode, request.device)


def _case(
    definition: Definition,
    called: Sequence[str],
    shape: Shape,
    dtype: str,
    mode: str,
    device: str,
) -> Case:
    number, backward = getattr(torch, dtype), mode == "fwd_bwd"
    bytes_moved, flops = definition.cost(shape, mode, number.itemsize)

    @cache  # shared by all providers of the case, and gone with it
    def sets() -> list[tuple[Inputs, dict[str, Tensor]]]:
        first = _inputs(definition, shape, number, device, backward, seed=0)
        many = timing.copies(_size(first), device)
        drawn = [first] + [
            _inputs(definition, shape, number, device, backward, seed=i) for i in range(1, many)
        ]
        weights = {}
        if backward:
            weights = _cotangents(forced("reference", definition.call)(_fresh(definition, first)))
        return [(inputs, weights) for inputs in drawn]

    def lead() -> Tensor:
        return sets()[0][0][definition.lead]

    functions = _functions(definition, called, shape, mode, device, lead)

    def provider(name: str) -> Provider:
        def calls() -> Sequence[Call]:
            function = functions[name]()
            own = [(_fresh(definition, inputs), g) for inputs, g in sets()]
            return [_timed(function, inputs, g, definition, backward) for inputs, g in own]

        return calls

    @cache
    def truth() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Results in float64, and the error of plain torch in the dtype, by name."""
        inputs, weights = sets()[0]
        reference = forced("reference", definition.call)
        wide = {k: _to(v, torch.float64) for k, v in inputs.items()}
        exact = results(
            reference, wide, {k: v.double() for k, v in weights.items()}, definition, backward
        )
        plain = results(reference, inputs, weights, definition, backward)
        return exact, {name: _error(plain[name], exact[name]) for name in exact}

    def verify(impl: str) -> str | None:
        inputs, weights = sets()[0]
        found = results(functions[impl](), inputs, weights, definition, backward)
        if definition.verify is not None:
            return definition.verify(inputs, weights, found)
        exact, plain = truth()
        for name, value in exact.items():
            if name not in found:
                continue  # a package that gives less than the op does
            error, bound = _error(found[name], value), max(2 * plain[name], FLOORS[dtype])
            if not error <= bound:
                return f"{name} is off by {error:.2e}, expected at most {bound:.2e}"
        return None

    def close() -> None:
        for kept in (sets, truth):
            kept.cache_clear()

    return Case(
        suite="ops",
        op=definition.op,
        shape=shape.name,
        sizes=shape.sizes,
        dtype=dtype,
        mode=mode,
        providers={name: provider(name) for name in functions},
        tests=definition.tests,
        verify=verify,
        bytes_moved=bytes_moved,
        flops=flops,
        close=close,
        rotated_mb=lambda: sum(_size(inputs) for inputs, _ in sets()) / 2**20,
        heavy=shape.heavy,
        graph=True,
    )


def _functions(
    definition: Definition,
    called: Sequence[str],
    shape: Shape,
    mode: str,
    device: str,
    lead: Callable[[], Tensor],
) -> dict[str, Callable[[], Function]]:
    """Who can do it: the reference eager and compiled, every implementation, the others."""

    def whole() -> Function:
        require_compiler(device)
        return forced("reference", compiled(definition.call))

    def ours(name: str) -> Function:
        for op in called:
            with ops.force(name):
                verdicts = ops.explain(op, lead(), axis=definition.axis(shape))
            (verdict,) = [v for v in verdicts if v.name == name]
            if not verdict.would_run:
                raise Unavailable(verdict.reason)
        return forced(name, definition.call)

    probe = torch.empty(definition.probe)
    names = [v.name for op in called[:1] for v in ops.explain(op, probe) if v.name != "reference"]
    made: dict[str, Callable[[], Function]] = {
        "eager": lambda: forced("reference", definition.call),
        "compile": whole,
    }
    made |= {name: (lambda name=name: ours(name)) for name in names}
    made |= {n: (lambda n=n: definition.others[n](shape, mode)) for n in definition.others}
    return {name: cache(make) for name, make in made.items()}  # verified and timed as one


def _timed(
    function: Function,
    inputs: Inputs,
    cotangents: dict[str, Tensor],
    definition: Definition,
    backward: bool,
) -> Call:
    if backward:
        return lambda: _both(function, inputs, cotangents, definition)

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
    """Outputs by name and, with `backward`, the gradients as "d <input>"; `inputs` stay as they are."""
    inputs = _fresh(definition, inputs)
    if backward:
        return _both(function, inputs, cotangents, definition)
    with torch.no_grad():
        return function(inputs)


def _both(
    function: Function, inputs: Inputs, cotangents: dict[str, Tensor], definition: Definition
) -> dict[str, Tensor]:
    outputs = function(inputs)
    wanted = {n: inputs[n] for n in definition.differentiable if inputs.get(n) is not None}
    used = {n: g for n, g in cotangents.items() if n in outputs}
    gradients = torch.autograd.grad(
        [outputs[n] for n in used], list(wanted.values()), list(used.values())
    )
    named = {f"d {n}": g for n, g in zip(wanted, gradients, strict=True)}
    return {n: t.detach() for n, t in outputs.items()} | named


def _fresh(definition: Definition, inputs: Inputs) -> Inputs:
    return inputs | {name: inputs[name].clone() for name in definition.changes}


def _inputs(
    definition: Definition,
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    backward: bool,
    *,
    seed: int,
) -> Inputs:
    drawn = definition.draw(shape, torch.Generator(device).manual_seed(seed))
    narrow = dtype.itemsize < torch.float32.itemsize
    kept = definition.wide(shape) if narrow else ()
    inputs = {k: v if k in kept else _to(v, dtype) for k, v in drawn.items()}
    for name in definition.differentiable if backward else ():
        if inputs.get(name) is not None:
            inputs[name].requires_grad_()
    return inputs


def _to(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in `dtype`; strides and requires_grad are kept."""
    if isinstance(value, tuple):
        return tuple(_to(v, dtype) for v in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    made = value.detach()
    if value.dtype != dtype:
        strides = value.stride()
        made = torch.empty_strided(value.shape, strides, dtype=dtype, device=value.device)
        made.copy_(value.detach())
    return made.requires_grad_(value.requires_grad)


def _cotangents(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A fixed random gradient for every output that has one."""
    found = {}
    for name, output in outputs.items():
        if output.requires_grad:
            g = torch.Generator(output.device).manual_seed(len(found) + 1)
            found[name] = normal(g, *output.shape).to(output.dtype)
    return found


def _size(inputs: Inputs) -> int:
    """Bytes of the elements of all tensors."""
    return sum(t.numel() * t.element_size() for t in inputs.values() if isinstance(t, Tensor))


def _error(found: Tensor, exact: Tensor) -> float:
    """|| found - exact || / || exact ||; NaN and wrong shapes are infinitely far."""
    if found.shape != exact.shape:
        return float("inf")
    gap = torch.linalg.vector_norm(found.double() - exact).item()
    size = torch.linalg.vector_norm(exact).item()
    error = gap / size if size else gap
    return error if error == error else float("inf")
