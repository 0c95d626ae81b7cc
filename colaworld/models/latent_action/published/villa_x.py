"""The latent action model of villa-X (arXiv 2507.23682), the closest published relative of CoLA-World's IDM:
codes of a codebook, several tokens for each transition.

    frames -> patches -> blocks of attention in space and, causally, in time -> mean of neighbouring frames
    -> learned queries attend to it -> nearest codes

What is computed was read from github.com/microsoft/villa-x (lam/, igor/models/lam/); the code here is our
own. Its weights are published as safetensors (huggingface.co/microsoft/villa-x: model_config.json and
model.safetensors); read its repository for their licence. Not here: its decoder, which training needs.

Shape legend: B clips, T frames, S patches of a frame, C width, N tokens per action, d token width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colaworld.config import Checked, Layers, Range, Size, from_dict, to_dict
from colaworld.contracts import LatentActions
from colaworld.files import read_json
from colaworld.models.backbones.weights import Layout, WeightsError, load_weights
from colaworld.models.inputs import checked_frames
from colaworld.models.latent_action.published import Shapes
from colaworld.ops import vector_quantize

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours
_DESCRIPTION = "model_config.json"


@dataclass(frozen=True)
class VillaXConfig(Checked, at=""):
    """What decides the computation, named and by default as in model_config.json."""

    resolution: Size = 224
    """Height and width of the frames."""
    patch_size: Size = 14
    """Pixels per side of a patch."""
    in_channels: Literal[3] = 3
    """Colours."""
    d_t: Annotated[int, Range(ge=2, le=4096)] = 8
    """Frames that are seen together; longer videos pass through a window of so many."""
    mlp_ratio: Annotated[float, Range(ge=1 / 8, le=64)] = 4.0
    """Hidden width of the MLPs over width."""
    encoder_depth: Layers = 12
    """Blocks."""
    encoder_embed_dim: Size = 768
    """Channels of a token."""
    encoder_n_heads: Size = 8
    """Attention heads of a block."""
    action_latent_dim: Size = 128
    """Width of one token of the latent action (d)."""
    st_use_qk_norm: bool = True
    """Layer norms of queries and keys, per head."""
    num_learned_tokens: Size = 4
    """Tokens per latent action (N)."""
    map_heads: Size = 24
    """Attention heads of the pooling."""
    n_codes: Size = 32
    """Entries of the codebook."""


class RMSNorm(nn.Module):
    """Over the root mean square, times a learned scale `g`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-8) * self.g


