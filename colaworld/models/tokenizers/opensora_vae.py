"""Open-Sora's video autoencoder v1.2: a 2-D VAE per frame, then a temporal one over the latents.

Loads the published weights (`hpcai-tech/OpenSora-VAE-v1.2`) key for key and needs no package but
torch: the 2-D part is our own (image_vae.py), since it is 150 lines that a test compares with
diffusers, and a training run should not need diffusers to read its videos.

Time is cut into chunks that know nothing of each other: 17 frames (5 latents), then 16 (4) each.
Up to 33 frames these are the chunks of the original; longer videos it cuts into 17s, whose latents
(5, 5, 5, ...) do not sit at every 4th frame: `encode_published` gives those.

    frames   0 | 1-4 | 5-8 | 9-12 | 13-16 || 17-20 | 21-24 | 25-28 | 29-32 || ...
    latents  0    1     2      3       4       5       6       7       8

Within a chunk the convolutions are causal, but GroupNorm averages over the whole chunk: a latent
does depend, weakly, on later frames of its chunk. The history of a rollout, encoded alone, is
therefore not bit for bit what training saw as the head of a longer clip.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from colaworld.models.backbones.weights import load_weights
from colaworld.models.hub import local_folder
from colaworld.models.layers.autocast import no_autocast
from colaworld.models.tokenizers.config import OpenSoraVAEConfig
from colaworld.models.tokenizers.image_vae import ImageVAE, posterior
from colaworld.models.tokenizers.temporal_vae import TemporalVAE
from colaworld.models.tokenizers.vae import (
    VAE,
    check_frames,
    in_passes,
    to_pixels,
)


class OpenSoraVAE(VAE):
    """See the module's docstring. Keys: spatial_vae.module.*, temporal_vae.*, shift, scale."""

    def __init__(self, config: OpenSoraVAEConfig | None = None) -> None:
        config = config or OpenSoraVAEConfig()
        super().__init__(config)
        # What will be read need not be drawn at random first. A caller that plans on the meta
        # device gets sizes and no weights.
        read = bool(config.path) and not torch.empty(0).is_meta
        with torch.device("meta") if read else contextlib.nullcontext():
            self._build(config)
        if read:
            load_weights(self, local_folder(config.path, what="model.tokenizer.path"))
        self._freeze()

    def _build(self, config: OpenSoraVAEConfig) -> None:
        image = ImageVAE(
            channels=config.channels,
            widths=config.image_widths,
            layers=config.image_layers,
            groups=config.groups,
        )
        self.spatial_vae = nn.ModuleDict({"module": image})
        self.temporal_vae = TemporalVAE(
            channels=config.channels,
            width=config.temporal_width,
            multipliers=config.temporal_multipliers,
            layers=config.temporal_layers,
            halve=config.temporal_halve,
            groups=config.groups,
        )
        for name in ("scale", "shift"):
            value = torch.tensor(getattr(config, name)).view(1, -1, 1, 1, 1)
            self.register_buffer(name, value)

    @torch.no_grad()
    def encode_published(
        self, frames: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Any number of frames [B, T, 3, H, W], cut into chunks of `chunk` as the original does.

        Latents [B, C, T', h, w]: (chunk - 1) / stride + 1 for each full chunk, and for what is
        left over its frames / stride, rounded up. `decode_published` goes back.
        """
        check_frames(frames, self.spatial_stride)
        with no_autocast(frames):
            lengths = self._published_chunks(frames.shape[1])
            return self._encode_chunks(frames, lengths, generator)

    @torch.no_grad()
    def decode_published(self, latents: Tensor, frames: int) -> Tensor:
        """The inverse of `encode_published`: [B, C, T', h, w] -> [B, frames, 3, H, W] in [0, 1]."""
        with no_autocast(latents):
            return self._decode_chunks(latents.float(), self._published_chunks(frames))

    def _published_chunks(self, frames: int) -> list[int]:
        full, left = divmod(frames, self.config.chunk)
        return [self.config.chunk] * full + ([left] if left else [])

    def chunks(self, frames: int) -> list[int]:
        """Frames per chunk of a clip: `chunk` in the first, one less in the others."""
        later = self.config.chunk - 1 if self.config.chunk > 1 else self.temporal_stride
        lengths = [min(frames, self.config.chunk)]
        while (left := frames - sum(lengths)) > 0:
            lengths.append(min(left, later))
        return lengths

    def _encode(self, frames: Tensor, generator: torch.Generator | None) -> Tensor:
        return self._encode_chunks(frames, self.chunks(frames.shape[1]), generator)

    def _decode(self, latents: Tensor) -> Tensor:
        frames = 1 + self.temporal_stride * (latents.shape[2] - 1)
        return self._decode_chunks(latents, self.chunks(frames))

    def _encode_chunks(
        self, frames: Tensor, lengths: list[int], generator: torch.Generator | None
    ) -> Tensor:
        B, T, _, H, W = frames.shape
        image, stride = self.spatial_vae["module"], self.spatial_stride
        place = (self.channels, H // stride, W // stride)
        noise = self._noise(B, (T, *place), generator, frames)

        def moments(part: Tensor) -> Tensor:
            return image.moments(self._to_network(part))

        flat = in_passes(moments, frames.flatten(0, 1), self.config.frames_per_pass, fill=True)
        flat = posterior(flat, None if noise is None else noise.flatten(0, 1))
        x = (flat * self.config.image_scale).unflatten(0, (B, T)).transpose(1, 2)  # [B, C, T, h, w]
        made = []
        for part in x.split(lengths, dim=2):
            z = in_passes(self.temporal_vae.moments, part, 1)
            noise = self._noise(B, (self.channels, *z.shape[2:]), generator, frames)
            made.append(posterior(z, noise))
        return (torch.cat(made, dim=2).float() - self.shift.float()) / self.scale.float()

    def _decode_chunks(self, latents: Tensor, lengths: list[int]) -> Tensor:
        B = latents.shape[0]
        z = (latents * self.scale.float() + self.shift.float()).to(self.dtype)
        image = self.spatial_vae["module"]
        sizes = [-(-length // self.temporal_stride) for length in lengths]
        if sum(sizes) != z.shape[2]:
            raise ValueError(
                f"opensora_vae: {sum(lengths)} frames are {sum(sizes)} latent frames, "
                f"got {z.shape[2]}"
            )
        made = []
        for part, length in zip(z.split(sizes, dim=2), lengths, strict=True):

            def back(one: Tensor, length: int = length) -> Tensor:
                return self.temporal_vae.decode(one, length)

            x = in_passes(back, part, 1).transpose(1, 2)  # [B, length, C, h, w]
            flat = (x / self.config.image_scale).flatten(0, 1)
            pixels = in_passes(
                lambda y: to_pixels(image.decode(y)), flat, self.config.frames_per_pass
            )
            made.append(pixels.unflatten(0, (B, length)))
        return torch.cat(made, dim=1)
