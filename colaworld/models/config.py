"""Every size of a world model, and the conditioner as a part. Imports no torch.

Not here: the sizes of its other parts, which stand in a config.py beside each, or anything that is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from colaworld.config import (
    Checked,
    ConfigError,
    Count,
    Range,
    Share,
    Size,
    from_dict,
    kinds_of,
    of_kind,
)
from colaworld.contracts import AttentionBackend
from colaworld.models import adapters, lora  # noqa: F401  their parts register themselves
from colaworld.models.backbones import BackboneConfig
from colaworld.models.backbones.stdit3 import STDiT3Config
from colaworld.models.latent_action.config import FDMConfig, IDMConfig
from colaworld.models.latent_action.quantizers import QuantizerConfig, VQConfig
from colaworld.models.parts import PARTS, Part, register_part
from colaworld.models.tokenizers.config import PixelTokenizerConfig, TokenizerConfig
from colaworld.registry import Later


@dataclass(frozen=True)
class ConditionerConfig(Checked, at="model.conditioner."):
    """Sizes of the action path. The width is the backbone's."""

    depth: Annotated[int, Range(ge=0, le=1000)] = 6
    """Self-attention blocks over the action sequence (paper: 6)."""
    heads: Size = 3
    """Attention heads."""
    mlp_ratio: Annotated[float, Range(ge=1 / 8, le=64)] = 2.0
    """Hidden width of the MLP over width."""
    per_block: bool = True
    """A head of its own for every block of the video model; false: one shared by all (paper)."""
    dropout: Share = 0.1
    """Probability that a step's action is replaced by the learned null action (paper: 0.1)."""
    nested_dropout: Share = 0.0
    """Probability that only the first n tokens of a step's action are told in training, n uniform in 1 .. N - 1, the
    others being the null action's: what matters most is then told first (nested dropout, Rippel et al. 2014). In
    evaluation all tokens are told. Needs model.idm.tokens >= 2."""


@dataclass(frozen=True)
class ModelConfig(Checked, at="model."):
    """Every size of the model."""

    tokenizer: TokenizerConfig = field(default_factory=PixelTokenizerConfig)
    """Pixels to latents."""
    backbone: BackboneConfig = field(default_factory=STDiT3Config)
    """The video generator; any registered kind."""
    idm: IDMConfig = field(default_factory=IDMConfig)
    """The inverse dynamics model."""
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    """The quantizer."""
    conditioner: ConditionerConfig = field(default_factory=ConditionerConfig)
    """The path from actions into the generator."""
    fdm: FDMConfig = field(default_factory=FDMConfig)
    """The forward model of the two-stage baseline; built only where a phase trains it."""
    parts: dict[str, Any] = field(default_factory=dict)
    """Configurations of parts registered elsewhere, by name."""
    attention: AttentionBackend = "auto"
    """auto; fused (one kernel with norm and rotation inside); sdpa; cudnn (sdpa held to cuDNN); flex
    (for training: a rollout compiles nothing, and flex uncompiled holds all scores in memory); flash,
    flash3, flash4 (FlashAttention 2, 3 and 4)."""
    window: Count = 4
    """Frames the video model sees at once in a rollout; normally the clip length of training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        made = {}
        for name, given in self.parts.items():
            if name in {f.name for f in fields(self)}:
                raise ConfigError(f"model.parts.{name}: set model.{name} itself")
            config, where = PARTS[name].config, f"model.parts.{name}"
            if isinstance(given, config):
                made[name] = given
                continue
            kinds = kinds_of(config)
            chosen = of_kind(kinds, given, where, None) if kinds else config
            made[name] = from_dict(chosen, given, where=where)
        object.__setattr__(self, "parts", made)

    def of(self, part: str) -> Any:
        """The configuration of a part: what is given, else its defaults."""
        if hasattr(self, part):
            return getattr(self, part)
        if part in self.parts:
            return self.parts[part]
        config = PARTS[part].config
        return (kinds_of(config) or [config])[0]()


_CONDITIONER = Later("colaworld.models.conditioning:ActionConditioner")


def _build_conditioner(config: ConditionerConfig, model: Any) -> Any:
    return _CONDITIONER(
        config,
        width=model.backbone.width,
        blocks=model.backbone.modulated_blocks,
        tokens=model.config.idm.tokens,
        dim=model.config.idm.dim,
        actions_per_frame=model.tokenizer.temporal_stride,
    )


register_part(
    Part(
        "conditioner",
        ConditionerConfig,
        _build_conditioner,
        needs=("idm", "quantizer"),
        compile=True,
    )
)
