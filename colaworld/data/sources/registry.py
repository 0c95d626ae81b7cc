"""Sources by name: how each is recognised and opened.

A source registers itself, here or in your own package; importing the file is enough:

    register_source("npy", detect=lambda path: any(path.glob("*.npy")), open=NpySource)

Not here: any source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from colaworld.data.errors import DataError
from colaworld.data.sources.source import Source
from colaworld.registry import Registry


@dataclass(frozen=True)
class SourceKind:
    """How a kind of source is found and opened."""

    name: str
    """What `data.source` calls it; the `kind` of what `open` returns."""
    detect: Callable[[Path], bool]
    """Whether a path that exists holds such a set. Looks at names only: it is asked at every start."""
    open: Callable[..., Source]
    """(path, *, camera, action_column) -> the source. DataError where nothing in it can be used."""
    takes_fps: bool = False
    """Whether `open` also takes recorded_fps: files of this kind may not say their rate."""


SOURCES: Registry[SourceKind] = Registry("source", DataError, reserved=("auto",))


def register_source(
    name: str,
    *,
    detect: Callable[[Path], bool],
    open: Callable[..., Source],
    takes_fps: bool = False,
) -> None:
    """Make a source known. The latest is asked first, so yours come before those of the package.

    Raises DataError on a name that is taken.
    """
    SOURCES.add(name, SourceKind(name, detect, open, takes_fps))


def detect_source(path: Path) -> SourceKind:
    """The first source that recognises a path. DataError if none does."""
    for kind in reversed(SOURCES.values()):
        if kind.detect(path):
            return kind
    raise DataError(f"{path}: no source recognises it; known: {', '.join(sorted(SOURCES))}")
