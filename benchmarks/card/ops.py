"""The ops at the sizes of the large models, against eager, torch.compile and torch's attention.

The cases are those of `colaworld bench ops`, the sizes those that a goal names; the most important
come first. Not here: small sizes (`colaworld bench ops --device cuda` has them).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from .. import run, shapes
from . import stage
from .stage import Asked, Point


def points(asked: Asked) -> Iterable[Point]:
    cases = listed(asked, "bfloat16") + listed(asked, "float32")
    order = {label: place for place, label in enumerate(shapes.card_ops(quick=asked.quick))}
    for case in sorted(cases, key=lambda case: order[case.op, case.shape, case.dtype]):
        # A compilation takes most of it.
        yield Point(case.label, lambda case=case: stage.of_case(case, asked), seconds=12)


def listed(asked: Asked, dtype: str) -> list:
    """The cases of one dtype whose sizes are asked for."""
    wanted = [key for key in shapes.card_ops(quick=asked.quick) if key[2] == dtype]
    if not wanted:
        return []
    only = sorted({f"{op}/{shape}/" for op, shape, _ in wanted} | {key[1] for key in wanted})
    cases, _ = run.listed(("ops",), asked.wish(dtype), only=only)
    return [case for case in cases if (case.op, case.shape, case.dtype) in wanted]


if __name__ == "__main__":
    sys.exit(stage.main(points, __doc__))
