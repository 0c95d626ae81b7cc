"""Wan 2.1 as published: config.json of diffusers and of the original repository, and the keys.

Not here: the original names of the keys (`keys.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colaworld.models.backbones.backbone import Text
from colaworld.models.backbones.published import checked, require
from colaworld.models.backbones.wan.config import WanConfig
from colaworld.models.backbones.wan.keys import FLOAT32_KEYS, TEXT_KEYS, from_original
from colaworld.models.backbones.weights import Layout, WeightsError


def from_diffusers(
    described: Mapping[str, Any], *, text: Text, causal: bool, source: str
) -> WanConfig:
    """See `backbones.published.published_config`."""
    # The image-to-video models read an image's features and more channels than they write.
    wanted = {
        "patch_size": (1, 2, 2),
        "qk_norm": "rms_norm_across_heads",
        "image_dim": None,
        "added_kv_proj_dim": None,
        "out_channels": described.get("in_channels", 16),
    }
    require(described, wanted, source)
    values = dict(
        layers=described.get("num_layers", 40),
        heads=described.get("num_attention_heads", 40),
        head_dim=described.get("attention_head_dim", 128),
        ffn=described.get("ffn_dim", 13_824),
        in_channels=described.get("in_channels", 16),
        freq_dim=described.get("freq_dim", 256),
        text_width=described.get("text_dim", 4096),
        eps=described.get("eps", 1e-6),
        cross_attn_norm=described.get("cross_attn_norm", True),
        text=text,
        causal=causal,
    )
    return checked(WanConfig, values, source)


def from_original_config(
    described: Mapping[str, Any], *, text: Text, causal: bool, source: str
) -> WanConfig:
    """See `backbones.published.published_config`."""
    require(described, {"model_type": "t2v"}, source)
    names = {"num_layers": "num_layers", "num_heads": "num_attention_heads", "ffn_dim": "ffn_dim"}
    names |= {"freq_dim": "freq_dim", "in_dim": "in_channels", "out_dim": "out_channels"}
    found = {
        new: described[old] for old, new in (names | {"eps": "eps"}).items() if old in described
    }
    width, heads = described.get("dim"), described.get("num_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        raise WeightsError(
            f"{source}/config.json: dim, num_heads: expected two sizes, got {width!r} and {heads!r}"
        )
    found["attention_head_dim"] = width // heads
    return from_diffusers(found, text=text, causal=causal, source=source)


def layout(config: WanConfig) -> Layout:
    """Diffusers' names, and the original ones; text may be left in the file."""
    drop = TEXT_KEYS if config.text == "removed" else ()
    return Layout(rename=from_original, drop=drop, float32=FLOAT32_KEYS)
