"""One file per op: its shapes, providers, cost and verification. Not here: how they are timed."""

from __future__ import annotations

from collections.abc import Iterator

from ..case import Case, Request, Skipped
from . import adaln, code_statistics, codebook_step, qk_norm_rope, st_attention, vector_quantize

FILES = (st_attention, adaln, qk_norm_rope, vector_quantize, code_statistics, codebook_step)


def cases(request: Request) -> Iterator[Case | Skipped]:
    """Every op at every shape that the recipe gives it, then the named shapes beyond it."""
    for file in FILES:
        yield from file.cases(request)
