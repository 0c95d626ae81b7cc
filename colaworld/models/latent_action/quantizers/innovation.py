"""What the frame before foretells of a latent action, and what is left: its innovation.

An innovation is the part of an observation that the past does not predict (Kailath 1968, An innovations approach to
least-squares estimation, part I). A latent that an untrained inverse dynamics model reads from a frame is mostly what
the frame shows, and that was there a frame earlier; on Crafter 97 to 99 % of its variance. Codes that start from such
latents tell scenes apart, not moves. Not here: where both readings come from (idm.py), scales (quantizer.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Foretold(nn.Module):
    """The linear least-squares prediction of z from the same reading of the frame before, shared by all tokens.

    It follows running second moments of both, which move by `update` once per optimiser step; `forward` changes
    nothing. No gradient trains it.
    """

    weight: Tensor  # [d, d]
    bias: Tensor  # [d]
    moments: Tensor  # [2 d + 1, 2 d + 1] of (before, z, 1)

    def __init__(self, dim: int, *, momentum: float = 0.1, ridge: float = 1e-4) -> None:
        super().__init__()
        self.dim, self.momentum, self.ridge = dim, momentum, ridge
        self.register_buffer("weight", torch.zeros(dim, dim))
        self.register_buffer("bias", torch.zeros(dim))
        self.register_buffer("moments", torch.zeros(2 * dim + 1, 2 * dim + 1))

    def forward(self, before: Tensor) -> Tensor:
        """before [..., d] -> what it foretells of z, the same shape."""
        return before @ self.weight + self.bias

    @staticmethod
    @torch.no_grad()
    def moments_of(both: Tensor) -> Tensor:
        """Second moments [2 d + 1, 2 d + 1] of rows (before, z) [..., 2 d], each with a 1 behind it."""
        rows = both.reshape(-1, both.shape[-1])
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        return rows.T @ rows / len(rows)

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Move the running moments towards those of a step."""
        self.moments.lerp_(moments, self.momentum)
        self._solve()

    @torch.no_grad()
    def start(self, both: Tensor) -> None:
        """Take them from rows (before, z) [..., 2 d]."""
        self.moments.copy_(self.moments_of(both))
        self._solve()

    def _solve(self) -> None:
        d, moments = self.dim, self.moments.double()
        mean = moments[-1, :-1]
        covariance = moments[:-1, :-1] - mean[:, None] * mean
        before = covariance[:d, :d]
        # Channels that hardly vary foretell nothing, in place of anything.
        ridge = self.ridge * before.diagonal().mean().clamp_min(1e-12)
        eye = torch.eye(d, dtype=before.dtype, device=before.device)
        weight = torch.linalg.solve(before + ridge * eye, covariance[:d, d:])
        self.weight.copy_(weight)
        self.bias.copy_(mean[d:] - mean[:d] @ weight)
