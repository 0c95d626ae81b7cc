"""What a pre-trained video model loses when its cross-attention to text is removed.

Both ways see the same clips, noise and times (paired), so that the difference is the removal's and
not the draw's. Not here: how the two generators are built (recipes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from colaworld.evaluation.rollouts import noise_of
from colaworld.evaluation.settings import RandomStream
from colaworld.flow.loss import flow_matching_loss
from colaworld.flow.path import interpolate, target_velocity
from colaworld.flow.samplers import Velocity
from colaworld.rng import draw

TIMES = (0.2, 0.5, 0.8)  # from mostly picture to mostly noise


@torch.no_grad()
def text_effect(
    null: Velocity,
    removed: Velocity,
    latents: Tensor,  # [M, C, T, h, w] clean
    *,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Flow loss of the video model fed with the null caption, and without cross-attention.

    The first latent frame is given clean, the rest is noised at each of `TIMES`. `change` is the
    relative change of the velocity, || removed - null || / || null ||, over the noised frames.

    Raises ValueError on clips of a single latent frame.
    """
    if latents.shape[2] < 2:
        raise ValueError(
            f"evaluation.text_effect: needs clips of at least 2 latent frames, got {latents.shape[2]}"
        )
    drawn: Any = {"seed": seed, "stream": RandomStream.TEXT_EFFECT}
    loss = {"null": 0.0, "removed": 0.0}
    gap = size = 0.0
    for start in range(0, len(latents), batch_size):
        x0 = latents[start : start + batch_size]
        own = range(start, start + len(x0))
        generator = noise_of(own, of=len(latents), device=x0.device, **drawn)
        noise = draw(torch.randn, x0.shape, generator, large=True)
        predict = torch.ones(x0.shape[0], x0.shape[2], dtype=torch.bool, device=x0.device)
        predict[:, 0] = False
        for time in TIMES:
            times = time * predict
            x_t, target = interpolate(x0, noise, times), target_velocity(x0, noise)
            found = {"null": null(x_t, times), "removed": removed(x_t, times)}
            for name, velocity in found.items():
                error = flow_matching_loss(velocity, target, predict)
                loss[name] += float(error) * len(x0) / (len(latents) * len(TIMES))
            later = {name: velocity[:, :, 1:].double() for name, velocity in found.items()}
            gap += float((later["removed"] - later["null"]).square().sum())
            size += float(later["null"].square().sum())
    return {
        "loss_null_caption": loss["null"],
        "loss_removed": loss["removed"],
        "change": (gap / size) ** 0.5 if size else float("nan"),
        "times": list(TIMES),
        "clips": len(latents),
    }
