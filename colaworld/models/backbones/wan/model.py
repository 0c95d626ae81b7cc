"""Wan 2.1, the video diffusion transformer with full attention over space and time, as a backbone.

One class for every size. Names and shapes are those of diffusers' WanTransformer3DModel
(`keys.py` translates the original ones); with `text="full"` and `causal=False` the output is
the published one. What CoLA-World changes: attention may be block-causal in time, text may be
removed, every frame has its own diffusion time, and an additive modulation per frame and block
carries the latent action. Not here: sizes (`config.py`), the blocks
(`block.py`), the published layout (`published.py`).

Shape legend: B clips, T latent frames, S = h * w / 4 tokens per frame, N = T * S tokens, C width,
G parts of a clip that share a modulation: 1, T or N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colaworld.models.backbones.wan.attention import Rotation
from colaworld.models.backbones.wan.block import WanBlock
from colaworld.models.backbones.wan.config import TIME_SHIFT, WanConfig
from colaworld.models.backbones.wan.published import layout
from colaworld.models.backbones.weights import Layout
from colaworld.models.layers.autocast import no_autocast
from colaworld.models.layers.embeddings import sinusoid
from colaworld.models.layers.kv_cache import KVCache, frames_before
from colaworld.models.layers.patch import from_patches, to_patches
from colaworld.models.layers.rope import grid_positions, grid_rope_tables, grid_sections
from colaworld.ops import adaln
from colaworld.ops.reference import compute_dtype

TIME_SCALE = 1000.0  # Wan embeds times in [0, 1000]


class TwoLinears(nn.Module):
    """Linear, activation, Linear under the published names."""

    def __init__(self, given: int, width: int, act: nn.Module) -> None:
        super().__init__()
        self.linear_1, self.act = nn.Linear(given, width), act
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class ConditionEmbedder(nn.Module):
    """Times to the modulation that all blocks start from; a caption to the model's width."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width = config.width
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLinears(config.freq_dim, width, nn.SiLU())
        self.time_proj = nn.Linear(width, 6 * width)
        if config.text != "removed":
            self.text_embedder = TwoLinears(config.text_width, width, nn.GELU(approximate="tanh"))

    def time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """[B, G] in [0, 1000] -> [B, G, C] for the last layer and [B, G, 6 C] for the blocks.

        In the dtype of the weights, under autocast too, as published: half precision cannot tell
        neighbouring times apart.
        """
        with no_autocast(timestep):
            features = sinusoid(timestep, self.freq_dim)
            time = self.time_embedder(features.to(self.time_embedder.linear_1.weight.dtype))
            time = time.to(self.time_proj.weight.dtype)
            return time, self.time_proj(nn.functional.silu(time))


