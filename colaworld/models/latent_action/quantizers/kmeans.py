"""Where a codebook starts: rows of z that are far apart, or the centres of clusters of z.

Not here: which latents those are and when (codebook.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from colaworld.ops import code_statistics, vector_quantize


def kmeans_pp(
    z: Tensor,  # [M, d]
    count: int,
    generator: torch.Generator | None,
) -> Tensor:  # [count, d]
    """k-means++ seeding (Arthur and Vassilvitskii 2007): `count` well-spread rows of z."""
    chosen = [torch.randint(z.shape[0], (1,), generator=generator, device=z.device)]
    nearest = torch.full((z.shape[0],), float("inf"), device=z.device)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (z - z[chosen[-1]]).square().sum(1))
        weight = nearest + 1e-12
        chosen.append(torch.multinomial(weight, 1, generator=generator))
    return z[torch.cat(chosen)].clone()


def kmeans(
    z: Tensor,  # [M, d]
    count: int,
    generator: torch.Generator | None,
    *,
    rounds: int = 20,
) -> Tensor:  # [count, d]
    """Centres of `count` clusters of z: k-means++ seeding, then Lloyd's algorithm."""
    centres = kmeans_pp(z, count, generator)
    for _ in range(rounds):
        _, nearest = vector_quantize(z, centres)
        packed = code_statistics(z, nearest, count)
        total, size = packed[:, :-1], packed[:, -1:]
        centres = torch.where(size > 0, total / size.clamp(min=1), centres)
    return centres
