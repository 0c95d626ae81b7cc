"""Which implementation of an op runs, and why the others do not.

Plain Python, evaluated once per call in eager mode and once per trace under `torch.compile`. Every
implementation has one predicate that answers both "can it?" and "why not?"; `choose` is a pure
function of (device, dtype, shape, strides, axis). Nothing is decided by trying and catching.
Not here: the kernels themselves, and loading the compiled library (`_native.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("reference", "cpu", "triton", "cuda")
VARIABLE = "COLAWORLD_OPS"


@dataclass(frozen=True)
class Facts:
    """What a choice may depend on: the leading tensor of a call, without its values."""

    device: str  # "cpu", "cuda", ...
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    axis: str | None = None  # st_attention: "spatial" or "temporal"; None where none is named


@dataclass(frozen=True)
class Implementation:
    """One way to run an op."""

    name: str  # one of NAMES
    run: Callable[..., object]
    refuses: Callable[[Facts], str | None]  # a reason, or None when it can run


@dataclass(frozen=True)
class Verdict:
    """What `explain` says about one implementation."""

    name: str
    would_run: bool
    reason: str  # why it refuses or is passed over; empty for the one that runs


class NoImplementationError(ValueError):
    """The forced implementation cannot run here; the message gives every implementation's reason."""


# op name -> implementations, most preferred first. Filled by `register` at import.
_REGISTRY: dict[str, tuple[Implementation, ...]] = {}


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


# Read once: a traced graph must not depend on the environment. None means automatic.
_forced: str | None = _checked(os.environ[VARIABLE], VARIABLE) if os.environ.get(VARIABLE) else None


def register(op: str, implementations: Sequence[Implementation]) -> None:
    """Declare the implementations of `op`, most preferred first."""
    _REGISTRY[op] = tuple(implementations)


def names() -> tuple[str, ...]:
    """Names of every op that is registered."""
    return tuple(_REGISTRY)


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
    implementations: Sequence[Implementation], facts: Facts, forced: str | None
) -> Implementation | None:
    """The first implementation that does not refuse; only the forced one when one is forced."""
    for implementation in implementations:
        if forced is not None and implementation.name != forced:
            continue
        if implementation.refuses(facts) is None:
            return implementation
    return None


def facts_of(tensor: Tensor, axis: str | None = None) -> Facts:
    """What a choice may know of a call led by `tensor`."""
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    return Facts(tensor.device.type, tensor.dtype, shape, strides, axis)


def select(op: str, tensor: Tensor, *, axis: str | None = None) -> Callable[..., object]:
    """The function that runs `op` for a call led by `tensor`.

    Raises NoImplementationError with each implementation's reason when the forced one refuses.
    """
    return pick(op, tensor, axis=axis).run


def pick(
    op: str, tensor: Tensor, *, axis: str | None = None, fused: bool = False
) -> Implementation:
    """The implementation that runs `op` for a call led by `tensor`; `fused`: not the reference.

    Raises NoImplementationError with each implementation's reason when there is none.
    """
    facts = facts_of(tensor, axis)
    candidates = [i for i in _REGISTRY[op] if not (fused and i.name == "reference")]
    chosen = choose(candidates, facts, _forced)
    if chosen is None:
        raise NoImplementationError(_complaint(op, facts))
    return chosen


def _complaint(op: str, facts: Facts) -> str:
    wanted, remedy = "no fused implementation", "Ask for another backend"
    if _forced == "reference":
        wanted = "a fused implementation was asked for while 'reference' is forced; none"
    elif _forced is not None:
        wanted = f"the forced implementation {_forced!r}"
        remedy = f"Unset {VARIABLE} or leave the force() block to let colaworld choose"
    lines = [
        f"{op}: {wanted} {'cannot' if _forced else 'can'} run for a {facts.dtype} tensor of "
        f"shape {tuple(facts.shape)} on {facts.device}. {remedy}. Every implementation:"
    ]
    have = {i.name: i.refuses(facts) or "can run" for i in _REGISTRY[op]}
    lines += [f"  {name}: {have.get(name, f'not written for {op}')}" for name in NAMES]
    return "\n".join(lines)


def explain(op: str, tensor: Tensor, *, axis: str | None = None) -> tuple[Verdict, ...]:
    """For each implementation of `op`: would it run for a call led by `tensor`, and if not, why."""
    if op not in _REGISTRY:
        raise ValueError(f"op: expected one of {', '.join(_REGISTRY)}, got {op!r}")
    facts = facts_of(tensor, axis)
    chosen = choose(_REGISTRY[op], facts, _forced)
    verdicts = []
    for implementation in _REGISTRY[op]:
        if implementation is chosen:
            verdicts.append(Verdict(implementation.name, True, ""))
            continue
        reason = implementation.refuses(facts)
        if reason is None:
            if _forced is not None and implementation.name != _forced:
                reason = f"{_forced!r} is forced"
            else:
                reason = f"{chosen.name} comes first" if chosen else "not chosen"
        verdicts.append(Verdict(implementation.name, False, reason))
    return tuple(verdicts)


def always(_: Facts) -> str | None:
    """The predicate of a reference: it never refuses."""
    return None
