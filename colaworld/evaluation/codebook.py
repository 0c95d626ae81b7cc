"""Codebook health on held-out clips.

The numbers are `colaworld.metrics.codebook`'s; this file adds only what held-out data adds: every
transition counts once, and a world without a codebook has no health.
"""

from __future__ import annotations

from typing import Any

from colaworld.contracts import LatentActions
from colaworld.metrics.codebook import codebook_health


def held_out_health(actions: LatentActions, *, codebook_size: int | None) -> dict[str, Any] | None:
    """Health over all transitions of `actions`, or None where latents are continuous."""
    if codebook_size is None:
        return None
    if actions.indices is None:
        raise ValueError("held_out_health: codebook_size is given but the actions have no indices")
    return codebook_health(actions.indices.flatten(0, 1), codebook_size=codebook_size)
