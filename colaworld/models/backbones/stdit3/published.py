"""STDiT3 as published (`hpcai-tech/OpenSora-STDiT-v3`): its config.json and its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from colaworld.models.backbones.backbone import Text
from colaworld.models.backbones.published import checked, require
from colaworld.models.backbones.stdit3.config import STDiT3Config
from colaworld.models.backbones.weights import Layout


def from_published(
    described: Mapping[str, Any], *, text: Text, causal: bool, source: str
) -> STDiT3Config:
    """See `backbones.published.published_config`."""
    require(described, {"qk_norm": True, "patch_size": (1, 2, 2)}, source)
    values = dict(
        depth=described.get("depth", 28),
        width=described.get("hidden_size", 1152),
        heads=described.get("num_heads", 16),
        mlp_ratio=described.get("mlp_ratio", 4.0),
        in_channels=described.get("in_channels", 4),
        predict_sigma=described.get("pred_sigma", True),
        input_sq_size=described.get("input_sq_size", 512),
        pixels_per_latent=8,
        causal=causal,
        text=text,
        caption_width=described.get("caption_channels", 4096),
        caption_length=described.get("model_max_length", 300),
        fps=24.0,
        clip_fps=True,
        round_times=True,
    )
    return checked(STDiT3Config, values, source)


def layout(config: STDiT3Config) -> Layout:
    """The names are ours; `rope.freqs` is computed here, and text may be left in the file."""
    head_dim = config.width // config.heads
    pair = torch.arange(0, head_dim, 2, dtype=torch.float64)
    return Layout(
        drop=("y_embedder.*", "*.cross_attn.*") if config.text == "removed" else (),
        constants={"rope.freqs": 10_000.0 ** (-pair / head_dim)},
    )
