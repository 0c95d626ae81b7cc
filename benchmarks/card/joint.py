"""A joint step at the paper's size: IDM, quantizer, conditioner and STDiT3-XL, forward to AdamW.

The latents are given, as from a cache; weights are random. One model serves every way of running it:
a way is which op implementations are chosen and whether its blocks are compiled. Not here: training's
own loop (`benchmarks/training.py` times that, at the size of a recipe).

Shape legend: B clips, T frames, h x w latents, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from colaworld.flow.loss import masked_velocity_loss
from colaworld.flow.path import interpolate, target_velocity
from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.conditioning import ActionConditioner, ConditionerConfig
from colaworld.models.latent_action.idm import IDMConfig, InverseDynamicsModel
from colaworld.models.latent_action.quantizers import QuantizerConfig, build_quantizer

from ..arms import Arm, autocast


@dataclass(frozen=True)
class JointConfig:
    """Sizes of the parts and of a batch; the default is the paper's."""

    backbone: STDiT3Config = field(default_factory=STDiT3Config.xl2)
    """The generator: 28 pairs of blocks of width 1152."""
    idm: IDMConfig = field(default_factory=IDMConfig.paper)
    """The inverse dynamics model."""
    conditioner: ConditionerConfig = field(
        default_factory=lambda: ConditionerConfig(heads=16, per_block=False)
    )
    """The path of the actions; one modulation for all blocks (paper)."""
    quantizer: QuantizerConfig = field(
        default_factory=lambda: QuantizerConfig(codebook_size=32, data_start=False)
    )
    """32 entries of width 32 (paper)."""
    clips: int = 8
    """B, on one GPU."""
    frames: int = 16
    """T."""
    latent: int = 32
    """h and w: 256 px through a tokenizer of stride 8."""
    pixels: int = 224
    """H and W of what the IDM sees."""

    def one_clip(self) -> JointConfig:
        return replace(self, clips=1)


class Joint(nn.Module):
    """The four parts and the loss that trains them together."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.config = config
        self.idm = InverseDynamicsModel(config.idm)
        self.quantizer = build_quantizer(config.quantizer, config.idm.dim)
        self.backbone = STDiT3(config.backbone)
        self.conditioner = ActionConditioner(
            config.conditioner,
            width=self.backbone.width,
            blocks=self.backbone.modulated_blocks,
            tokens=config.idm.tokens,
            dim=config.idm.dim,
        )

    def forward(self, frames: Tensor, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """frames [B, T, 3, H, W], x0 and noise [B, C, T, h, w], times [B, T], 0 where a frame is
        given -> the loss."""
        quantized = self.quantizer(self.idm(frames))
        velocity = self.backbone.velocity(
            interpolate(x0, noise, times), times, modulation=self.conditioner(quantized.codes)
        )
        flow = masked_velocity_loss(velocity, target_velocity(x0, noise), times > 0)
        return flow + quantized.loss

    def regions(self) -> Iterator[nn.Module]:
        """What is compiled: blocks of one kind share one graph, so that 28 pairs compile as one."""
        yield from self.idm.blocks
        yield self.conditioner
        yield from self.backbone.spatial_blocks
        yield from self.backbone.temporal_blocks


class Step:
    """One model with its optimizer, run in any of the ways."""

    def __init__(self, config: JointConfig, *, device: str, dtype: str = "bfloat16") -> None:
        self.config, self.device, self.dtype = config, device, dtype
        torch.manual_seed(0)
        with torch.device(device):  # 1.2 B numbers are drawn where they stay
            self.model = Joint(config)
        self._wake()
        # A rate of 0 is the same work, and every way meets the same weights.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, fused=device.startswith("cuda")
        )
        self._compiled: dict[str, list] = {}
        self.activation_mb: float | None = None

    @torch.no_grad()
    def _wake(self) -> None:
        """Layers that begin at zero get small numbers, or most gradients would be zero."""
        draw = torch.Generator(self.device).manual_seed(0)
        for parameter in self.model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02, generator=draw)

    def batch(self, config: JointConfig | None = None) -> tuple[Tensor, ...]:
        """Arguments of the model; the first frame of every clip is given."""
        c = config or self.config
        draw = torch.Generator(self.device).manual_seed(1)
        latents = (c.clips, c.backbone.in_channels, c.frames, c.latent, c.latent)
        sizes = ((c.clips, c.frames, 3, c.pixels, c.pixels), latents, latents)
        frames, x0, noise = (
            torch.randn(size, generator=draw, device=self.device) for size in sizes
        )
        times = torch.rand(c.clips, c.frames, generator=draw, device=self.device).clamp(min=0.01)
        times[:, 0] = 0
        return frames.sigmoid(), x0, noise, times

    def wear(self, name: str, arm: Arm) -> None:
        """From now on the model runs in this way; what another way compiled is kept for it."""
        regions = list(self.model.regions())
        if arm.compiled and name not in self._compiled:
            for module in regions:
                module.compile(fullgraph=True, dynamic=False)
            self._compiled[name] = [module._compiled_call_impl for module in regions]
        for place, module in enumerate(regions):
            module._compiled_call_impl = self._compiled[name][place] if arm.compiled else None

    def loss(self, arm: Arm, batch: tuple[Tensor, ...]) -> Tensor:
        with arm.choice(), autocast(self.device, self.dtype):
            return self.model(*batch)

    def __call__(self, name: str, arm: Arm, batch: tuple[Tensor, ...]) -> float:
        """One step; its loss, for which it waits."""
        self.wear(name, arm)
        self.optimizer.zero_grad(set_to_none=True)
        held = self._held()
        loss = self.loss(arm, batch)
        self.activation_mb = None if held is None else round((self._held() - held) / 2**20, 1)
        with arm.choice():
            loss.backward()
        self.optimizer.step()
        return loss.item()

    def _held(self) -> int | None:
        cuda = self.device.startswith("cuda")
        return torch.cuda.memory_allocated(self.device) if cuda else None

    def flops(self, arm: Arm) -> int:
        """Of the products of a step, forward and backward: counted on one clip, all clips alike.

        `arm` runs the reference: the counter knows matrix products and SDPA's plain form.
        """
        one = self.config.one_clip()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            self.wear("flops", arm)
            self.loss(arm, self.batch(one)).backward()
        self.optimizer.zero_grad(set_to_none=True)
        return int(counter.get_total_flops()) * self.config.clips
