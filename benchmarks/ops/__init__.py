"""The ops: what is called, against what, at what cost. Not here: sizes (shapes.py), timing."""

from __future__ import annotations

from collections.abc import Iterator

from .. import shapes
from ..case import Case, Request, Skipped
from .adaln import ADALN
from .attention import ATTENTION, ST_ATTENTION
from .norm_rope import QK_NORM_ROPE, QKV_NORM_ROPE
from .quantization import CODE_STATISTICS, CODEBOOK_STEP, VECTOR_QUANTIZE

SUITE = (
    ST_ATTENTION,
    ADALN,
    QKV_NORM_ROPE,
    QK_NORM_ROPE,
    VECTOR_QUANTIZE,
    CODE_STATISTICS,
    CODEBOOK_STEP,
)
DEFINITIONS = {definition.op: definition for definition in (*SUITE, ATTENTION)}


def cases(request: Request) -> Iterator[Case | Skipped]:
    """Every op at every shape that the recipe gives it, then the named shapes beyond it."""
    config = shapes.run_config(request.recipe, request.overrides)
    for definition in SUITE:
        yield from definition.cases(getattr(shapes, definition.op)(config), request)
