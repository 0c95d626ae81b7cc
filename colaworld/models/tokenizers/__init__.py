"""Pixels to latents and back, behind one contract (`tokenizer.Tokenizer`); a config says which one."""

from __future__ import annotations

from colaworld.models.tokenizers.config import (
    DiffusersVAEConfig,
    OpenSoraVAEConfig,
    TokenizerConfig,
)
from colaworld.models.tokenizers.tokenizer import Tokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of this configuration, frozen. Its file is imported here only."""
    if isinstance(config, OpenSoraVAEConfig):
        from colaworld.models.tokenizers.opensora_vae import OpenSoraVAE

        return OpenSoraVAE(config)
    if isinstance(config, DiffusersVAEConfig):
        from colaworld.models.tokenizers.diffusers_vae import DiffusersVAE

        return DiffusersVAE(config)
    from colaworld.models.tokenizers.pixels import PixelTokenizer

    return PixelTokenizer(config)
