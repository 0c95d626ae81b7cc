"""The configuration of each quantizer; `kind` tells them apart.

A quantizer registers itself, in `__init__.py` or in your own package; importing the file is enough:

    register_quantizer(MyConfig, MyQuantizer)

Not here: the quantizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from colaworld.config import Checked, ConfigError, Count, Natural, Range, Share, Weight
from colaworld.registry import Registry

# Early configurations hold the fields of every kind. Where they are none of this kind and say what
# they always said, they are passed over.
FORMER_KEYS: dict[str, Any] = {
    "codebook_size": 8,
    "beta": 0.25,
    "estimator": "straight_through",
    "data_start": True,
    "unquantized_steps": 0,
    "unquantized_noise": 0.0,
    "reseed": True,
    "reseed_below": 0.1,
    "reseed_every": 10,
    "decay": 0.99,
    "levels": [4, 2],
    "depth": 2,
}


class QuantizerConfig(Checked, at="model.quantizer."):
    """What the configuration of every quantizer says: a frozen dataclass with a default everywhere."""

    kind: str
    """Its name, a `Literal` field; saved configurations carry it."""
    normalise: bool
    """Standardise z per channel over the batch (running statistics in evaluation)."""
    scale_floor: float
    """The deviation of z that is held up meanwhile."""

    @staticmethod
    def kinds() -> tuple[type[QuantizerConfig], ...]:
        """The configurations of all registered quantizers."""
        return tuple(entry.config for entry in QUANTIZERS.values())

    def traceable(self) -> Any:
        """The same without what looks at values, for a trace of tensors that have none."""
        return self


class Registered(NamedTuple):
    """How a kind of quantizer is made."""

    config: type[QuantizerConfig]
    build: Callable[[Any, int], Any]
    """(its configuration, the width d of a latent action) -> a `Quantizer`."""


QUANTIZERS: Registry[Registered] = Registry("quantizer", ConfigError)


def register_quantizer(config: type[QuantizerConfig], build: Callable[[Any, int], Any]) -> None:
    """Make the kind `config.kind` known. Raises ConfigError where another has this name."""
    QUANTIZERS.add(config.kind, Registered(config, build))


@dataclass(frozen=True)
class CommonConfig(QuantizerConfig):
    """What every quantizer here has."""

    FORMER_KEYS: ClassVar[dict[str, Any]] = FORMER_KEYS
    # Younger than labelled sets: at this value it moves no hash (identity.py).
    ADDED_KEYS: ClassVar[dict[str, Any]] = {"scale_floor": 0.0}

    normalise: bool = True
    """Standardise z per channel over the batch (running statistics in evaluation)."""
    scale_floor: Weight = 0.0
    """With normalise: below this deviation of z, the squared logarithm of what is missing is added to the loss (0: off).
    Standardised latents do not see how small z is. Where little moves (PushT) it may shrink, until a step of the
    optimiser moves all latents by more than they differ, and running statistics cannot follow. 0.1 keeps it from that."""


@dataclass(frozen=True)
class CodebookConfig(CommonConfig):
    """What quantizers with a table of codes have: the size and the health measures."""

    codebook_size: Annotated[int, Range(ge=2, le=65536)] = 8
    """Entries, shared by all tokens of an action."""
    data_start: bool = True
    """Start the codebook from latents of real clips instead of U(-1/K, 1/K)."""
    unquantized_steps: Natural = 0
    """Steps in which latents pass unquantised, before the codebook starts (0: none). Smooth gradients
    find the actions first; the codebook then starts from clusters of them."""
    unquantized_noise: Weight = 0.0
    """Deviation of the Gaussian noise on them meanwhile, in units of the latents' own: it leaves
    room for few bits, so that the most useful ones are told first."""
    reseed: bool = True
    """Move codes that fell out of use onto latents of the current step."""
    reseed_below: Annotated[float, Range(ge=0, le=1)] = 0.1
    """A code is dead when its smoothed share of use is below this part of 1/K."""
    reseed_every: Count = 10
    """Optimiser steps between two re-seedings."""
    decay: Share = 0.99
    """Smoothing of the use of codes; for ema also of the codebook's statistics."""

    def traceable(self) -> Any:
        return replace(self, unquantized_steps=0, reseed=False)


