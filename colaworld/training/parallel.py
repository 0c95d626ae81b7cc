"""The seam for several processes: each is a no-op until torch.distributed is initialised.

Not here: launching processes or sharding a model; training on several devices does not exist yet.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 when alone. Only rank 0 writes files."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes train together, 1 when alone."""
    return dist.get_world_size() if active() else 1


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over processes, in place; `value` unchanged when alone."""
    if active():
        dist.all_reduce(value, op=dist.ReduceOp.SUM)
    return value


def all_gather_rows(rows: Tensor) -> Tensor:
    """Rows [M, N] of every process, in rank order: [M * world_size, N]. Equal M everywhere."""
    if not active():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
