"""A rollout's context that remembers frames, so that a new frame costs one frame.

Frames passed through the generator in one round, for `new` frames and s calls of a sampler (Euler:
its steps), in a window of W:

    Recomputed           up to W s
    while it fills up    s new, and once the frames made in the round before
    slid, slide=exact    s new, and once the W - new that stay
    slid, slide=keep     s new, and once the frames made in the round before

exact gives what Recomputed gives. keep does not: the frames that stay still hold what they took
from frames that left, and from actions before the window's first frame. Every frame is seen with
the actions that led to it from the start of the window in which it was stored, and never again
differently; a new frame has its place in the window, as with exact, so that the action path sees
sequences as long as in training. Positions go on counting (rotary embeddings tell differences only;
in float32 they are good for some 10^5 frames).

Only for a generator in which no frame sees a later one. Not here: what is remembered
(models/layers/kv_cache.py), nor the rollout (rollout.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from colaworld.flow.rollout import Steer, Steered
from colaworld.flow.samplers import Velocity


class Memory(Protocol):
    """What a generator remembers of frames it has seen; it alone writes it."""

    def forget(self, frames: int) -> None:
        """The first `frames` of those held leave."""
        ...

    def repeat_interleave(self, count: int) -> Memory:
        """The same with every clip `count` times in a row."""
        ...


class Remembered:
    """The context that stores every frame once it is clean, and runs new ones only."""

    def __init__(
        self,
        steer: Steer,
        new_memory: Callable[[], Memory],
        *,
        slide: Literal["exact", "keep"] = "exact",
        level: float = 0.0,
    ) -> None:
        if slide not in ("exact", "keep"):
            raise ValueError(f"sampler.slide: expected one of exact, keep, got {slide!r}")
        self.steer, self.new_memory = steer, new_memory
        self.slide, self.level = slide, level
        self.memory = new_memory()
        self.start = self.held = 0  # number of the first frame held, and how many are

    def velocity(self, past: Tensor, codes: Tensor, start: int) -> Velocity:
        steered, held = self.steer(codes), past.shape[2]
        self._store(steered, past, start)
        memory = self.memory

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            return steered(x, times, first=held, memory=memory)

        return velocity

    def share(self, past: Tensor, codes: Tensor, start: int, count: int) -> None:
        self._store(self.steer(codes), past, start)
        self.memory = self.memory.repeat_interleave(count)

    def _store(self, steered: Steered, past: Tensor, start: int) -> None:
        """Hold exactly the frames of `past`, of which the first is number `start`."""
        leaving, self.start = start - self.start, start
        if leaving and (self.slide == "exact" or leaving >= self.held):
            self.memory, self.held = self.new_memory(), 0
        elif leaving:
            self.memory.forget(leaving)
            self.held -= leaving
        missing = past[:, :, self.held :]
        if missing.shape[2]:
            shape = (missing.shape[0], missing.shape[2])
            times = torch.full(shape, self.level, device=past.device)
            steered(missing, times, first=self.held, memory=self.memory, store=True)
            self.held = past.shape[2]
