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

from colaworld.models.latent_action.quantizers.base import (
    Kind,
    Quantized,
    Quantizer,
    QuantizerConfig,
    Standardise,
)
from colaworld.models.latent_action.quantizers.codebook import (
    EMAVQ,
    NSVQ,
    CodebookQuantizer,
    GradientVQ,
)
from colaworld.models.latent_action.quantizers.continuous import GaussianLatent, NoQuantizer
from colaworld.models.latent_action.quantizers.estimators import rotation, straight_through
from colaworld.models.latent_action.quantizers.finite import FSQ
from colaworld.models.latent_action.quantizers.residual import ResidualVQ
from colaworld.models.latent_action.quantizers.starts import cluster_start, spread_start
from colaworld.models.parts import Part, register_part

QUANTIZERS: dict[str, Callable[[QuantizerConfig, int], Quantizer]] = {
    "vq": GradientVQ,
    "ema": EMAVQ,
    "nsvq": NSVQ,
    "fsq": FSQ,
    "residual": ResidualVQ,
    "gaussian": GaussianLatent,
    "none": NoQuantizer,
}


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer named by `config.kind`, for latent actions of width `dim`.

    Raises ValueError on an unknown kind or settings that do not fit it or `dim`.
    """
    if config.kind not in QUANTIZERS:
        raise ValueError(
            f"quantizer.kind: expected one of {', '.join(QUANTIZERS)}, got {config.kind!r}"
        )
    return QUANTIZERS[config.kind](config, dim)


register_part(
    Part(
        "quantizer",
        QuantizerConfig,
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
    "GaussianLatent",
    "GradientVQ",
    "Kind",
    "NoQuantizer",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualVQ",
    "Standardise",
    "build_quantizer",
    "cluster_start",
    "rotation",
    "spread_start",
    "straight_through",
]
