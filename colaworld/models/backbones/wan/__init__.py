"""Wan 2.1. Its model is imported when it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colaworld.models.backbones.backbone import register_backbone
from colaworld.models.backbones.wan.config import TIME_SHIFT, WanConfig
from colaworld.registry import Later, lazy_names

if TYPE_CHECKING:
    from colaworld.models.backbones.wan.model import Wan

__all__ = ["TIME_SHIFT", "Wan", "WanConfig"]
__getattr__ = lazy_names(__name__, Wan="model")

register_backbone(
    WanConfig,
    Later(f"{__name__}.model:Wan"),
    published={
        "WanTransformer3DModel": Later(f"{__name__}.published:from_diffusers"),
        "WanModel": Later(f"{__name__}.published:from_original_config"),
    },
)
