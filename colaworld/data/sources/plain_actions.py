"""Actions that come as bare arrays, with nothing that describes them: what they are and must be.

    [n] or [n, 1] integers             classes; as many as the largest of the whole set says
    [n] or [n, A] floats or booleans   continuous

Row t leads from frame t to t + 1. Not here: reading the arrays (webdataset.py, hdf5.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.data.errors import DataError

_MOST = 10**6  # classes: beyond it a number is no class


def column_of(asked: str | None, there: Iterable[str]) -> str | None:
    """The asked column, if it is there; by `action` is also meant `actions`. None: none is."""
    names = set(there)
    if asked == "action" and asked not in names:
        asked = "actions"
    return asked if asked in names else None


def spec_of(column: str, arrays: Iterable[tuple[str, np.ndarray]]) -> ActionSpec:
    """What the first of (where, values) is; of classes all are looked at. Raises DataError."""
    most: int | None = None
    for where, values in arrays:
        _check_kind(where, values)
        if not _classes(values) and most is None:
            return ActionSpec(column, "continuous", math.prod(values.shape[1:]), ())
        if not _classes(values) or not 0 <= values.min() <= values.max() < _MOST:
            raise DataError(f"{where}: expected classes from 0 on, {_shown(values)}")
        most = max(most or 0, int(values.max()))
    assert most is not None, "no array"
    return ActionSpec(column, "discrete", most + 1, ())


def checked(where: str, values: np.ndarray, spec: ActionSpec, *, frames: int) -> np.ndarray:
    """int64 [frames] or float32 [frames, A]. Raises DataError, begun with `where`."""
    _check_kind(where, values)
    if len(values) != frames:
        raise DataError(
            f"{where}: {len(values)} rows for {frames} frames; expected a row per frame, of which the "
            "last leads nowhere"
        )
    if spec.kind == "discrete":
        made = values.reshape(-1).astype(np.int64)
        if not _classes(values) or made.min() < 0 or made.max() >= spec.size:
            raise DataError(f"{where}: expected classes 0..{spec.size - 1}, {_shown(values)}")
        return made
    if _classes(values) or math.prod(values.shape[1:]) != spec.size:
        raise DataError(f"{where}: expected {spec.size} numbers a row, {_shown(values)}")
    made = values.reshape(frames, spec.size).astype(np.float32)
    if not np.isfinite(made).all():
        raise DataError(f"{where}: {np.sum(~np.isfinite(made))} values are not finite")
    return made


def _check_kind(where: str, values: np.ndarray) -> None:
    known = values.dtype.kind in "bf" or _classes(values)
    if not known or values.ndim not in (1, 2) or not values.size:
        raise DataError(f"{where}: expected floats [n, A] or integers [n], {_shown(values)}")


def _classes(values: np.ndarray) -> bool:
    return values.dtype.kind in "iu" and math.prod(values.shape[1:]) == 1


def _shown(values: np.ndarray) -> str:
    spread = ""
    if values.size and values.dtype.kind in "iuf":
        spread = f" of {values.min():g}..{values.max():g}"
    return f"got {values.dtype} {list(values.shape)}{spread}"
