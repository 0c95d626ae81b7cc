"""What evaluation needs of a world: three functions and two numbers, no model class.

Anything that offers them can be evaluated: a trained world model, a copy machine, a scene whose
answer is known. Legend: B clips, T frames, H W pixels, N tokens per action, d token width, K codes.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from colaworld.contracts import LatentActions, Rollout


@runtime_checkable
class World(Protocol):
    """A world that can be steered by latent actions.

    Evaluation calls it without gradients. Whatever is random inside `rollout` must come from
    `generator` alone: evaluation compares rollouts under different actions and *equal* noise.
    """

    codebook_size: int | None
    """K, or None when latent actions are continuous."""
    tokens: int
    """N, tokens per action."""

    def infer_actions(self, frames: Tensor) -> LatentActions:
        """frames [B, T, 3, H, W] float in [0, 1] -> the latent actions of its T-1 transitions."""
        ...

    def rollout(self, history: Tensor, codes: Tensor, *, generator: torch.Generator) -> Rollout:
        """Roll a history forward.

        Args:
            history: [B, h, 3, H, W] float in [0, 1].
            codes: [B, h-1+n, N, d]; codes[:, t] leads from frame t to frame t+1, so the first
                h-1 belong to the history.

        Returns:
            A Rollout of h+n frames, the first h of them the history.
        """
        ...

    def lookup(self, indices: Tensor) -> Tensor:
        """Codebook entries: indices [..., N] -> codes [..., N, d]. Unused when continuous."""
        ...


def seeded(device: torch.device | str, *key: int) -> torch.Generator:
    """A fresh generator for `key`: equal keys give equal noise, different keys unrelated noise."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device).manual_seed(state >> 1)  # manual_seed takes 63 bits


def to_float(frames: Tensor, device: torch.device | str) -> Tensor:
    """uint8 frames -> float in [0, 1] on `device`."""
    return frames.to(device).float() / 255.0
