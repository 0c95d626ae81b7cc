"""One file per op: its shapes, providers, cost and judge. Not here: how they are timed."""

from __future__ import annotations

from collections.abc import Iterator

from ..case import Case, Skipped, Wish
from . import adaln, code_statistics, qk_norm_rope, st_attention, vector_quantize

FILES = (st_attention, adaln, qk_norm_rope, vector_quantize, code_statistics)


def cases(wish: Wish) -> Iterator[Case | Skipped]:
    """Every op at every shape that the recipe gives it, then the named shapes beyond it."""
    for file in FILES:
        yield from file.cases(wish)
