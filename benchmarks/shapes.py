"""The sizes that ops are timed at. Not here: how they are timed."""

from __future__ import annotations

# (N rows, K entries, d width)
VECTOR_QUANTIZE = (
    (4096, 32, 32),  # the codebook of the paper's latent actions: few entries, many rows
    (16384, 1024, 32),  # a codebook the size of the first image tokenizers
    (16384, 8192, 64),  # where an N x K matrix costs half a gigabyte
)
