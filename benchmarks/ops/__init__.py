"""The ops: what is called, against what, at what cost and sizes; each file of this folder defines some.

Not here: timing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from ..case import Case, Request, Skipped
from ..shapes import run_config
from .definition import Definition

# By op, file by file: whoever adds one adds a file.
DEFINITIONS: dict[str, Definition] = {
    value.op: value
    for file in pkgutil.iter_modules(__path__)
    for value in vars(importlib.import_module(f"{__name__}.{file.name}")).values()
    if isinstance(value, Definition)
}


def cases(request: Request) -> Iterator[Case | Skipped]:
    """Every op at every shape that the recipe gives it, then the named shapes beyond it."""
    config = run_config(request.recipe, request.overrides)
    for definition in DEFINITIONS.values():
        if definition.shapes is not None:
            yield from definition.cases([*definition.shapes(config), *definition.named], request)
