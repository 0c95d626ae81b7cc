"""Real actions to latent ones, and back: what lets a world obey a robot of your own.

    actions --adapter--> codes                codes --action_head--> an estimate of the actions

An adapter's outputs lie in the space of codes and are continuous; whether they are replaced by the
nearest codes is a switch (`quantise`). Each kind is imported when it is built. Not here: how they are
trained (training/adaptation.py), or what an action means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colaworld.models.adapters.config import (
    ADAPTERS,
    ActionHeadConfig,
    AdapterConfig,
    AttentionAdapterConfig,
    MLPAdapterConfig,
    TableAdapterConfig,
    register_adapter,
)
from colaworld.models.parts import Part, register_part
from colaworld.registry import Later, lazy_names

if TYPE_CHECKING:
    from colaworld.models.adapters.action_head import ActionHead
    from colaworld.models.adapters.adapter import Adapter

register_adapter(MLPAdapterConfig, Later(f"{__name__}.mlp:MLPAdapter"))
register_adapter(TableAdapterConfig, Later(f"{__name__}.table:TableAdapter"))
register_adapter(AttentionAdapterConfig, Later(f"{__name__}.attention:AttentionAdapter"))
_HEAD = Later(f"{__name__}.action_head:ActionHead")


def _sizes(model: Any) -> dict[str, int]:
    return {"tokens": model.config.idm.tokens, "dim": model.config.idm.dim}


def build_adapter(config: AdapterConfig, model: Any) -> Adapter:
    """The adapter of this configuration, for the codes of a world model.

    Raises ConfigError on a kind that nobody registered.
    """
    build = ADAPTERS[config.kind].build
    return build(config, **_sizes(model), patch=model.config.idm.patch)


register_part(Part("adapter", AdapterConfig, build_adapter, needs=("idm", "quantizer")))
register_part(
    Part(
        "action_head",
        ActionHeadConfig,
        lambda config, model: _HEAD(config, **_sizes(model)),
        needs=("idm", "quantizer"),
    )
)

__all__ = [
    "ADAPTERS",
    "ActionHead",
    "ActionHeadConfig",
    "Adapter",
    "AdapterConfig",
    "AttentionAdapterConfig",
    "MLPAdapterConfig",
    "TableAdapterConfig",
    "build_adapter",
    "register_adapter",
]
__getattr__ = lazy_names(__name__, ActionHead="action_head", Adapter="adapter")