class Wan(nn.Module):
    """Velocity of every latent frame. Satisfies `backbones.backbone.Backbone`."""

    block_lists = ("blocks",)

    def __init__(self, config: WanConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or WanConfig()
        if config.patch[0] != 1:
            raise ValueError(f"Wan: the temporal patch must be 1, got {config.patch[0]}")
        self.sections = grid_sections(config.head_dim)
        width, values = config.width, config.in_channels * config.patch[1] * config.patch[2]
        self.width, self.channels, self.patch = width, config.in_channels, config.patch
        self.modulated_blocks = config.layers
        self.patch_embedding = nn.Conv3d(
            config.in_channels, width, kernel_size=config.patch, stride=config.patch
        )
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList(
            WanBlock(
                config.heads,
                config.head_dim,
                config.ffn,
                eps=config.eps,
                causal=config.causal,
                text=config.text != "removed",
                cross_attn_norm=config.cross_attn_norm,
            )
            for _ in range(config.layers)
        )
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        self.proj_out = nn.Linear(width, values)
        self._initialise()

    def _initialise(self) -> None:
        """As published: Xavier, narrow embeddings, and a last layer that starts at zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if ".time_embedder." in name or ".text_embedder." in name:
                    nn.init.normal_(module.weight, std=0.02)
                elif name != "proj_out":
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.view(self.width, -1))
        nn.init.zeros_(self.patch_embedding.bias)
        nn.init.zeros_(self.proj_out.weight)

    def forward(
        self,
        x: Tensor,  # [B, channels, T, h, w] latents
        timestep: Tensor,  # [B], [B, T] or per token [B, N], in [0, 1000]
        text: Tensor | None = None,  # [B, L, text_width]
        *,
        modulation: Tensor | None = None,  # [B, T, 1 | layers, 6 * width]
        cache: KVCache | None = None,
        store: bool = False,
    ) -> Tensor:
        """[B, channels, T, h, w] float32, with the published sign: noise - x0.

        Raises ValueError on arguments of wrong shapes, on text where the config has none or needs
        one, and on a cache where frames attend to later ones.
        """
        B, T, S = self._checked(x, timestep, modulation)
        dtype = self.patch_embedding.weight.dtype
        first = frames_before(cache, self.new_cache, B, S, store=store)
        caption = self._caption(text, B, dtype)
        rows, columns = x.shape[3] // self.patch[1], x.shape[4] // self.patch[2]
        rotation = self._rotation(T, rows, columns, first, x.device)

        if timestep.ndim == 1:
            timestep = timestep[:, None]
        elif timestep.shape[1] > T and modulation is not None:
            modulation = modulation.repeat_interleave(S, dim=1)
        time, base = self.condition_embedder.time(timestep)  # [B, G, C], [B, G, 6 C]
        G = timestep.shape[1] if modulation is None else modulation.shape[1]
        base = base.to(compute_dtype(dtype)).expand(B, G, -1)

        patches = to_patches(x.to(dtype), self.patch)
        weight, bias = self.patch_embedding.weight, self.patch_embedding.bias
        h = nn.functional.linear(patches, weight.flatten(1), bias).to(dtype)
        h = h.view(B, G, T * S // G, self.width)

        y = gate = None
        for index, block in enumerate(self.blocks):
            added = base
            if modulation is not None:
                added = base + modulation[:, :, index if modulation.shape[2] > 1 else 0]
            view = None if cache is None else cache.view(index, store=store)
            h, y, gate = block(h, y, gate, added, rotation, caption, frames=T, cache=view)
        if cache is not None and store:
            cache.advance(T)
        table = self.scale_shift_table.to(base.dtype)[:, None]
        shift, scale = (table + time.to(base.dtype)[:, :, None]).expand(B, G, 2, -1).unbind(2)
        _, h = adaln(h, y, gate=gate, shift=shift, scale=scale, eps=self.config.eps)
        out = self.proj_out(h).to(compute_dtype(dtype))
        return from_patches(out.flatten(1, 2), self.patch, tuple(x.shape[2:]))

    def _rotation(
        self, T: int, rows: int, columns: int, first: int, device: torch.device
    ) -> Rotation:
        """Of frames `first` and later. The tables hold places within a frame, then these frames
        alone, so that their size does not grow with how far a rollout has come."""
        side = max(rows, columns)
        held = (torch.arange(side, device=device), torch.arange(first, first + T, device=device))
        tables = grid_rope_tables(torch.cat(held), self.config.head_dim, device=device)
        return tables, grid_positions(T, rows, columns, first=side, device=device), self.sections

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
        """See `Backbone.velocity`. Wan embeds no frame rate: `fps` is not read."""
        if latents.ndim == 5 and tuple(times.shape) != (latents.shape[0], latents.shape[2]):
            raise ValueError(
                f"Wan: times: expected [B, T] = [{latents.shape[0]}, {latents.shape[2]}], one for "
                f"each latent frame, got {list(times.shape)}"
            )
        timestep = times * TIME_SCALE
        return -self(latents, timestep, text, modulation=modulation, cache=cache, store=store)

    def layout(self) -> Layout:
        """See `Backbone.layout`."""
        return layout(self.config)

    def new_cache(self) -> KVCache:
        """See `Backbone.new_cache`."""
        if not self.config.causal:
            raise ValueError(
                "Wan: a cache needs frames that do not attend to later ones; build the model with "
                "causal=True, or roll out without a cache"
            )
        return KVCache(self.config.layers)

    def time_shift(self, frames: int, rows: int, columns: int) -> float:
        """See `Backbone.time_shift`."""
        return TIME_SHIFT

    def _checked(
        self, x: Tensor, timestep: Tensor, modulation: Tensor | None
    ) -> tuple[int, int, int]:
        """B, T and S of inputs that fit together."""
        _, ph, pw = self.patch
        if x.ndim != 5 or x.shape[1] != self.channels or x.shape[3] % ph or x.shape[4] % pw:
            raise ValueError(
                f"Wan: expected latents [B, {self.channels}, T, h, w] with h and w multiples of "
                f"{ph} and {pw}, got {list(x.shape)}"
            )
        B, T, S = x.shape[0], x.shape[2], (x.shape[3] // ph) * (x.shape[4] // pw)
        if tuple(timestep.shape) not in ((B,), (B, T), (B, T * S)):
            raise ValueError(
                f"Wan: timestep: expected [{B}], [{B}, {T}] for frames or [{B}, {T * S}] for "
                f"tokens, got {list(timestep.shape)}"
            )
        slots, values = self.modulated_blocks, 6 * self.width
        if modulation is not None and tuple(modulation.shape) not in (
            (B, T, 1, values),
            (B, T, slots, values),
        ):
            raise ValueError(
                f"Wan: modulation: expected [{B}, {T}, 1 or {slots}, {values}], got "
                f"{list(modulation.shape)}"
            )
        return B, T, S

    def _caption(self, text: Tensor | None, B: int, dtype: torch.dtype) -> Tensor | None:
        """[B, L, C] that the cross-attentions read; None where there are none."""
        mode, width = self.config.text, self.config.text_width
        if (text is not None) != (mode == "full"):
            given = "none" if text is None else f"one of {list(text.shape)}"
            wanted = f"a caption [{B}, L, {width}]" if mode == "full" else "no caption"
            raise ValueError(f"Wan: text: the config's text={mode!r} wants {wanted}, got {given}")
        if mode == "removed":
            return None
        embedder = self.condition_embedder.text_embedder
        if text is None:
            text = torch.zeros(B, 1, width, dtype=dtype, device=embedder.linear_1.weight.device)
        if text.ndim != 3 or text.shape[0] != B or text.shape[2] != width:
            raise ValueError(f"Wan: text: expected [{B}, L, {width}], got {list(text.shape)}")
        return embedder(text.to(dtype))
