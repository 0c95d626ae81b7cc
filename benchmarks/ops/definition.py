"""A benchmark of a function as a value, and the cases it makes: implementations, gradients, verification.

A definition says how inputs are drawn, what is called and what it costs; all that is the same for
every op (and model: ../models.py) is here. Not here: timing.
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
from ..case import MODES, Call, Case, Request, Skipped, Unavailable, error, off, require_compiler
from ..shapes import Shape

Inputs = dict[str, Any]  # arguments of the op by name; tensors among them
Outputs = dict[str, Tensor]
Function = Callable[[Inputs], Outputs]
Baseline = Callable[[Shape, str], Function]  # (shape, mode) -> the function that is timed
# Largest relative error of a result, where plain torch in the same dtype has less than half of it.
FLOORS = {"float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3, "float64": 1e-12}


@dataclass(frozen=True)
class Definition:
    """What is particular to one op, and what follows from it."""

    op: str  # its name in colaworld.ops and in the rows
    draw: Callable[[Shape, torch.Generator], Inputs]  # float32, on the generator's device
    call: Function  # the public op
    lead: str  # the input that the choice of an implementation looks at
    tiny: Shape  # an example, for tests
    cost: Callable[[Shape, str, int], tuple[Any, Any]]  # (shape, mode, itemsize) -> bytes, flops
    tests: tuple[str, ...] = ()
    differentiable: tuple[str, ...] = ()  # inputs that receive gradients in fwd_bwd
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    verify: Callable[[Inputs, Outputs, Outputs], str | None] | None = None
    axis: Callable[[Shape], str | None] = lambda _: None  # what the choice is told beside the lead
    wide: Callable[[Shape], Sequence[str]] = lambda _: ()  # inputs that stay float32 in bfloat16
    calls: tuple[str, ...] | None = None  # ops of colaworld that it calls; None: the one it is
    changes: tuple[str, ...] = ()  # inputs that a call writes to
    modes: tuple[str, ...] = MODES
    shapes: Callable[[Any], list[Shape]] | None = None  # of a recipe; None: in no run of the suite
    named: tuple[Shape, ...] = ()  # beyond the recipes, each with its reason
    most_copies: int = 128  # of the inputs; drawing more takes longer than timing them

    @property
    def called(self) -> tuple[str, ...]:
        return (self.op,) if self.calls is None else self.calls

    def shape(self, name: str) -> Shape:
        """The shape beyond the recipes that has this name. KeyError where there is none."""
        return {shape.name: shape for shape in self.named}[name]

    def cases(self, shapes: Sequence[Shape], request: Request) -> Iterator[Case | Skipped]:
        """Every shape in every dtype and mode."""
        missing = [name for name in self.called if not hasattr(ops, name)]
        if missing:
            yield Skipped(self.op, f"this version of colaworld has no op {missing[0]}")
            return
        for shape in shapes:
            for dtype in request.dtypes:
                for mode in self.modes:
                    yield self.case(shape, dtype, mode, request.device)

    def case(self, shape: Shape, dtype: str, mode: str, device: str) -> Case:
        number, backward = self.number(dtype), mode == "fwd_bwd"
        bytes_moved, flops = self.cost(shape, mode, number.itemsize)

        @cache  # shared by all implementations of the case, and gone with it
        def sets() -> list[tuple[Inputs, Outputs]]:
            first = self.inputs(shape, number, device, backward, seed=0)
            count = min(timing.copies(size(first), device), self.most_copies)
            rest = [self.inputs(shape, number, device, backward, seed=i) for i in range(1, count)]
            plain = self.reference(shape, number, device)
            cotangents = _cotangents(plain(self.fresh(first))) if backward else {}
            return [(inputs, cotangents) for inputs in (first, *rest)]

        functions = self.functions(shape, dtype, mode, device, lambda: sets()[0][0][self.lead])

        def provider(name: str) -> Sequence[Call]:
            function = functions[name]()
            own = [(self.fresh(inputs), g) for inputs, g in sets()]
            return [lambda i=i, g=g: self.run(function, i, g, backward) for i, g in own]

        @cache
        def truth(wide: torch.dtype) -> Outputs:
            """What the reference gives in `wide`."""
            inputs, weights = sets()[0]
            if wide != number:
                inputs = {k: _to(v, wide) for k, v in inputs.items()}
                weights = {k: v.to(wide) for k, v in weights.items()}
            function = self.reference(shape, wide, device)
            return self.run(function, self.fresh(inputs), weights, backward)

        def verify(impl: str) -> str | None:
            inputs, weights = sets()[0]
            found = self.run(functions[impl](), self.fresh(inputs), weights, backward)
            if self.verify is not None:
                return self.verify(inputs, weights, found)
            return self.judge(found, truth(torch.float64), lambda: truth(number), dtype)

        more = {"verify": verify, "tests": self.tests, "bytes_moved": bytes_moved, "flops": flops}
        more["close"] = lambda: (sets.cache_clear(), truth.cache_clear())
        more["rotated_mb"] = lambda: sum(size(inputs) for inputs, _ in sets()) / 2**20
        ways = (functions, provider)
        return Case.of("ops", self.op, shape, f"{dtype}/{mode}", *ways, graph=True, **more)

    def number(self, dtype: str) -> torch.dtype:
        """What inputs are in, but those that stay wide."""
        return getattr(torch, dtype)

    def reference(self, shape: Shape, number: torch.dtype, device: str) -> Function:
        """What results are held to, for inputs in `number`."""
        return forced("reference", self.call)

    def judge(
        self, found: Outputs, exact: Outputs, plain: Callable[[], Outputs], dtype: str
    ) -> str | None:
        """What is wrong with results beside those in float64 and of plain torch in the dtype; a
        package may give less than the op does."""
        for name in (name for name in exact if name in found):
            bound = max(2 * error(plain()[name], exact[name]), FLOORS[dtype])
            if fault := off(name, found[name], exact[name], bound):
                return fault
        return None

    def functions(
        self, shape: Shape, dtype: str, mode: str, device: str, lead: Callable[[], Tensor]
    ) -> dict[str, Callable[[], Function]]:
        """By implementation: the reference eager and compiled, those registered, the baselines.

        Calling one raises Unavailable with the reason where it cannot run.
        """

        def whole() -> Function:
            require_compiler(device)
            return forced("reference", compiled(self.call))

        def ours(name: str) -> Function:
            for op in self.called:
                with ops.force(name):
                    verdicts = ops.explain(op, lead(), axis=self.axis(shape))
                (verdict,) = [v for v in verdicts if v.name == name]
                if not verdict.would_run:
                    raise Unavailable(verdict.reason)
            return forced(name, self.call)

        registered = [name for op in self.called[:1] for name in ops.implementations(op)]
        made = {"eager": lambda: forced("reference", self.call), "compile": whole}
        made |= {name: lambda name=name: ours(name) for name in registered if name != "reference"}
        made |= {name: lambda of=of: of(shape, mode) for name, of in self.baselines.items()}
        return {name: cache(make) for name, make in made.items()}  # verified and timed as one

    def run(
        self, function: Function, inputs: Inputs, cotangents: Outputs, backward: bool
    ) -> Outputs:
        """Outputs by name and, with `backward`, the gradients as "d <input>": of the inputs, and of
        the `weights` by name that a function may have."""
        if not backward:
            with torch.no_grad():
                return function(inputs)
        outputs = function(inputs)
        wanted = {n: inputs[n] for n in self.differentiable if inputs.get(n) is not None}
        wanted |= getattr(function, "weights", {})
        used = {n: g for n, g in cotangents.items() if n in outputs}
        given = ([outputs[n] for n in used], list(wanted.values()), list(used.values()))
        gradients = torch.autograd.grad(*given, allow_unused=hasattr(function, "weights"))
        named = {f"d {n}": g for n, g in zip(wanted, gradients, strict=True) if g is not None}
        return {n: t.detach() for n, t in outputs.items()} | named

    def fresh(self, inputs: Inputs) -> Inputs:
        """The same inputs; those that a call writes to are copied."""
        return inputs | {name: inputs[name].clone() for name in self.changes}

    def inputs(
        self, shape: Shape, dtype: torch.dtype, device: str, backward: bool, *, seed: int
    ) -> Inputs:
        drawn = self.draw(shape, torch.Generator(device).manual_seed(seed))
        kept = self.wide(shape) if dtype.itemsize < torch.float32.itemsize else ()
        inputs = {k: v if k in kept else _to(v, dtype) for k, v in drawn.items()}
        for name in self.differentiable if backward else ():
            if inputs.get(name) is not None:
                inputs[name].requires_grad_()
        return inputs


def normal(g: torch.Generator, *shape: int) -> Tensor:
    """Random numbers, drawn where they are used."""
    return torch.randn(*shape, generator=g, device=g.device)


def forced(name: str, function: Function) -> Function:
    """The same call with one implementation of every op."""
    return ops.force(name)(function)


def pinned(function: Function, backend: SDPBackend) -> Function:
    """The same call with torch's attention held to one backend."""

    def call(inputs: Inputs) -> Outputs:
        with sdpa_kernel(backend):
            return function(inputs)

    return call


