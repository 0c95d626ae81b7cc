"""Wan 2.1."""

from __future__ import annotations

from colaworld.models.backbones.backbone import register_backbone
from colaworld.models.backbones.wan.config import WanConfig
from colaworld.models.backbones.wan.model import TIME_SHIFT, Wan
from colaworld.models.backbones.wan.published import from_diffusers, from_original_config

__all__ = ["TIME_SHIFT", "Wan", "WanConfig"]

register_backbone(
    WanConfig,
    Wan,
    published={"WanTransformer3DModel": from_diffusers, "WanModel": from_original_config},
)