def _countable(codes: int, what: str) -> None:
    if codes > 2**31:
        raise ConfigError(f"model.quantizer: {what} are {codes} codes; expected 2**31 at most")


Estimator = Literal["straight_through", "rotation"]


@dataclass(frozen=True)
class VQConfig(CodebookConfig):
    """A codebook that learns by gradients (the paper's)."""

    kind: Literal["vq"] = "vq"
    """Which quantizer."""
    beta: Weight = 0.25
    """Weight of the commitment loss (paper)."""
    estimator: Estimator = "straight_through"
    """How the gradient passes the choice; rotation is Fifty et al. 2024."""


@dataclass(frozen=True)
class EMAConfig(CodebookConfig):
    """A codebook of running means (van den Oord et al. 2017, appendix A.1)."""

    kind: Literal["ema"] = "ema"
    """Which quantizer."""
    beta: Weight = 0.25
    """Weight of the commitment loss."""
    estimator: Estimator = "straight_through"
    """How the gradient passes the choice; rotation is Fifty et al. 2024."""


@dataclass(frozen=True)
class NSVQConfig(CodebookConfig):
    """Noise substitution (Vali & Backstrom 2022)."""

    kind: Literal["nsvq"] = "nsvq"
    """Which quantizer."""


@dataclass(frozen=True)
class ResidualConfig(CommonConfig):
    """Several gradient codebooks, each on what the one before left (Zeghidour et al. 2021)."""

    kind: Literal["residual"] = "residual"
    """Which quantizer."""
    codebook_size: Annotated[int, Range(ge=2, le=65536)] = 8
    """Entries of each codebook."""
    depth: Annotated[int, Range(ge=1, le=16)] = 2
    """How many codebooks follow each other."""
    beta: Weight = 0.25
    """Weight of the commitment loss."""
    estimator: Estimator = "straight_through"
    """How the gradient passes the choice, once for the sum; rotation is Fifty et al. 2024."""
    data_start: bool = True
    """Start the codebooks from latents of real clips instead of U(-1/K, 1/K)."""
    reseed: bool = True
    """Move codes that fell out of use onto latents of the current step."""
    reseed_below: Annotated[float, Range(ge=0, le=1)] = 0.1
    """A code is dead when its smoothed share of use is below this part of 1/K."""
    reseed_every: Count = 10
    """Optimiser steps between two re-seedings."""
    decay: Share = 0.99
    """Smoothing of the use of codes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _countable(self.codebook_size**self.depth, "codebook_size ** depth")

    def traceable(self) -> Any:
        return replace(self, reseed=False)

    def each(self) -> VQConfig:
        """Of one of the codebooks."""
        return VQConfig(
            normalise=False,
            codebook_size=self.codebook_size,
            beta=self.beta,
            estimator=self.estimator,
            data_start=self.data_start,
            reseed=self.reseed,
            reseed_below=self.reseed_below,
            reseed_every=self.reseed_every,
            decay=self.decay,
        )


@dataclass(frozen=True)
class FSQConfig(CommonConfig):
    """Finite scalar quantisation (Mentzer et al. 2024): a grid, no table."""

    kind: Literal["fsq"] = "fsq"
    """Which quantizer."""
    levels: tuple[Annotated[int, Range(ge=2, le=65536)], ...] = (4, 2)
    """Values per channel; the latent width d must equal the number of channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _countable(math.prod(self.levels), "levels, multiplied,")


@dataclass(frozen=True)
class GaussianConfig(CommonConfig):
    """Continuous latent actions of a beta-VAE (Higgins et al. 2017)."""

    kind: Literal["gaussian"] = "gaussian"
    """Which quantizer."""
    beta: Weight = 0.25
    """Weight of the KL divergence."""


@dataclass(frozen=True)
class NoneConfig(CommonConfig):
    """Continuous latent actions as the inverse dynamics model gives them."""

    kind: Literal["none"] = "none"
    """Which quantizer."""
