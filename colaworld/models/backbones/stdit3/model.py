"""STDiT3, the factorised video diffusion transformer of Open-Sora v1.2, as a world-model backbone.

One class for every size: module names are those of the published weights, so that they load key
for key. What CoLA-World changes: temporal attention may be causal,
the text path may be removed, every frame has its own diffusion time, and an additive modulation per
frame and block carries the latent action. Not here: sizes (`config.py`), the
layers (`layers.py`), the published layout (`published.py`).

Shape legend: B clips, T latent frames, S = h * w / 4 tokens per frame, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.models.backbones.stdit3.config import STDiT3Config
from colaworld.models.backbones.stdit3.layers import FinalLayer, PatchEmbedding, STDiT3Block
from colaworld.models.backbones.stdit3.published import layout
from colaworld.models.backbones.weights import Layout
from colaworld.models.layers.cross_attention import CaptionEmbedder
from colaworld.models.layers.embeddings import ScalarEmbedder, bfloat16_values, grid_embedding
from colaworld.models.layers.kv_cache import KVCache, frames_before
from colaworld.models.layers.patch import from_patches

TIME_SCALE = 1000.0  # STDiT3 embeds times in [0, 1000]


def _starts_at_zero(name: str) -> bool:
    """Which linear layers are zero at the start (their constructors set it).

    Not quite as published: Open-Sora zeroes `mlp.fc2` and `cross_attn.proj` in temporal blocks alone
    and draws those of spatial ones. Here they are zero in both, so that a model trained from nothing,
    as the shipped one was, begins with no MLP at all; published weights replace either start.
    """
    if name == "fps_embedder.mlp.2" or name.endswith(".mlp.fc2"):
        return True
    if name.endswith(".cross_attn.proj"):
        return True
    return name.startswith("temporal_blocks.") and name.endswith(".attn.proj")


class STDiT3(nn.Module):
    """Velocity of every latent frame. Satisfies `backbones.backbone.Backbone`."""

    block_lists = ("spatial_blocks", "temporal_blocks")

    def __init__(self, config: STDiT3Config | None = None) -> None:
        super().__init__()
        self.config = config = config or STDiT3Config()
        if config.patch[0] != 1:
            raise ValueError(f"STDiT3: the temporal patch must be 1, got {config.patch[0]}")
        width = config.width
        self.width, self.channels, self.patch = width, config.in_channels, config.patch
        self.modulated_blocks = 2 * config.depth
        self.x_embedder = PatchEmbedding(config.patch, config.in_channels, width)
        self.t_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width, zero_init=True)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if config.text != "removed":
            self.y_embedder = CaptionEmbedder(config.caption_width, width, config.caption_length)

        def blocks(*, temporal: bool) -> nn.ModuleList:
            return nn.ModuleList(
                STDiT3Block(
                    width,
                    config.heads,
                    int(width * config.mlp_ratio),
                    temporal=temporal,
                    causal=config.causal,
                    text=config.text != "removed",
                )
                for _ in range(config.depth)
            )

        self.spatial_blocks, self.temporal_blocks = blocks(temporal=False), blocks(temporal=True)
        out = config.in_channels * (2 if config.predict_sigma else 1)
        self.final_layer = FinalLayer(width, config.patch[1] * config.patch[2] * out)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier, but for the layers that start at zero; these are told by name, so that a model
        without storage (the meta device) can be built too. Open-Sora starts two layers otherwise:
        `x_embedder.proj` stays as torch makes a Conv3d, its bias drawn too, and `fps_embedder.mlp.0`
        is normal with deviation 0.02."""
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
        fps: Tensor | float | None = None,
        height: Tensor | float | None = None,
        width: Tensor | float | None = None,
        x_mask: Tensor | None = None,
        caption: Tensor | None = None,
        caption_mask: Tensor | None = None,
        modulation: Tensor | None = None,
        cache: KVCache | None = None,
        store: bool = False,
    ) -> Tensor:
        """The published forward pass, with what a world model adds.

        Args:
            x: h and w that are no multiples of the patch are filled up with zeros, and cut again.
            timestep: one per clip, or one per frame.
            fps: frame rate, one number or [B]; None: the config's.
            height, width: pixels, one number or [B] of equal ones (the position embedding is scaled
                by the first); None: from the latents.
            x_mask: [B, T] bool, with timestep [B]: False holds a frame clean, at time 0.
            caption: [B, L, caption_width] features, or [B, 1, L, caption_width] as the original has
                them; None: the null caption. Only with text.
            caption_mask: [B, L], True (or 1): this token exists. The null caption takes one too: where
                Open-Sora drops a caption or guides, the prompt's mask stays on. None: all exist.
            modulation: [B, T, 1 | 2 * depth, 6 * C], added to each block's time modulation.
            cache, store: see `Backbone.velocity`.

        Returns:
            [B, out_channels, T, h, w] float32; the first `in_channels` are the velocity.

        Raises:
            ValueError: an argument of a wrong shape, or one that this configuration does not take.
        """
        if x.ndim != 5 or x.shape[1] != self.channels:
            raise ValueError(
                f"STDiT3: expected latents [B, {self.channels}, T, h, w], got {list(x.shape)}"
            )
        B, _, T, H, W = x.shape
        if modulation is not None:
            self._check_modulation(modulation, B, T)
        time, noised = self._time(timestep, x_mask, fps, B, T, x.device)
        base = self.t_block(time)  # [B, T, 6 C]
        text = self._caption(caption, caption_mask, B)
        h = self._tokens(x, height, width)
        frames_before(cache, self.new_cache, B, h.shape[2], store=store)

        y = gate = None
        for pair in range(self.config.depth):
            for slot, blocks in ((0, self.spatial_blocks), (1, self.temporal_blocks)):
                added = base
                if modulation is not None:
                    index = 2 * pair + slot if modulation.shape[2] > 1 else 0
                    added = base + modulation[:, :, index]
                view = cache.view(pair, store=store) if cache is not None and slot == 1 else None
                h, y, gate = blocks[pair](h, y, gate, added, *text, view)
        if cache is not None and store:
            cache.advance(T)
        return self._pixels(self.final_layer(h, y, gate, time, noised).float(), H, W)

    def _time(
        self,
        timestep: Tensor,
        x_mask: Tensor | None,
        fps: Tensor | float | None,
        B: int,
        T: int,
        device: torch.device,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Time embedding [B, T, C]; with an x_mask also the mask and the noised frames' [B, C]."""
        rate = self.config.fps if fps is None else fps
        if not isinstance(rate, Tensor):
            rate = torch.full((), rate, device=device)  # filled there: no copy from the host
        rate = rate.to(device).float()
        if self.config.round_times:
            rate, timestep = bfloat16_values(rate), bfloat16_values(timestep)
        rate = self.fps_embedder(rate.expand(B))
        if timestep.shape not in ((B,), (B, T)):
            raise ValueError(
                f"STDiT3: timestep: expected [{B}] or [{B}, {T}], got {list(timestep.shape)}"
            )
        if x_mask is None:
            if timestep.ndim == 1:
                timestep = timestep[:, None].expand(B, T)
            return self.t_embedder(timestep) + rate[:, None], None
        if timestep.ndim != 1 or x_mask.shape != (B, T):
            raise ValueError(
                f"STDiT3: x_mask: expected [{B}, {T}] beside a timestep [{B}], got "
                f"{list(x_mask.shape)} beside {list(timestep.shape)}"
            )
        mask = x_mask.bool()
        clean = self.t_embedder(torch.zeros_like(timestep)) + rate
        other = self.t_embedder(timestep) + rate
        return torch.where(mask[..., None], other[:, None], clean[:, None]), (mask, other)

    def _caption(
        self, caption: Tensor | None, mask: Tensor | None, B: int
    ) -> tuple[Tensor | None, Tensor | None]:
        if caption is not None and self.config.text != "full":
            raise ValueError(
                f"STDiT3: a caption was given, but text is {self.config.text!r}; build it with "
                "text='full'"
            )
        if self.config.text == "removed":
            if mask is not None:
                raise ValueError("STDiT3: a caption_mask was given, but text is 'removed'")
            return None, None
        if caption is not None and caption.ndim == 4 and caption.shape[1] == 1:
            caption = caption[:, 0]
        embedded = self.y_embedder(caption, B)
        if mask is None:
            return embedded, None
        if mask.shape != embedded.shape[:2]:
            raise ValueError(
                f"STDiT3: caption_mask: expected {list(embedded.shape[:2])}, one for each token of the "
                f"caption, got {list(mask.shape)}"
            )
        return embedded, mask.bool()

    def _tokens(
        self, x: Tensor, height: Tensor | float | None, width: Tensor | float | None
    ) -> Tensor:
        """Latents to tokens with their position, [B, T, S, C]."""
        _, ph, pw = self.patch
        H, W = x.shape[3:]
        pixels = self.config.pixels_per_latent
        size = [
            H * pixels if height is None else float(torch.as_tensor(height).flatten()[0]),
            W * pixels if width is None else float(torch.as_tensor(width).flatten()[0]),
        ]
        if H % ph or W % pw:
            x = F.pad(x, (0, -W % pw, 0, -H % ph))
        position = grid_embedding(
            -(-H // ph),
            -(-W // pw),
            self.width,
            scale=(size[0] * size[1]) ** 0.5 / self.config.input_sq_size,
            device=x.device,
        )
        dtype = self.x_embedder.proj.weight.dtype
        return self.x_embedder(x.to(dtype)) + position.to(dtype)

    def _pixels(self, tokens: Tensor, H: int, W: int) -> Tensor:
        """[B, T, S, ph * pw * out_channels] -> [B, out_channels, T, H, W]."""
        _, ph, pw = self.patch
        size = (tokens.shape[1], H + -H % ph, W + -W % pw)
        return from_patches(tokens.flatten(1, 2), self.patch, size)[..., :H, :W]

    def _check_modulation(self, modulation: Tensor, B: int, T: int) -> None:
        slots, values = self.modulated_blocks, 6 * self.width
        if tuple(modulation.shape) not in ((B, T, 1, values), (B, T, slots, values)):
            raise ValueError(
                f"STDiT3: modulation: expected [{B}, {T}, 1 or {slots}, {values}], got "
                f"{list(modulation.shape)}"
            )

    def velocity(
        self,
        latents: Tensor,
        times: Tensor,
        *,
        modulation: Tensor | None = None,
        fps: Tensor | float | None = None,
        text: Tensor | None = None,
        cache: KVCache | None = None,
        store: bool = False,
    ) -> Tensor:
        """See `Backbone.velocity`. `fps` is read with `clip_fps` alone."""
        out = self(
            latents,
            times * TIME_SCALE,
            fps=fps if self.config.clip_fps else None,
            caption=text,
            modulation=modulation,
            cache=cache,
            store=store,
        )
        return out[:, : self.channels]

    def layout(self) -> Layout:
        """See `Backbone.layout`."""
        return layout(self.config)

    def new_cache(self) -> KVCache:
        """See `Backbone.new_cache`."""
        if not self.config.causal:
            raise ValueError(
                "STDiT3: a cache needs causal temporal attention (model.backbone.causal)"
            )
        return KVCache(self.config.depth)

    def time_shift(self, frames: int, rows: int, columns: int) -> float:
        """See `Backbone.time_shift`; grows with the square root of what there is to
        see, against the reference resolution and one frame (Open-Sora v1.2)."""
        pixels = rows * columns * self.config.pixels_per_latent**2
        return (pixels / self.config.input_sq_size**2 * frames) ** 0.5