def compiled(function: Function, backend: SDPBackend | None = None) -> Function:
    """`function` in one graph of torch.compile, torch's attention in it held to `backend`.

    The backend is named inside the graph, so that graphs that differ by it are told apart by every
    cache of the compiler. Raises Unavailable where torch has no such kernel for the call.
    """
    whole = pinned(function, backend) if backend is not None else function
    return available(torch.compile(whole, fullgraph=True, dynamic=False))


def available(function: Function) -> Function:
    """The same; Unavailable in place of torch's error about a missing attention kernel."""

    def call(inputs: Inputs) -> Outputs:
        try:
            return function(inputs)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            raise Unavailable("torch's SDPA refuses this backend here") from None

    return call


def _to(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in `dtype`; strides and requires_grad are kept."""
    if isinstance(value, tuple):
        return tuple(_to(v, dtype) for v in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    made = value.detach()
    if value.dtype != dtype:
        made = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device)
        made.copy_(value.detach())
    return made.requires_grad_(value.requires_grad)


def _cotangents(outputs: Outputs) -> Outputs:
    """A fixed random gradient for every output that has one."""
    found = {}
    for name, output in outputs.items():
        if output.requires_grad:
            g = torch.Generator(output.device).manual_seed(len(found) + 1)
            found[name] = normal(g, *output.shape).to(output.dtype)
    return found


def size(inputs: Inputs) -> int:
    """Bytes of the elements of all tensors."""
    return sum(t.nbytes for t in inputs.values() if isinstance(t, Tensor))
