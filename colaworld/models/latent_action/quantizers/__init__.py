"""Quantizers behind one contract: continuous latents in, latent actions out.

    z [..., N, d] --quantizer--> codes [..., N, d], indices [..., N], loss

Everything is computed in float32. State that a resumed run would miss is in buffers. A forward pass
changes no state: what it saw comes back in `Quantized.seen`, and a training step is

    begin_step()                    forget what an abandoned step left
    observe(quantizer(z)) ...       once per forward pass that counts (not when it is recomputed)
    after_step()                    one reduction over processes; statistics, dead entries

Not here: where z comes from (idm.py) and what the codes condition (conditioning.py).
"""

from __future__ import annotations

from colaworld.models.latent_action.quantizers.codebook import (
    EMAVQ,
    NSVQ,
    CodebookQuantizer,
    GradientVQ,
)
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
from colaworld.models.latent_action.quantizers.continuous import GaussianLatent, NoQuantizer
from colaworld.models.latent_action.quantizers.estimators import rotation, straight_through
from colaworld.models.latent_action.quantizers.finite import FSQ
from colaworld.models.latent_action.quantizers.kmeans import kmeans, kmeans_pp
from colaworld.models.latent_action.quantizers.quantizer import (
    Quantized,
    Quantizer,
    Standardise,
)
from colaworld.models.latent_action.quantizers.residual import ResidualVQ
from colaworld.models.parts import Part, register_part

register_quantizer(VQConfig, GradientVQ)
register_quantizer(EMAConfig, EMAVQ)
register_quantizer(NSVQConfig, NSVQ)
register_quantizer(FSQConfig, FSQ)
register_quantizer(ResidualConfig, ResidualVQ)
register_quantizer(GaussianConfig, GaussianLatent)
register_quantizer(NoneConfig, NoQuantizer)


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
    "EMAVQ",
    "FSQ",
    "NSVQ",
    "QUANTIZERS",
    "CodebookQuantizer",
    "CommonConfig",
    "EMAConfig",
    "FSQConfig",
    "GaussianConfig",
    "GaussianLatent",
    "GradientVQ",
    "NSVQConfig",
    "NoQuantizer",
    "NoneConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualConfig",
    "ResidualVQ",
    "Standardise",
    "VQConfig",
    "build_quantizer",
    "kmeans",
    "kmeans_pp",
    "register_quantizer",
    "rotation",
    "straight_through",
]
