"""What the forward passes of one optimiser step saw, and its sum over processes.

Memory does not grow with the passes: sums, counts, and a uniform sample of the latents. Nothing
here outlives a step, so none of it is in a checkpoint. Not here: what it changes (base.py,
codebook.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from colaworld.rng import Random, draw_keys

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LAST = 1 << 48  # behind every key


def sum_pieces(pieces: Sequence[Tensor], group: ProcessGroup | None) -> list[Tensor]:
    """Each piece summed over the processes of `group`, in one reduction; None: as they are."""
    if group is None or not pieces:
        return list(pieces)
    flat = torch.cat([piece.flatten() for piece in pieces])
    dist.all_reduce(flat, group=group)
    parts = flat.split([piece.numel() for piece in pieces])
    return [part.view_as(piece) for part, piece in zip(parts, pieces, strict=True)]


def gather_rows(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """Rows [M, ...] of every process, row i of rank r at place i * size + r: [M * size, ...].

    With clips in front this is the order of their slots, whatever the number of processes. Equal M
    everywhere.
    """
    if group is None:
        return rows
    rows = rows.contiguous()  # so that what `empty_like` makes is, as NCCL asks
    every = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, rows, group=group)
    return torch.stack(every, dim=1).flatten(0, 1)


@torch.no_grad()
def take_first(value: Tensor, group: ProcessGroup | None) -> None:
    """Overwrite `value` with that of the first process of `group`."""
    if group is not None:
        dist.broadcast(value, src=dist.get_global_rank(group, 0), group=group)


class _Sum(torch.autograd.Function):
    """The sum over processes; each receives the gradients of all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def mean_over(value: Tensor, group: ProcessGroup | None) -> Tensor:
    """The mean over processes, through which gradients flow to all of them."""
    if group is None or group.size() == 1:
        return value
    return _Sum.apply(value, group) / group.size()


@dataclass
class StepStats:
    """Accumulated over the forward passes of a step; `capacity` bounds the latents kept."""

    capacity: int
    moments: Tensor | None = None  # [2, d + 1] means and scales, summed; their number last
    statistics: Tensor | None = None  # [K, d + 1] packed sums and counts
    latents: Tensor | None = None  # [<= capacity, d]
    _keys: Tensor | None = field(default=None, repr=False)  # [<= capacity] int64, ascending

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

    def add_latents(self, z: Tensor, generator: Random) -> None:
        """Another batch's latents [M, d], each with a random key; those with the lowest keys stay.

        A uniform sample in random order, and the same one however the step's clips are spread over
        passes and processes. What is not finite is left out.
        """
        keys = draw_keys(len(z), generator, z.device)
        keys = keys.where(z.isfinite().all(1), _LAST)
        if self.latents is not None and self._keys is not None:
            z, keys = torch.cat([self.latents, z]), torch.cat([self._keys, keys])
        lowest = keys.argsort()[: self.capacity]
        self.latents, self._keys = z[lowest], keys[lowest]

    def offer(self, count: int, group: ProcessGroup | None) -> Tensor:
        """This process's part of a table [size, count, d + 2] that is whole once summed: its latents
        of the lowest keys, and the keys as two float32 that hold them exactly."""
        assert self.latents is not None and self._keys is not None
        rank, size = (0, 1) if group is None else (group.rank(), group.size())
        table = self.latents.new_zeros(size, count, self.latents.shape[1] + 2)
        table[..., -2] = _LAST >> 24
        if size > 1:  # the sum over processes must be that of one
            table[torch.arange(size, device=table.device) != rank] = 0
        mine = min(count, len(self.latents))
        keys = self._keys[:mine]
        table[rank, :mine, :-2] = self.latents[:mine].where(keys[:, None] < _LAST, 0)
        table[rank, :mine, -2] = (keys >> 24).float()
        table[rank, :mine, -1] = (keys & 0xFFFFFF).float()
        return table


def offered(table: Tensor) -> Tensor:
    """Of a summed table of `StepStats.offer` [size, count, d + 2] the count latents [L <= count, d] of the
    lowest keys, in their order."""
    rows = table.flatten(0, 1)
    keys = (rows[:, -2].long() << 24) + rows[:, -1].long()
    lowest = keys.argsort()[: table.shape[1]]
    return rows[lowest[keys[lowest] < _LAST], :-2]
