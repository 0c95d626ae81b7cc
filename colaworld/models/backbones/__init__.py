"""Video generators behind one contract (`base.Backbone`); a config's type says which one."""

from __future__ import annotations

from colaworld.models.backbones.base import Backbone
from colaworld.models.backbones.published import published_config
from colaworld.models.backbones.stdit3 import STDiT3, STDiT3Config
from colaworld.models.backbones.wan import Wan, WanConfig

BackboneConfig = STDiT3Config | WanConfig

__all__ = ["Backbone", "BackboneConfig", "build_backbone", "published_config"]


def build_backbone(config: BackboneConfig) -> Backbone:
    """The generator of this configuration, with random weights."""
    return Wan(config) if isinstance(config, WanConfig) else STDiT3(config)