class SelfAttention(nn.Module):
    """Of [M, L, C] along L."""

    def __init__(self, config: VillaXConfig, *, causal: bool) -> None:
        super().__init__()
        width, self.heads, self.causal = config.encoder_embed_dim, config.encoder_n_heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        head = width // self.heads
        for name in ("q_norm", "k_norm"):
            setattr(self, name, nn.LayerNorm(head) if config.st_use_qk_norm else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention in space, causal attention in time, MLP. One shift, scale and gate for the first, one for
    the MLP; attention in time reads what was not normalised and shares the first gate."""

    def __init__(self, config: VillaXConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        hidden = int(width * config.mlp_ratio)
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.attn = SelfAttention(config, causal=False)
        self.attn_temp = SelfAttention(config, causal=True)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, position: Tensor | None) -> Tensor:
        """x [B, T, S, C]; position [T, C] is added to what attention in time reads."""
        B, T, S, C = x.shape
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.scale_shift_table
        h = F.layer_norm(x, (C,), eps=1e-6) * (1 + scale) + shift
        x = x + gate * self.attn(h.flatten(0, 1)).unflatten(0, (B, T))
        over_time = x.transpose(1, 2).flatten(0, 1)  # [B S, T, C]
        if position is not None:
            over_time = over_time + position
        x = x + gate * self.attn_temp(over_time).unflatten(0, (B, S)).transpose(1, 2)
        h = F.layer_norm(x, (C,), eps=1e-6) * (1 + mlp_scale) + mlp_shift
        return x + mlp_gate * self.mlp["fc2"](F.gelu(self.mlp["fc1"](h), approximate="tanh"))


class CrossAttention(nn.Module):
    """[M, N, C] attends to [M, S, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """A half of one projection, times the SiLU of the other half."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.project(x).chunk(2, dim=-1)
        return value * F.silu(gate)


class Pooling(nn.Module):
    """N learned queries read the S tokens of a transition; norms behind each branch."""

    def __init__(self, config: VillaXConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        hidden = int(config.mlp_ratio * width)
        self.latents = nn.Parameter(torch.empty(config.num_learned_tokens, width))
        self.pre_projection = nn.Linear(width, width)
        self.attn = CrossAttention(width, config.map_heads)
        self.attn_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.mlp = nn.Sequential(GatedLinear(width, hidden), nn.Linear(hidden, width))
        self.final_proj = nn.Sequential(nn.Linear(width, config.action_latent_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[M, S, C] -> [M, N, d]."""
        y = self.latents.expand(x.shape[0], -1, -1)
        y = self.attn_norm(y + self.attn(y, self.pre_projection(x)))
        return self.final_proj(self.mlp_norm(y + self.mlp(y)))


class Encoder(nn.Module):
    """Prepared frames [B, T, 3, H, W] -> latents [B, T - 1, N, d], before they become codes."""

    def __init__(self, config: VillaXConfig) -> None:
        super().__init__()
        width, patch = config.encoder_embed_dim, config.patch_size
        self.embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.pe_spatial = nn.Parameter(torch.empty(1, (config.resolution // patch) ** 2, width))
        self.pe_temporal = nn.Parameter(torch.empty(1, config.d_t, width))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.encoder_depth))
        self.norm = RMSNorm(width)
        self.map_block = Pooling(config)

    def forward(self, frames: Tensor) -> Tensor:
        B, T = frames.shape[:2]
        x = self.embed["proj"](frames.flatten(0, 1)).flatten(2).transpose(1, 2)  # [B T, S, C]
        x = (x + self.pe_spatial).unflatten(0, (B, T))
        for number, layer in enumerate(self.layers):
            x = layer(x, None if number else self.pe_temporal[0, :T])
        x = self.norm(x)
        pairs = (x[:, 1:] + x[:, :-1]) / 2
        return self.map_block(pairs.flatten(0, 1)).unflatten(0, (B, T - 1))


class VillaXLatents(nn.Module):
    """Clips to codes of villa-X: a `contracts.LatentActionModel`.

    Longer videos than `d_t` pass through a sliding window, as published: the first window gives all of
    its actions, each later one its last. An action sees no later frame than its second.
    """

    frame_size = None

    def __init__(self, config: VillaXConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.tokens = config.n_codes, config.num_learned_tokens
        self.dim, self.window = config.action_latent_dim, config.d_t
        self.encoder = Encoder(config)
        self.vq = nn.ModuleDict(
            {"embedding": nn.Embedding(config.n_codes, config.action_latent_dim)}
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a latent beside the weights."""
        return to_dict(self.config)

    def prepare(self, frames: Tensor) -> Tensor:
        """[B, T, 3, H, W] in [0, 1] -> the whole frames, resized to bytes (antialiased) and standardised."""
        flat, side = frames.flatten(0, 1), self.config.resolution
        if flat.shape[-2:] != (side, side):
            flat = F.interpolate(flat, (side, side), mode="bilinear", antialias=True)
        flat = (flat * 255).round() / 255
        mean, std = (flat.new_tensor(v)[:, None, None] for v in (_MEAN, _STD))
        return ((flat - mean) / std).unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def latents(self, frames: Tensor) -> Tensor:
        """frames [B, T, 3, H, W] of any size, floats in [0, 1] or uint8 -> [B, T - 1, N, d], before they
        become codes."""
        frames = checked_frames(frames, "infer_actions: frames")
        T, window = frames.shape[1], self.config.d_t
        if T < 2:
            raise ValueError(f"infer_actions: a latent action needs two frames, got T = {T}")
        seen = self.prepare(frames)
        found = [self.encoder(seen[:, :window])]
        for end in range(window + 1, T + 1):
            found.append(self.encoder(seen[:, end - window : end])[:, -1:])
        return torch.cat(found, dim=1)

    def infer_actions(self, frames: Tensor) -> LatentActions:
        """frames as `latents` takes them -> codes [B, T - 1, N, d] and their entries of the codebook."""
        z = self.latents(frames)
        with torch.no_grad():
            codes, indices = vector_quantize(z.flatten(0, 2), self.vq["embedding"].weight)
        return LatentActions(codes.view_as(z), indices.view(z.shape[:3]))


def recognise_villa_x(shapes: Shapes) -> bool:
    """A codebook, and queries that pool."""
    return {"vq.embedding.weight", "encoder.map_block.latents", "encoder.pe_temporal"} <= set(
        shapes
    )


def load_villa_x(path: Path, *, device: torch.device | str = "cpu") -> VillaXLatents:
    """A folder with model_config.json and model.safetensors, or that file in its folder. See
    `load_published`.

    Raises WeightsError too where model_config.json is missing or describes another model, ConfigError
    where its sizes are out of range.
    """
    folder = path if path.is_dir() else path.parent
    config = _described(folder / _DESCRIPTION)
    for count, name in (
        (config.encoder_n_heads, "encoder_n_heads"),
        (config.map_heads, "map_heads"),
    ):
        if config.encoder_embed_dim % count:
            raise WeightsError(
                f"{folder / _DESCRIPTION}: {name}: expected a divisor of encoder_embed_dim "
                f"{config.encoder_embed_dim}, got {count}"
            )
    with torch.device("meta"):
        model = VillaXLatents(config)
    load_weights(model, path, Layout(drop=("decoder.*",)), device=device, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def _described(file: Path) -> VillaXConfig:
    if not file.is_file():
        raise WeightsError(
            f"{file}: missing; villa-X is published as model.safetensors beside {_DESCRIPTION}, which holds "
            "its numbers of heads: bring it along"
        )
    described: Any = read_json(file)
    found = described.get("config") if isinstance(described, dict) else None
    if not isinstance(found, dict) or described.get("architecture") != "IgorModel":
        raise WeightsError(
            f'{file}: expected {{"architecture": "IgorModel", "config": {{...}}}}, got '
            f"{described!s:.80}"
        )
    known = {field.name for field in fields(VillaXConfig)}
    return from_dict(VillaXConfig, {k: v for k, v in found.items() if k in known}, where=str(file))
