"""config.json of published generators -> our configurations. Not here: their keys (each class)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

from colaworld.config import from_dict
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.backbones.wan import WanConfig
from colaworld.models.backbones.weights import WeightsError

Text = Literal["removed", "null", "full"]
Config = TypeVar("Config", STDiT3Config, WanConfig)


def published_config(
    described: Mapping[str, Any], *, text: Text = "removed", causal: bool = True, source: str = ""
) -> STDiT3Config | WanConfig:
    """The configuration of what a config.json describes.

    Raises WeightsError on something else, or a setting this library does not have.
    """
    if text not in get_args(Text):
        raise ValueError(f"text: expected one of {', '.join(get_args(Text))}, got {text!r}")
    names = [described.get("_class_name"), described.get("model_type")]
    more = described.get("architectures")
    names += more if isinstance(more, list) else [more]
    if "STDiT3" in names:
        return _stdit3(described, text, causal, source)
    if "WanTransformer3DModel" in names:
        return _wan(described, text, causal, source)
    if "WanModel" in names:
        return _wan(_as_diffusers(described, source), text, causal, source)
    raise WeightsError(
        f"{source}/config.json describes {' '.join(str(n) for n in names if n) or 'no known model'}; "
        "known: STDiT3, WanTransformer3DModel, WanModel, and worlds exported by colaworld"
    )


def require(described: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> None:
    """WeightsError where a setting is there and is another than the one implemented here."""
    for key, value in wanted.items():
        found = described.get(key, value)
        found = tuple(found) if isinstance(found, list) else found
        if found != value:
            raise WeightsError(
                f"{source}/config.json: {key} is {found!r}; only {value!r} is supported"
            )


def _checked(kind: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """The configuration, its values of the right types; sizes are 1 at least."""
    config = from_dict(kind, values, where=f"{source}/config.json")
    for name, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise WeightsError(f"{source}/config.json: {name}: expected 1 or more, got {value}")
    return config


def _stdit3(described: Mapping[str, Any], text: Text, causal: bool, source: str) -> STDiT3Config:
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
    )
    return _checked(STDiT3Config, values, source)


def _wan(described: Mapping[str, Any], text: Text, causal: bool, source: str) -> WanConfig:
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
    return _checked(WanConfig, values, source)


def _as_diffusers(described: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The original repository's config.json in the words of diffusers'."""
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
    return found
