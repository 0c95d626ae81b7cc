"""Pixels to latents and back, behind one contract (`base.Tokenizer`); a config says which one."""

from __future__ import annotations

from colaworld.models.tokenizers.diffusers_vae import DiffusersVAE, DiffusersVAEConfig
from colaworld.models.tokenizers.opensora_vae import OpenSoraVAE, OpenSoraVAEConfig
from colaworld.models.tokenizers.pixels import PixelTokenizer, PixelTokenizerConfig
from colaworld.models.tokenizers.tokenizer import Tokenizer

TokenizerConfig = PixelTokenizerConfig | OpenSoraVAEConfig | DiffusersVAEConfig


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of this configuration, frozen."""
    if isinstance(config, OpenSoraVAEConfig):
        return OpenSoraVAE(config)
    if isinstance(config, DiffusersVAEConfig):
        return DiffusersVAE(config)
    return PixelTokenizer(config)
