"""STDiT3 of Open-Sora v1.2."""

from __future__ import annotations

from colaworld.models.backbones.backbone import register_backbone
from colaworld.models.backbones.stdit3.config import STDiT3Config
from colaworld.models.backbones.stdit3.model import STDiT3
from colaworld.models.backbones.stdit3.published import from_published

__all__ = ["STDiT3", "STDiT3Config"]

register_backbone(STDiT3Config, STDiT3, published={"STDiT3": from_published})
