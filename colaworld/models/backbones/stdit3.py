"""STDiT3, the factorised video diffusion transformer of Open-Sora v1.2, as a world-model backbone.

One class from nano (1.0 M parameters) to XL/2 (1.2 B): module names are those of the published
weights, so that they load key for key. What CoLA-World changes: temporal attention may be causal,
cross-attention may be removed (it is here: see `text`), every frame has its own diffusion time,
and an additive modulation per frame and block carries the latent action.

Shape legend: B clips, T latent frames, S = h * w / 4 tokens per frame, C width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from colaworld.models.layers.attention import AxialAttention
from colaworld.models.layers.embeddings import ScalarEmbedder, grid_embedding
from colaworld.models.layers.mlp import MLP
from colaworld.ops import adaln

TIME_SCALE = 1000.0  # STDiT3 embeds times in [0, 1000]


@dataclass(frozen=True)
class STDiT3Config:
    """Sizes of the generator. `xl2()` gives the published layout."""

    kind: Literal["stdit3"] = field(default="stdit3", kw_only=True)
    """Which generator this is; the recipe decides it."""
    depth: int = 4
    """Pairs of one spatial and one temporal block."""
    width: int = 96
    """Channels of a token."""
    heads: int = 3
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over width."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of one token."""
    in_channels: int = 12
    """Channels of a latent."""
    predict_sigma: bool = False
    """Twice the output channels, of which the second half is ignored (as published)."""
    input_sq_size: int = 32
    """Reference size of the position embedding, in pixels (published: 512)."""
    pixels_per_latent: int = 2
    """Pixels per side of one latent location, for the position embedding's scale."""
    causal: bool = True
    """Temporal attention sees no later frame (CoLA-World)."""
    text: Literal["removed"] = "removed"
    """Cross-attention to a caption; CoLA-World removes it."""

    @staticmethod
    def nano() -> STDiT3Config:
        """The generator shipped with the library; runs on a CPU."""
        return STDiT3Config()

    @staticmethod
    def tiny() -> STDiT3Config:
        """About 10 M parameters: an evening on one GPU."""
        return STDiT3Config(depth=6, width=256, heads=8)

    @staticmethod
    def xl2() -> STDiT3Config:
        """STDiT3-XL/2 of Open-Sora v1.2 without its text path."""
        return STDiT3Config(
            depth=28,
            width=1152,
            heads=16,
            in_channels=4,
            predict_sigma=True,
            input_sq_size=512,
            pixels_per_latent=8,
        )


