"""Where did each patch come from? A local matching volume between neighbouring frames.

The cost volume of optical-flow networks (Dosovitskiy et al. 2015; Sun et al. 2018), as a
probability: a softmax over the patches around the same place in the frame before, told as a lift over
chance so that it is as large as pixel values are. Nothing learned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def matching_volume(patches: Tensor, *, radius: int, temperature: float = 0.05) -> Tensor:
    """Match probabilities of every patch of frame t with its surroundings in frame t - 1.

    Args:
        patches: [B, T, C, h, w] pixel values of patches in [-1, 1].
        radius: patches to either side; (2 radius + 1)^2 candidates, row by row.
        temperature: mean squared difference at which a candidate's weight falls by e.

    Returns:
        [B, T, n, h, w] with n = (2 radius + 1)^2 candidates: n p - 1, which is 0 at chance and n - 1
        for a sure match; 0 for frame 0, which has no frame before it. Places beyond the border
        repeat the border.
    """
    B, T, _, h, w = patches.shape
    side = 2 * radius + 1
    before = F.pad(patches[:, :-1].flatten(0, 1), (radius,) * 4, mode="replicate")
    now = patches[:, 1:].flatten(0, 1)
    cost = torch.stack(
        [
            (now - before[:, :, dy : dy + h, dx : dx + w]).square().mean(1)
            for dy in range(side)
            for dx in range(side)
        ],
        dim=1,
    )
    lift = side**2 * torch.softmax(-cost / temperature, dim=1) - 1
    lift = lift.unflatten(0, (B, T - 1))
    return torch.cat([torch.zeros_like(lift[:, :1]), lift], dim=1)
