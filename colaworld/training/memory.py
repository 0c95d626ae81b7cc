"""Memory of a training step, counted from tensors that have a shape but no storage.

    with FakeTensorMode():                   nothing is allocated: 1.2 B parameters count like 1 k
        model, objective, batch = ...
        with MemoryCount() as count:
            trace_step(count, model, objective, phase, training, batch)
    count.peak, count.at_peak                bytes at the moment when they were most

`MemoryCount` follows the storages that operators return until they die; `trace_step` runs the step of
step.py on one batch. What lives only inside an operator (the scratch of a kernel) is not seen.
Not here: how a run becomes a model and a batch, or what to change when it does not fit (recipes).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from colaworld.contracts import ClipBatch
from colaworld.training.config import TrainingConfig
from colaworld.training.ema import WeightAverage
from colaworld.training.optimizer import PhaseOptimizer
from colaworld.training.phases import Phase, enter_phase
from colaworld.training.protocols import Objective
from colaworld.training.step import apply_update, backward_pass

T = TypeVar("T")
Kind = Literal["parameters", "gradients", "optimizer", "average", "activations"]
KINDS: tuple[Kind, ...] = ("parameters", "gradients", "optimizer", "average", "activations")


class MemoryCount(TorchDispatchMode):
    """Counts the bytes of all storages that come out of operators within the block, by kind.

    A storage is an activation until `name` says otherwise. Enter it inside of a FakeTensorMode (or
    without one, to count real tensors).

    Args:
        granularity: a storage counts as a multiple of it (CUDA's allocator: 512 bytes).
    """

    def __init__(self, *, granularity: int = 1) -> None:
        super().__init__()
        self.granularity = granularity
        self.live: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.at_peak: dict[Kind, int] = dict(self.live)
        self.peak = 0
        self._inner = 0  # the same within the innermost `above`
        self._known: dict[int, tuple[Kind, int, weakref.ref]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.name((t for t in tree_leaves(result) if isinstance(t, Tensor)), None)
        return result

    def name(self, tensors: Iterable[Tensor], kind: Kind | None) -> None:
        """Count tensors as `kind` from now on; None: as they are known, new ones as activations."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            known = self._known.get(key)
            if known is None:
                size = -(-storage.nbytes() // self.granularity) * self.granularity
                forget = weakref.ref(storage, functools.partial(self._forget, key))
                self._known[key] = (kind or "activations", size, forget)
                self.live[kind or "activations"] += size
            elif kind is not None and known[0] != kind:
                self.live[known[0]] -= known[1]
                self.live[kind] += known[1]
                self._known[key] = (kind, *known[1:])
        total = sum(self.live.values())
        self._inner = max(self._inner, total)
        if total > self.peak:
            self.peak, self.at_peak = total, dict(self.live)

    def begin(self) -> None:
        """The peak is measured from here on."""
        self.peak, self.at_peak = sum(self.live.values()), dict(self.live)

    def above(self, run: Callable[[], T]) -> tuple[T, int]:
        """What `run()` returns, and how many bytes more than before were alive within it, at most."""
        before = sum(self.live.values())
        outer, self._inner = self._inner, before
        result = run()
        most, self._inner = self._inner, max(outer, self._inner)
        return result, most - before

    def _forget(self, key: int, _: object) -> None:
        kind, size, _ = self._known.pop(key)
        self.live[kind] -= size


def trace_step(
    count: MemoryCount,
    model: nn.Module,
    objective: Objective,
    phase: Phase,
    training: TrainingConfig,
    batch: ClipBatch,
    *,
    autocast: bool,  # bf16 products
) -> None:
    """A step of `phase` under `count`, as every one after the first; `count` holds its peak.

    One forward and backward pass is traced: with several to a step, the second and later ones find
    the gradients of those before, so that is how the one starts.

    Left out, as nothing next to the rest: `before_phase` (no gradient).
    """
    enter_phase(model, phase)
    count.name([*model.parameters(), *model.buffers()], "parameters")
    optimizer = PhaseOptimizer(model, phase, training)
    average = WeightAverage(model, training.ema_decay) if training.ema_decay else None
    if average is not None:
        count.name(average.tensors(), "average")
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.empty_like(parameter)
    count.name(optimizer.gradients(), "gradients")
    optimizer.step(1)  # makes its state
    count.name(
        [value for state in optimizer.moments().values() for value in state.values()], "optimizer"
    )
    if training.accumulate == 1:
        optimizer.zero_grad()
    for parameter in optimizer.parameters.values():
        parameter.register_post_accumulate_grad_hook(
            lambda parameter: count.name([parameter.grad], "gradients")
        )
    count.begin()
    key = (training.seed, phase.name, 2)
    terms = backward_pass(
        objective, optimizer, [batch], passes=training.accumulate, key=key, bf16=autocast
    )
    apply_update(  # without a guard, which would have to read numbers
        objective,
        optimizer,
        terms,
        number=2,
        key=key,
        clip_norm=training.clip_norm,
        average=average,
    )
