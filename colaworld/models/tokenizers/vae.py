"""What every learned tokenizer does alike: frozen, in its own dtype, in passes of bounded size.

Not here: any network (image_vae.py, temporal_vae.py, diffusers) or where weights are found
(opensora_vae.py, diffusers_vae.py).

A latent must not depend on what it was encoded beside, else a cache of latents would differ from
encoding on the fly. So a pass always has the same number of frames (the last is filled up), what
sees several frames sees one clip at a time, noise is the same for each clip, and autocast is off.
Shape legend: B clips, T frames, C channels, H W pixels, T' h w latents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from colaworld.models.layers.autocast import no_autocast
from colaworld.models.tokenizers.tokenizer import latent_frames


class VAE(nn.Module):
    """A frozen autoencoder of video. A subclass builds its network, calls `_freeze`, and writes
    `_encode` and `_decode`.

    `config` is a dataclass with at least `kind`, `posterior`, `seed`, `dtype`, and the properties
    `channels`, `temporal_stride`, `spatial_stride`.
    """

    not_hashed: tuple[str, ...] = (
        "path",
        "frames_per_pass",
    )  # what does not change which latents are meant

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.channels: int = config.channels
        self.temporal_stride: int = config.temporal_stride
        self.spatial_stride: int = config.spatial_stride

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; latents and frames come out as float32 all the same."""
        return getattr(torch, self.config.dtype)

    def train(self, mode: bool = True) -> VAE:
        """Stays in evaluation: a frozen tokenizer has no training mode."""
        return super().train(False)

    def encode(
        self,
        frames: Tensor,  # [B, T, 3, H, W] float in [0, 1], T = 1 + temporal_stride * k
        *,
        generator: torch.Generator | None = None,
        gradient: bool = False,
    ) -> Tensor:
        """Latents [B, C, T', H / s, W / s], float32, T' = 1 + k.

        With posterior "sample" the noise comes from `generator`, or, without one, from the
        config's seed: then it is the same for each clip, so that a clip has one latent.
        `gradient` lets gradients through to the frames (never to the weights).

        Raises:
            ValueError: a shape or dtype that does not fit; names what would.
        """
        check_frames(frames, self.spatial_stride)
        latent_frames(frames.shape[1], self.temporal_stride)
        with torch.set_grad_enabled(gradient), no_autocast(frames):
            return self._encode(frames, generator).float()

    def decode(self, latents: Tensor, *, gradient: bool = False) -> Tensor:
        """[B, C, T', h, w] -> frames [B, 1 + temporal_stride (T' - 1), 3, h s, w s] in [0, 1].

        Float32. `gradient` lets gradients through to the latents. Raises ValueError on a shape
        that is not that of its latents.
        """
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(
                f"{self.config.kind} tokenizer: expected latents [B, {self.channels}, T', h, w], "
                f"got {list(latents.shape)}"
            )
        with torch.set_grad_enabled(gradient), no_autocast(latents):
            return self._decode(latents.float())

    def fingerprint(self) -> str:
        """Changes with the weights, and with whatever of the configuration changes a latent.

        Not with `path` or the size of a pass. It reads all weights: ask once, not per batch.
        """
        values = dataclasses.asdict(self.config)
        values = {k: v for k, v in values.items() if k not in self.not_hashed}
        digest = hashlib.sha256(json.dumps([values, self._identity()], sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return f"{self.config.kind} {digest.hexdigest()[:32]}"

    def _identity(self) -> Any:
        """What else changes a latent and stands in neither config nor weights. JSON values."""
        return None

    def _freeze(self) -> None:
        for network in self.children():  # scale and shift, which are ours, stay in float32
            nn.Module.to(network, self.dtype)  # diffusers' own `to` warns about nothing
        self.requires_grad_(False)
        super().train(False)

    def _encode(self, frames: Tensor, generator: torch.Generator | None) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1], checked -> latents [B, C, T', h, w]."""
        raise NotImplementedError

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, T', h, w] in float32 -> frames [B, T, 3, H, W] in [0, 1], float32."""
        raise NotImplementedError

    def _noise(
        self, clips: int, shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor
    ) -> Tensor | None:
        """[clips, *shape] of unit noise in our dtype; None where the mean is wanted."""
        if self.config.posterior == "mean":
            return None
        if generator is not None:
            drawn = torch.randn((clips, *shape), generator=generator, device=generator.device)
        else:
            own = torch.Generator().manual_seed(self.config.seed)
            drawn = torch.randn(shape, generator=own, device="cpu").expand(clips, *shape)
        return drawn.to(like.device, self.dtype)

    def _to_network(self, frames: Tensor) -> Tensor:
        """[0, 1] -> [-1, 1] in our dtype."""
        return (frames.float() * 2 - 1).to(self.dtype)


def to_pixels(values: Tensor) -> Tensor:
    """[-1, 1] of a network -> float32 in [0, 1]."""
    return (values.float() + 1).div(2).clamp(0, 1)


def in_passes(
    function: Callable[[Tensor], Tensor], x: Tensor, size: int, *, fill: bool = False
) -> Tensor:
    """`function` over the first dimension of x [N, ...], `size` entries at a time.

    `fill`: the last pass is filled up with copies, so that every pass has the same shape and an
    entry's result does not depend on how many others there are.
    """
    made = []
    for part in x.split(size):
        real = part.shape[0]
        if fill and real < size:
            part = torch.cat([part, part[-1:].expand(size - real, *part.shape[1:])])
        made.append(function(part)[:real])
    return torch.cat(made)


def check_frames(frames: Tensor, stride: int) -> None:
    """ValueError unless float [B, T, 3, H, W] with height and width multiples of `stride`."""
    if frames.ndim != 5 or frames.shape[2] != 3 or not frames.is_floating_point():
        raise ValueError(
            f"tokenizer: expected float frames [B, T, 3, H, W] in [0, 1], got {frames.dtype} "
            f"{list(frames.shape)}"
        )
    H, W = frames.shape[3:]
    if H % stride or W % stride:
        good = [max(stride, stride * round(side / stride)) for side in (H, W)]
        raise ValueError(
            f"tokenizer: height and width must be multiples of {stride}, got {H}x{W}; set "
            f"data.height and data.width, for example to {good[0]}x{good[1]}"
        )
