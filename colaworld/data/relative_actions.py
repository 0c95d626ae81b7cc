"""Places as the way from the place before: what a step does, where only where it leads is recorded.

    rows of a column     p[0]  p[1]        p[2] ...
    relative             -     p[1]-p[0]   p[2]-p[1] ...

A place says what moves only beside where one was sent before; latent actions, which are the same wherever they
happen, cannot tell it. The first of an episode has none before it: clips begin behind it (clips.py).
Not here: places relative to a measured state, which a set may hold in another column.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from colaworld.contracts import ActionSpec
from colaworld.data.errors import DataError
from colaworld.data.sources.source import Source


class RelativeActions:
    """A source with its actions told from the ones before; the rest is as it is.

    Raises DataError where they are classes, or relative as recorded.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        spec = source.action_spec
        if spec is not None and (spec.kind == "discrete" or spec.mode == "relative"):
            found = "classes" if spec.kind == "discrete" else "relative as they are"
            raise DataError(
                f"{source.path}: data.actions: relative is for places, and those in column {spec.column!r} are "
                f"{found}; leave it out"
            )
        self.action_spec: ActionSpec | None = spec and replace(spec, mode="relative")

    def actions(self, episode: int) -> np.ndarray | None:
        """float32 [frames, A]; the first row, which has none before it, is zero."""
        places = self._source.actions(episode)
        return None if places is None else np.diff(places, axis=0, prepend=places[:1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)
