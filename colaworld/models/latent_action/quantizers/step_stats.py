"""What the forward passes of one optimiser step saw, and its sum over processes.

Memory does not grow with the passes: sums, counts, and a uniform sample of the latents. Nothing
here outlives a step, so none of it is in a checkpoint. Not here: what it changes (base.py,
codebook.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sum_pieces(pieces: Sequence[Tensor], group: ProcessGroup | None) -> list[Tensor]:
    """Each piece summed over the processes of `group`, in one reduction; None: as they are."""
    if group is None or not pieces:
        return list(pieces)
    flat = torch.cat([piece.flatten() for piece in pieces])
    dist.all_reduce(flat, group=group)
    parts = flat.split([piece.numel() for piece in pieces])
    return [part.view_as(piece) for part, piece in zip(parts, pieces, strict=True)]


def gather_rows(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """Rows [M, d] of every process in rank order, [size * M, d]. Equal M everywhere."""
    if group is None:
        return rows
    every = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, rows.contiguous(), group=group)
    return torch.cat(every)


def shared_generator(
    generator: torch.Generator | None, group: ProcessGroup | None
) -> torch.Generator | None:
    """A generator that draws the same on every process of `group`; alone, the given one."""
    if group is None:
        return generator
    device = "cpu" if generator is None else generator.device
    seed = torch.randint(1 << 48, (1,), generator=generator, device=device)
    dist.broadcast(seed, group_src=0, group=group)
    return torch.Generator(device).manual_seed(int(seed))


@dataclass
class StepStats:
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

    def offer(
        self, slots: int, group: ProcessGroup | None, *, order: Tensor | None = None
    ) -> Tensor:
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
        rank, size = (0, 1) if group is None else (group.rank(), group.size())
        places = table[rank::size]
        filled = min(len(places), len(mine))
        places[:filled, :-1] = mine[:filled]
        places[:filled, -1] = 1
        return table


def offered(table: Tensor) -> Tensor:
    """The latents [L, d] of a summed table of `StepStats.offer`."""
    return table[table[:, -1] > 0, :-1]
