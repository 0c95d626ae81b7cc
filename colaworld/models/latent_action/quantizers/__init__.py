"""Quantizers behind one contract: continuous latents in, latent actions out.

    z [..., N, d] --quantizer--> codes [..., N, d], indices [..., N], loss

Everything is computed in float32. State that a resumed run would miss is in buffers. A forward pass
changes no state: what it saw comes back in `Quantized.seen`, and a training step is

    begin_step()                    forget what an abandoned step left
    observe(quantizer(z)) ...       once per forward pass that counts (not when it is recomputed)
    after_step()                    one reduction over processes; statistics, dead entries

A quantizer is imported when it is built. Not here: where z comes from (idm.py) and what the codes condition
(conditioning.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colaworld.models.latent_action.quantizers.config import (
    QUANTIZERS,
    CommonConfig,
    EMAConfig,
    FSQConfig,
    GaussianConfig,
    NoneConfig,
    NSVQConfig,
    QuantizerConfig,
    ResidualConfig,
    VQConfig,
    register_quantizer,
)
from colaworld.models.parts import Part, register_part
from colaworld.registry import Later, lazy_names

if TYPE_CHECKING:
    from colaworld.models.latent_action.quantizers.codebook import CodebookQuantizer
    from colaworld.models.latent_action.quantizers.estimators import rotation, straight_through
    from colaworld.models.latent_action.quantizers.quantizer import (
        Quantized,
        Quantizer,
        Standardise,
    )

register_quantizer(VQConfig, Later(f"{__name__}.codebook:GradientVQ"))
register_quantizer(EMAConfig, Later(f"{__name__}.codebook:EMAVQ"))
register_quantizer(NSVQConfig, Later(f"{__name__}.codebook:NSVQ"))
register_quantizer(FSQConfig, Later(f"{__name__}.finite:FSQ"))
register_quantizer(ResidualConfig, Later(f"{__name__}.residual:ResidualVQ"))
register_quantizer(GaussianConfig, Later(f"{__name__}.continuous:GaussianLatent"))
register_quantizer(NoneConfig, Later(f"{__name__}.continuous:NoQuantizer"))


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer of this configuration, for latent actions of width `dim`.

    Raises ConfigError on a kind that nobody registered, ValueError on settings that do not fit `dim`.
    """
    return QUANTIZERS[config.kind].build(config, dim)


register_part(
    Part(
        "quantizer",
        VQConfig,
        lambda config, model: build_quantizer(config, model.config.idm.dim),
        needs=("idm",),
    )
)

__all__ = [
    "QUANTIZERS",
    "CodebookQuantizer",
    "CommonConfig",
    "EMAConfig",
    "FSQConfig",
    "GaussianConfig",
    "NSVQConfig",
    "NoneConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualConfig",
    "Standardise",
    "VQConfig",
    "build_quantizer",
    "register_quantizer",
    "rotation",
    "straight_through",
]
__getattr__ = lazy_names(
    __name__,
    CodebookQuantizer="codebook",
    Quantized="quantizer",
    Quantizer="quantizer",
    Standardise="quantizer",
    rotation="estimators",
    straight_through="estimators",
)