class PatchEmbedding(nn.Module):
    """Conv3d whose kernel equals its stride; its `proj` has the published key."""

    def __init__(self, patch: tuple[int, int, int], channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        # As one matrix product: the same numbers as the convolution, several times faster on a CPU.
        B, C, T, H, W = x_BCTHW.shape
        pt, ph, pw = self.proj.kernel_size
        x = x_BCTHW.reshape(B, C, T // pt, pt, H // ph, ph, W // pw, pw)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(
            B, T // pt, (H // ph) * (W // pw), C * pt * ph * pw
        )
        return nn.functional.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class STDiT3Block(nn.Module):
    """Attention and MLP, each modulated and gated per frame.

    The MLP's gated residual is left pending (`y`, `gate`) and added by the next `adaln`, which
    fuses gate, residual, norm and modulation into one pass over the tokens.
    """

    def __init__(self, config: STDiT3Config, *, temporal: bool) -> None:
        super().__init__()
        width = config.width
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn = AxialAttention(
            width,
            config.heads,
            axis="temporal" if temporal else "spatial",
            causal=temporal and config.causal,
            rope_theta=10_000.0 if temporal else None,
            zero_init=temporal,
        )
        self.mlp = MLP(width, int(width * config.mlp_ratio), zero_init=True)

    def forward(
        self,
        x: Tensor,  # [B, T, S, C]
        y: Tensor | None,  # [B, T, S, C] pending branch of the block before
        gate: Tensor | None,  # [B, T, C] its gate
        modulation: Tensor,  # [B, T, 6 * C]
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = modulation.shape
        six = (self.scale_shift_table + modulation.view(B, T, 6, -1)).unbind(2)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = six
        x, h = adaln(x, y, gate=gate, shift=shift_attn, scale=scale_attn)
        x, h = adaln(x, self.attn(h), gate=gate_attn, shift=shift_mlp, scale=scale_mlp)
        return x, self.mlp(h), gate_mlp


class FinalLayer(nn.Module):
    """Norm, modulation by the time embedding, projection to the pixels of a patch."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, values)

    def forward(self, x: Tensor, y: Tensor, gate: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + time[:, :, None]).unbind(2)
        _, h = adaln(x, y, gate=gate, shift=shift, scale=scale)
        return self.linear(h)


def _starts_at_zero(name: str) -> bool:
    """Which linear layers are zero at the start (their constructors set it), as published."""
    if name == "fps_embedder.mlp.2" or name.endswith(".mlp.fc2"):
        return True
    return name.startswith("temporal_blocks.") and name.endswith(".attn.proj")


class STDiT3(nn.Module):
    """Velocity of every latent frame. Satisfies `backbones.base.Backbone`."""

    def __init__(self, config: STDiT3Config | None = None) -> None:
        super().__init__()
        self.config = config = config or STDiT3Config()
        if config.patch[0] != 1:
            raise ValueError(f"STDiT3: the temporal patch must be 1, got {config.patch[0]}")
        width = config.width
        self.width, self.channels = width, config.in_channels
        self.modulated_blocks = 2 * config.depth
        self.x_embedder = PatchEmbedding(config.patch, config.in_channels, width)
        self.t_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width, zero_init=True)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.spatial_blocks = nn.ModuleList(
            STDiT3Block(config, temporal=False) for _ in range(config.depth)
        )
        self.temporal_blocks = nn.ModuleList(
            STDiT3Block(config, temporal=True) for _ in range(config.depth)
        )
        out = config.in_channels * (2 if config.predict_sigma else 1)
        self.out_channels = out
        self.final_layer = FinalLayer(width, config.patch[1] * config.patch[2] * out)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier, but for the layers that start at zero; these are told by name, so that a model
        without storage (the meta device) can be built too."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if not _starts_at_zero(name):
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        weight = self.x_embedder.proj.weight
        nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
        nn.init.zeros_(self.x_embedder.proj.bias)

    def forward(
        self,
        x: Tensor,  # [B, C, T, h, w] latents
        timestep: Tensor,  # [B] or [B, T] in [0, 1000]
        *,
        fps: Tensor | float = 0.0,
        modulation: Tensor | None = None,  # [B, T, 1 | 2 * depth, 6 * width]
    ) -> Tensor:
        """[B, out_channels, T, h, w] float32; the first `in_channels` are the velocity.

        Raises ValueError on latents or a modulation of a wrong shape.
        """
        B, C, T, H, W = x.shape
        _, ph, pw = self.config.patch
        if self.channels != C or H % ph or W % pw:
            raise ValueError(
                f"STDiT3: expected latents [B, {self.channels}, T, h, w] with h and w multiples of "
                f"{ph} and {pw}, got {tuple(x.shape)}"
            )
        if modulation is not None:
            self._check_modulation(modulation, B, T)
        rows, columns = H // ph, W // pw
        dtype = self.x_embedder.proj.weight.dtype
        if timestep.ndim == 1:
            timestep = timestep[:, None].expand(B, T)
        rate = torch.as_tensor(fps, device=x.device, dtype=torch.float32).expand(B)
        time = self.t_embedder(timestep) + self.fps_embedder(rate)[:, None]  # [B, T, C]
        base = self.t_block(time)  # [B, T, 6 C]

        pixels = self.config.pixels_per_latent
        scale = (H * pixels * W * pixels) ** 0.5 / self.config.input_sq_size
        position = grid_embedding(rows, columns, self.width, scale=scale, device=x.device)
        h = self.x_embedder(x.to(dtype)) + position.to(dtype)

        y = gate = None
        for pair in range(self.config.depth):
            for slot, blocks in ((0, self.spatial_blocks), (1, self.temporal_blocks)):
                added = base
                if modulation is not None:
                    index = 2 * pair + slot if modulation.shape[2] > 1 else 0
                    added = base + modulation[:, :, index]
                h, y, gate = blocks[pair](h, y, gate, added)
        out = self.final_layer(h, y, gate, time).float()
        out = out.view(B, T, rows, columns, ph, pw, self.out_channels)
        return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(B, self.out_channels, T, H, W)

    def _check_modulation(self, modulation: Tensor, B: int, T: int) -> None:
        slots, values = self.modulated_blocks, 6 * self.width
        if tuple(modulation.shape) not in ((B, T, 1, values), (B, T, slots, values)):
            raise ValueError(
                f"STDiT3: modulation: expected [{B}, {T}, 1 or {slots}, {values}], got "
                f"{list(modulation.shape)}"
            )

    def velocity(
        self, latents: Tensor, times: Tensor, *, modulation: Tensor | None = None, fps: float = 0.0
    ) -> Tensor:
        """See `backbones.base.Backbone.velocity`."""
        out = self(latents, times * TIME_SCALE, fps=fps, modulation=modulation)
        return out[:, : self.channels]
