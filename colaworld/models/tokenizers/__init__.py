"""Pixels to latents and back, behind one contract (`base.Tokenizer`); a config says which one."""

from __future__ import annotations

from colaworld.models.tokenizers.base import Tokenizer
from colaworld.models.tokenizers.pixels import PixelTokenizer, PixelTokenizerConfig

TokenizerConfig = PixelTokenizerConfig


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of this configuration, frozen."""
    return PixelTokenizer(config)
