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

from collections.abc import Callable
from typing import Any

from colaworld.models.latent_action.quantizers.codebook import (
    EMAVQ,
    NSVQ,
    CodebookQuantizer,
    GradientVQ,
)
from colaworld.models.latent_action.quantizers.config import (
    CONFIGS,
    EMAConfig,
    FSQConfig,
    GaussianConfig,
    NoneConfig,
    NSVQConfig,
    QuantizerConfig,
    ResidualConfig,
    VQConfig,
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

QUANTIZERS: dict[type, Callable[[Any, int], Quantizer]] = {
    VQConfig: GradientVQ,
    EMAConfig: EMAVQ,
    NSVQConfig: NSVQ,
    FSQConfig: FSQ,
    ResidualConfig: ResidualVQ,
    GaussianConfig: GaussianLatent,
    NoneConfig: NoQuantizer,
}


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer of this configuration, for latent actions of width `dim`.

    Raises ValueError on settings that do not fit `dim`.
    """
    return QUANTIZERS[type(config)](config, dim)


register_part(
    Part(
        "quantizer",
        VQConfig,
        lambda config, model: build_quantizer(config, model.config.idm.dim),
        needs=("idm",),
    )
)

__all__ = [
    "CONFIGS",
    "EMAVQ",
    "FSQ",
    "NSVQ",
    "QUANTIZERS",
    "CodebookQuantizer",
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
    "rotation",
    "straight_through",
]
