"""Of several views, the one that is asked for. Not here: which there are (the sources)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colaworld.data.errors import DataError


def choose_camera(root: Path, cameras: Sequence[str], asked: str | None) -> str:
    """The camera of that name, or the one whose name ends with it after a dot. None: the first."""
    if asked is None or asked in cameras:
        return asked or cameras[0]
    fitting = [name for name in cameras if name.endswith(f".{asked}")]
    if len(fitting) == 1:
        return fitting[0]
    raise DataError(
        f"{root}: {'no camera' if not fitting else 'more than one camera'} {asked!r}; choose one "
        f"of: {', '.join(fitting or cameras)}"
    )
