"""Video generators behind one contract (`backbone.Backbone`); a config's `kind` says which one."""

from __future__ import annotations

from typing import TYPE_CHECKING

# Importing a folder registers its backbone.
from colaworld.models.backbones import stdit3, wan  # noqa: F401
from colaworld.models.backbones.backbone import (
    Backbone,
    BackboneConfig,
    build_backbone,
    register_backbone,
)
from colaworld.registry import lazy_names

if TYPE_CHECKING:
    from colaworld.models.backbones.published import published_config

__all__ = ["Backbone", "BackboneConfig", "build_backbone", "published_config", "register_backbone"]
__getattr__ = lazy_names(__name__, published_config="published")
