"""The contract of a tokenizer: pixels to latents and back. Nothing here knows a generator.

With a temporal stride of r the first frame is a latent frame of its own and every r after it are
one more (drawn for r = 4; a latent frame under the last pixel frame it has seen):

    pixel frames    0  1  2  3  4  5  6  7  8
    actions          01 12 23 34 45 56 67 78
    latent frames   0           1           2
    led into by     nothing    01 .. 34    45 .. 78
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Tokenizer(Protocol):
    """Frames are float [B, T, 3, H, W] in [0, 1]; latents are [B, C, T', h, w].

    T = 1 + r (T' - 1). Tokenizers are frozen: their parameters take no gradient.
    """

    channels: int  # C
    temporal_stride: int  # r: how many actions lead into one latent frame
    spatial_stride: int  # H / h = W / w

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1] -> latents [B, C, T', h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T', h, w] -> frames [B, T, 3, H, W] in [0, 1]."""
        ...

    def to(self, device: torch.device | str) -> Any:
        """As `nn.Module.to`: a tokenizer is a module."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As `nn.Module.state_dict`."""
        ...

    def fingerprint(self) -> str:
        """Changes with anything that changes a latent: the configuration and the weights."""
        ...


def latent_frames(frames: int, stride: int) -> int:
    """Latent frames T' of T pixel frames. Raises ValueError unless T = 1 + stride * k."""
    if frames < 1 or (frames - 1) % stride:
        low = max(1, frames - (frames - 1) % stride) if frames > 0 else 1
        raise ValueError(
            f"a tokenizer of temporal stride {stride} takes 1 + {stride} k frames, got {frames}; "
            f"take {low} or {low + stride}"
        )
    return 1 + (frames - 1) // stride
