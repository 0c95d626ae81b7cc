"""What the forward passes of one optimiser step saw, and its sum over processes.

Memory does not grow with the passes: sums, counts, and a uniform sample of the latents. Nothing
here outlives a step, so none of it is in a checkpoint. Not here: what it changes (base.py,
codebook.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def _unchanged(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Ranks:
    """The processes whose statistics count together; by default this one alone.

    `reduce` sums a tensor over the processes (in place or not) and returns the same bits on each,
    as `training.parallel.all_reduce_sum` does.
    """

    reduce: Callable[[Tensor], Tensor] = _unchanged
    rank: int = 0  # of this process
    size: int = 1  # how many there are

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"ranks: expected 0 <= rank < size, got {self.rank} of {self.size}")

    def total(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Each piece summed over the processes, in one reduction."""
        if not pieces:
            return []
        flat = self.reduce(torch.cat([piece.flatten() for piece in pieces]))
        parts = flat.split([piece.numel() for piece in pieces])
        return [part.view_as(piece) for part, piece in zip(parts, pieces, strict=True)]

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [M, d] of every process in rank order, [size * M, d]. Equal M everywhere."""
        if self.size == 1:
            return rows
        every = rows.new_zeros(self.size, *rows.shape)
        every[self.rank] = rows
        return self.reduce(every).flatten(0, 1)

    def agreed(self, generator: torch.Generator | None) -> torch.Generator | None:
        """A generator that draws the same on every process; alone, the given one."""
        if self.size == 1:
            return generator
        device = "cpu" if generator is None else generator.device
        seed = torch.randint(1 << 48, (1,), generator=generator, device=device)
        seed = self.reduce(seed if self.rank == 0 else torch.zeros_like(seed))
        return torch.Generator(device).manual_seed(int(seed))


@dataclass
class Pending:
    """Accumulated over the forward passes of a step; `capacity` bounds the latents kept."""

    capacity: int
    moments: Tensor | None = None  # [2, d + 1] means and scales, summed; their number last
    statistics: Tensor | None = None  # [K, d + 1] packed sums and counts
    latents: Tensor | None = None  # [<= capacity, d]
    _keys: Tensor | None = field(default=None, repr=False)  # [<= capacity]

    def clear(self) -> None:
        self.moments = self.statistics = self.latents = self._keys = None

    def add_moments(self, mean: Tensor, scale: Tensor) -> None:
        """Another batch's mean [d] and scale [d] of the channels."""
        once = torch.stack([mean, scale])
        once = torch.cat([once, once.new_ones(2, 1)], dim=1)
        self.moments = once if self.moments is None else self.moments + once

    def add_statistics(self, packed: Tensor) -> None:
        """Another batch's packed sums and counts [K, d + 1]."""
        self.statistics = packed if self.statistics is None else self.statistics + packed

    def add_latents(self, z: Tensor, generator: torch.Generator | None) -> None:
        """Another batch's latents [M, d]: all while there is room, else a uniform sample.

        Once there is no room, every latent has drawn a key, and those with the lowest stay, in the
        order they came. Nothing is drawn before.
        """
        if self.latents is not None:
            z = torch.cat([self.latents, z])
        if len(z) > self.capacity:
            known = z.new_empty(0) if self._keys is None else self._keys
            drawn = torch.rand(len(z) - len(known), generator=generator, device=z.device)
            keys = torch.cat([known, drawn])
            lowest = keys.topk(self.capacity, largest=False).indices.sort().values
            z, self._keys = z[lowest], keys[lowest]
        self.latents = z

    def offer(self, slots: int, ranks: Ranks, *, order: Tensor | None = None) -> Tensor:
        """This process's part of a table of latents [slots, d + 1] that is complete once summed.

        Process r fills slots r, r + size, ... with its finite latents, in `order` [len(latents)]
        if given; the last column says which slots are filled:

            slots   0  1  2  3  4        of two processes, the first with three latents and the
            rank    0  1  0  -  0        second with one
        """
        assert self.latents is not None
        mine = self.latents if order is None else self.latents[order]
        mine = mine[mine.isfinite().all(1)]
        table = mine.new_zeros(slots, mine.shape[1] + 1)
        places = table[ranks.rank :: ranks.size]
        filled = min(len(places), len(mine))
        places[:filled, :-1] = mine[:filled]
        places[:filled, -1] = 1
        return table


def offered(table: Tensor) -> Tensor:
    """The latents [L, d] of a summed table of `Pending.offer`."""
    return table[table[:, -1] > 0, :-1]
