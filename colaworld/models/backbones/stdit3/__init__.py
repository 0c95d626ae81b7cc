"""STDiT3 of Open-Sora v1.2. Its model is imported when it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colaworld.models.backbones.backbone import register_backbone
from colaworld.models.backbones.stdit3.config import STDiT3Config
from colaworld.registry import Later, lazy_names

if TYPE_CHECKING:
    from colaworld.models.backbones.stdit3.model import STDiT3

__all__ = ["STDiT3", "STDiT3Config"]
__getattr__ = lazy_names(__name__, STDiT3="model")

register_backbone(
    STDiT3Config,
    Later(f"{__name__}.model:STDiT3"),
    published={"STDiT3": Later(f"{__name__}.published:from_published")},
)
