"""The 2-D autoencoder of Stable Diffusion and SDXL: one frame at a time, 8x8 pixels to 4 numbers.

Every module stands where diffusers' `AutoencoderKL` has it, so that published weights load by name,
and needs no package but torch. Not here: video, scale and shift of latents (opensora_vae.py).
Shape legend: N frames, C channels, H W pixels or latent locations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6  # of every GroupNorm here; that of the temporal part differs


class ImageVAE(nn.Module):
    """`moments` encodes to mean and log-variance, `decode` goes back; both in [-1, 1] pixels.

    Args:
        channels: of a latent.
        widths: filters per resolution; between two of them, height and width are halved.
        layers: residual blocks per resolution of the encoder; the decoder has one more.
        groups: of every GroupNorm; divides every width.
    """

    def __init__(
        self, *, channels: int, widths: Sequence[int], layers: int, groups: int = 32
    ) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        self.encoder = _Encoder(channels, widths, layers, groups)
        self.decoder = _Decoder(channels, widths, layers, groups)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def moments(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> [N, 2 C, H / stride, W / stride]: mean, log-variance."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, 3, h * stride, w * stride], near [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents))


class _Encoder(nn.Module):
    def __init__(self, channels: int, widths: Sequence[int], layers: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        before = [widths[0], *widths[:-1]]
        self.down_blocks = nn.ModuleList(
            _Stage(a, b, layers, groups, down=i < len(widths) - 1)
            for i, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        self.mid_block = _Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class _Decoder(nn.Module):
    def __init__(self, channels: int, widths: Sequence[int], layers: int, groups: int) -> None:
        super().__init__()
        widths = widths[::-1]
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.mid_block = _Middle(widths[0], groups)
        before = [widths[0], *widths[:-1]]
        self.up_blocks = nn.ModuleList(
            _Stage(a, b, layers + 1, groups, up=i < len(widths) - 1)
            for i, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class _Stage(nn.Module):
    """The residual blocks of one resolution, then a change of resolution or none."""

    def __init__(
        self,
        width_in: int,
        width: int,
        layers: int,
        groups: int,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _Residual(width_in if i == 0 else width, width, groups) for i in range(layers)
        )
        if down:
            self.downsamplers = nn.ModuleList([_Halve(width)])
        if up:
            self.upsamplers = nn.ModuleList([_Double(width)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x)
        return x


class _Middle(nn.Module):
    """Residual block, attention over all locations of a frame, residual block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Residual(width, width, groups) for _ in range(2))
        self.attentions = nn.ModuleList([_Attention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class _Residual(nn.Module):
    def __init__(self, width_in: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=_EPS)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=_EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if width_in != width:
            self.conv_shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class _Attention(nn.Module):
    """One head as wide as the block, with a residual connection."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=_EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [N, H W, C]
        q, k, v = (f(tokens).unsqueeze(1) for f in (self.to_q, self.to_k, self.to_v))
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        y = self.to_out[0](y).transpose(1, 2).reshape(x.shape)
        return x + y


class _Halve(nn.Module):
    """Stride 2. The frame is padded on its right and lower side alone, as the weights expect."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Double(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def posterior(moments: Tensor, noise: Tensor | None) -> Tensor:
    """[N, 2 C, ...] mean and log-variance -> [N, C, ...]: the mean, or mean + deviation * noise."""
    mean, log_variance = moments.chunk(2, dim=1)
    if noise is None:
        return mean
    # The bounds are those of diffusers: exp stays finite in half precision's neighbourhood.
    return mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise
