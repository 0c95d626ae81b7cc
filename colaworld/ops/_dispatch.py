"""Which implementation of an op runs, and why the others do not.

Plain Python, evaluated once per call in eager mode and once per trace under `torch.compile`. Every
implementation has one predicate that answers both "can it?" and "why not?"; an op may have one more,
which says by sizes whom it would rather run. Both are pure functions of (device, dtype, shape, axis,
entries). Nothing is decided by trying and catching.
Not here: the kernels themselves, and loading the compiled library (`_native.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Called = TypeVar("Called", bound=Callable[..., Any])

NAMES = ("reference", "cpu", "triton", "cuda")
VARIABLE = "COLAWORLD_OPS"


@dataclass(slots=True)  # one is made in every call: a frozen one takes three times as long
class CallInfo:
    """What a choice may depend on: the leading tensor of a call, without its values. Not changed."""

    device: str  # "cpu", "cuda", ...
    dtype: torch.dtype
    shape: tuple[int, ...]
    axis: str | None = None  # st_attention: "spatial" or "temporal"; None where none is named
    entries: int | None = None  # K of a codebook; None where none is named


@dataclass(frozen=True)
class Implementation:
    """One way to run an op."""

    name: str  # one of NAMES
    run: Callable[..., Any]
    refuses: Callable[[CallInfo], str | None]  # a reason, or None when it can run


@dataclass(frozen=True)
class Preference:
    """Who should run at these sizes, where it can; where it cannot the order stays as it is."""

    name: str  # one of NAMES
    reason: str  # by what it is expected to be faster


@dataclass(frozen=True)
class Explanation:
    """What `explain` says about one implementation."""

    name: str
    would_run: bool
    reason: str  # why it refuses or is passed over; empty for the one that runs


class NoImplementationError(ValueError):
    """The forced implementation cannot run here; the message gives every implementation's reason."""


# op name -> implementations, most preferred first. Filled by `register` at import.
_REGISTRY: dict[str, tuple[Implementation, ...]] = {}
# op name -> the leading tensor of a call as the models make it, and the axes it may name.
_EXAMPLES: dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]] = {}
# op name -> whom the sizes prefer, for ops of which that depends on sizes.
_PREFERS: dict[str, Callable[[CallInfo], Preference | None]] = {}


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


# Read once: a traced graph must not depend on the environment. None means automatic.
_forced: str | None = _checked(os.environ[VARIABLE], VARIABLE) if os.environ.get(VARIABLE) else None


def register(
    op: str,
    implementations: Sequence[Implementation],
    *,
    prefers: Callable[[CallInfo], Preference | None] | None = None,
    example: tuple[int, ...] | None = None,
    axes: tuple[str | None, ...] = (None,),
) -> None:
    """Declare the implementations of `op`, most preferred first.

    `prefers`: the one that comes first at some sizes and why, or None for the order as it is.
    `example`: the shape of the leading tensor of a call as the models make it; `axes` it may name.
    """
    _REGISTRY[op] = tuple(implementations)
    if example is not None:
        _EXAMPLES[op] = example, axes
    if prefers is not None:
        _PREFERS[op] = prefers


def names() -> tuple[str, ...]:
    """Names of every op that is registered."""
    return tuple(_REGISTRY)


def examples() -> list[tuple[str, str | None, tuple[int, ...]]]:
    """A call of each op as the models make it: (op, axis, shape of its leading tensor)."""
    return [(op, axis, shape) for op, (shape, axes) in _EXAMPLES.items() for axis in axes]


def implementations(op: str) -> tuple[str, ...]:
    """Names of the implementations of `op`, most preferred first, whether they can run here or not."""
    return tuple(implementation.name for implementation in _REGISTRY[op])


@contextlib.contextmanager
def force(name: str) -> Iterator[None]:
    """Within the block every op runs the implementation called `name`, or raises.

    `name`: "reference", "cpu", "triton" or "cuda". Overrides the variable COLAWORLD_OPS. Enter it
    outside of compiled functions; `torch.compile` retraces when the choice changes.
    """
    global _forced
    before, _forced = _forced, _checked(name, "force")
    try:
        yield
    finally:
        _forced = before


def choose(
    implementations: Sequence[Implementation], facts: CallInfo, forced: str | None
) -> Implementation | None:
    """The first implementation that does not refuse; only the forced one when one is forced."""
    for implementation in implementations:
        if forced is not None and implementation.name != forced:
            continue
        if implementation.refuses(facts) is None:
            return implementation
    return None


