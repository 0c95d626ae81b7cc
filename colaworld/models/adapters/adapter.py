"""The contract of all adapters: real actions in, codes out. Not here: any kind of them.

Shape legend: B clips, T frames, N tokens per action, d token width, A numbers of a transition.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.adapters.config import ActionHeadConfig, AdapterConfig
from colaworld.models.layers.autocast import no_autocast


class Scale(nn.Module):
    """Numbers in the data's units to numbers around 0, and back. Its statistics are buffers."""

    mean: Tensor  # [A]
    std: Tensor  # [A]

    def __init__(self, config: AdapterConfig | ActionHeadConfig) -> None:
        super().__init__()
        size = 0 if config.discrete else config.size
        std = torch.tensor(config.std or (1.0,) * size, dtype=torch.float32)
        mean = torch.tensor(config.mean or (0.0,) * size, dtype=torch.float32)
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    def forward(self, numbers: Tensor) -> Tensor:
        """[..., A] in the data's units -> [..., A]"""
        return (numbers.float() - self.mean) / self.std

    def back(self, numbers: Tensor) -> Tensor:
        """[..., A] -> [..., A] in the data's units"""
        return numbers.float() * self.std + self.mean


class Adapter(nn.Module):
    """Subclasses implement `_codes`, in float32."""

    looks = False
    """Whether it looks at the frame that an action is taken in."""

    def __init__(self, config: AdapterConfig, *, tokens: int, dim: int) -> None:
        super().__init__()
        self.config, self.tokens, self.dim = config, tokens, dim
        self.scale = Scale(config)

    def forward(self, actions: Tensor, frames: Tensor | None = None) -> Tensor:
        """Codes [B, T - 1, N, d], float32, continuous.

        Args:
            actions: int64 [B, T - 1] classes, or floats [B, T - 1, A] in the data's units.
            frames: [B, T - 1, 3, H, W] in [0, 1], those that the actions are taken in; where it `looks`.

        Raises ValueError on another shape or dtype, or frames that it needs and are not there.
        """
        config = self.config
        whole = not (actions.is_floating_point() or actions.dtype == torch.bool)
        if config.discrete:
            if actions.ndim != 2 or not whole:
                raise ValueError(
                    "adapter: expected classes, integers [B, T - 1], got "
                    f"{str(actions.dtype).removeprefix('torch.')} {list(actions.shape)}"
                )
        elif actions.ndim != 3 or actions.shape[-1] != config.size or whole:
            raise ValueError(
                f"adapter: expected floats [B, T - 1, {config.size}], got "
                f"{str(actions.dtype).removeprefix('torch.')} {list(actions.shape)}"
            )
        if self.looks and (frames is None or frames.shape[:2] != actions.shape[:2]):
            got = None if frames is None else list(frames.shape)
            raise ValueError(
                f"adapter: kind {config.kind!r} looks at the frame that each action is taken in: "
                f"expected frames [{', '.join(map(str, actions.shape[:2]))}, 3, H, W], got {got}"
            )
        with no_autocast(actions):
            return self._codes(actions, frames).unflatten(-1, (self.tokens, self.dim))

    def _codes(self, actions: Tensor, frames: Tensor | None) -> Tensor:
        raise TypeError(f"{type(self).__name__} must implement _codes")

    def _numbers(self, actions: Tensor) -> Tensor:
        """[B, T - 1, size]: classes one-hot, numbers standardised."""
        if self.config.discrete:
            return F.one_hot(actions, self.config.size).float()
        return self.scale(actions)
