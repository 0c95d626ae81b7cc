"""Open-Sora's temporal autoencoder: 4 frames of 2-D latents to one, space untouched.

Its convolutions see the past alone; its GroupNorms average over all frames they are given. Every module stands where Open-Sora v1.2 has it (`temporal_vae.*` of the published weights).
Not here: the 2-D autoencoder (image_vae.py), chunks, scale and shift (opensora_vae.py).
Shape legend: B clips, C channels, T frames, H W latent locations.

    in     0 0 0 f0  f1 f2 f3 f4  f5 f6 f7 f8     front-padded with zeros to a multiple of 4
    out       z0         z1           z2
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class TemporalVAE(nn.Module):
    """`moments` encodes to mean and log-variance, `decode` goes back.

    Args:
        channels: of the 2-D latents, and of the latents made here.
        width: filters of the first stage.
        multipliers: filters per stage, in units of `width`.
        layers: residual blocks per stage.
        halve: for each step between two stages, whether time is halved there.
        groups: of every GroupNorm; divides every stage's filters.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        layers: int,
        halve: Sequence[bool],
        groups: int = 32,
    ) -> None:
        super().__init__()
        if len(halve) != len(multipliers) - 1:
            raise ValueError(
                f"temporal VAE: {len(multipliers)} stages have {len(multipliers) - 1} steps "
                f"between them, got {len(halve)} entries that say where time is halved"
            )
        self.stride = 2 ** sum(halve)
        widths = [width * m for m in multipliers]
        self.encoder = _Encoder(channels, widths, layers, halve, groups)
        self.quant_conv = CausalConv3d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = CausalConv3d(channels, channels, 1)
        self.decoder = _Decoder(channels, widths, layers, halve, groups)

    def moments(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, 2 C, ceil(T / stride), H, W]: mean, log-variance."""
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.stride, 0))
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor, frames: int) -> Tensor:
        """[B, C, T', H, W] -> [B, C, frames, H, W]; what stands for padding in front is dropped."""
        return self.decoder(self.post_quant_conv(z))[:, :, -frames % self.stride :]


class CausalConv3d(nn.Module):
    """A 3-D convolution whose padding in time is all in front, so that nothing sees the future."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        side = kernel // 2
        self.padding = (side, side, side, side, kernel - stride, 0)
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, stride=(stride, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class _Residual(nn.Module):
    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in)
        self.conv1 = CausalConv3d(width_in, width, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = CausalConv3d(width, width, 3, bias=False)
        if width_in != width:
            self.conv3 = CausalConv3d(width_in, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv3(x) if hasattr(self, "conv3") else x)


def _residuals(width_in: int, width: int, layers: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        _Residual(width_in if i == 0 else width, width, groups) for i in range(layers)
    )


class _Encoder(nn.Module):
    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        layers: int,
        halve: Sequence[bool],
        groups: int,
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(channels, widths[0], 3, bias=False)
        before = [widths[0], *widths[:-1]]
        self.block_res_blocks = nn.ModuleList(
            _residuals(a, b, layers, groups) for a, b in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(w, w, 3, stride=2) if h else nn.Identity()
            for w, h in zip(widths, halve, strict=False)
        )
        self.res_blocks = _residuals(widths[-1], widths[-1], layers, groups)
        self.norm1 = nn.GroupNorm(groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, stage in enumerate(self.block_res_blocks):
            for block in stage:
                x = block(x)
            if i < len(self.conv_blocks):
                x = self.conv_blocks[i](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(F.silu(self.norm1(x)))


class _Decoder(nn.Module):
    """The encoder backwards; the stages are numbered as in the encoder, from fine to coarse."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        layers: int,
        halve: Sequence[bool],
        groups: int,
    ) -> None:
        super().__init__()
        self.halve = tuple(halve)
        self.conv1 = CausalConv3d(channels, widths[-1], 3)
        self.res_blocks = _residuals(widths[-1], widths[-1], layers, groups)
        coarser = [*widths[1:], widths[-1]]
        self.block_res_blocks = nn.ModuleList(
            _residuals(a, b, layers, groups) for a, b in zip(coarser, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(w, 2 * w, 3) if h else nn.Identity()
            for w, h in zip(widths[1:], halve, strict=True)
        )
        self.norm1 = nn.GroupNorm(groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.res_blocks:
            x = block(x)
        for i in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[i]:
                x = block(x)
            if i > 0 and self.halve[i - 1]:
                x = _unfold_time(self.conv_blocks[i - 1](x))
        return self.conv_out(F.silu(self.norm1(x)))


def _unfold_time(x: Tensor) -> Tensor:
    """[B, 2 C, T, H, W] -> [B, C, 2 T, H, W]: channels 2 c and 2 c + 1 are consecutive frames."""
    return x.unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4, 5).flatten(2, 3)