def _in_order(op: str, facts: CallInfo) -> tuple[Sequence[Implementation], Preference | None]:
    """The implementations with the preferred one first, and that preference."""
    every = _REGISTRY[op]
    prefers = _PREFERS.get(op)
    first = None if prefers is None else prefers(facts)
    if first is None:
        return every, None
    return sorted(every, key=lambda i: i.name != first.name), first


def facts_of(tensor: Tensor, axis: str | None = None, entries: int | None = None) -> CallInfo:
    """What a choice may know of a call led by `tensor`."""
    return CallInfo(tensor.device.type, tensor.dtype, tensor.shape, axis, entries)


def select(
    op: str, tensor: Tensor, *, axis: str | None = None, entries: int | None = None
) -> Callable[..., Any]:
    """The function that runs `op` for a call led by `tensor`.

    Raises NoImplementationError with each implementation's reason when the forced one refuses.
    """
    return pick(op, tensor, axis=axis, entries=entries).run


def pick(
    op: str,
    tensor: Tensor,
    *,
    axis: str | None = None,
    entries: int | None = None,
    fused: bool = False,
) -> Implementation:
    """The implementation that runs `op` for a call led by `tensor`; `fused`: not the reference.

    Raises NoImplementationError with each implementation's reason when there is none.
    """
    facts = facts_of(tensor, axis, entries)
    candidates, _ = _in_order(op, facts)
    if fused:
        candidates = [i for i in candidates if i.name != "reference"]
    chosen = choose(candidates, facts, _forced)
    if chosen is None:
        raise NoImplementationError(_complaint(op, facts))
    return chosen


def _complaint(op: str, facts: CallInfo) -> str:
    wanted, remedy = "no fused implementation can", "Ask for another backend"
    if _forced is not None:
        wanted = f"the forced implementation {_forced!r} cannot"
        remedy = f"Unset {VARIABLE} or leave the force() block to let colaworld choose"
    if _forced == "reference":
        wanted = "a fused implementation was asked for while 'reference' is forced; none can"
    lines = [
        f"{op}: {wanted} run for a {facts.dtype} tensor of shape {tuple(facts.shape)} on "
        f"{facts.device}. {remedy}. Every implementation:"
    ]
    have = {i.name: i.refuses(facts) or "can run" for i in _REGISTRY[op]}
    lines += [f"  {name}: {have.get(name, f'not written for {op}')}" for name in NAMES]
    return "\n".join(lines)


def explain(
    op: str, tensor: Tensor, *, axis: str | None = None, entries: int | None = None
) -> tuple[Explanation, ...]:
    """For each implementation of `op`: would it run for a call led by `tensor`, and if not, why.

    `axis`: of st_attention; `entries`: K of the codebook of vector_quantize and code_statistics, whose
    sizes decide between implementations that all can run.
    """
    if op not in _REGISTRY:
        raise ValueError(f"op: expected one of {', '.join(_REGISTRY)}, got {op!r}")
    facts = facts_of(tensor, axis, entries)
    candidates, preference = _in_order(op, facts)
    chosen = choose(candidates, facts, _forced)
    verdicts = []
    for implementation in _REGISTRY[op]:
        if implementation is chosen:
            verdicts.append(Explanation(implementation.name, True, ""))
            continue
        reason = implementation.refuses(facts)
        if reason is None:
            if _forced is not None and implementation.name != _forced:
                reason = f"{_forced!r} is forced"
            elif chosen is None:
                reason = "not chosen"
            else:
                reason = f"{chosen.name} comes first"
                if preference is not None and chosen.name == preference.name:
                    reason += f": {preference.reason}"
        verdicts.append(Explanation(implementation.name, False, reason))
    return tuple(verdicts)


def known(condition: bool | torch.SymBool) -> bool:
    """A condition on sizes; False where a traced size is known only when the graph runs."""
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(condition)


def constant_in_graphs(function: Called) -> Called:
    """torch.compile takes what `function` returns for a constant and does not trace it.

    This sets the mark that `torch.compiler.assume_constant_result` sets. Calling that one imports
    torch._dynamo, which takes as long again as torch: every command would start twice as slowly.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def always(_: CallInfo) -> str | None:
    """The predicate of a reference: it never refuses."""
    return None
