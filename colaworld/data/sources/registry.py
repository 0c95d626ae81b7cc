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


@dataclass(frozen=True)
class SourceKind:
    """How a kind of source is found and opened."""

    name: str
    """What `data.source` calls it; the `kind` of what `open` returns."""
    detect: Callable[[Path], bool]
    """Whether a path that exists holds such a set. Looks at names only: it is asked at every start."""
    open: Callable[..., Source]
    """(path, *, camera, action_column) -> the source. DataError where nothing in it can be used."""


SOURCES: dict[str, SourceKind] = {}


def register_source(
    name: str, *, detect: Callable[[Path], bool], open: Callable[..., Source]
) -> None:
    """Make a source known. The latest is asked first, so yours come before those of the package.

    Raises DataError on a name that is taken.
    """
    kind = SourceKind(name, detect, open)
    if name == "auto" or SOURCES.get(name, kind) != kind:
        raise DataError(f"source {name!r}: there is a source of this name already")
    SOURCES[name] = kind


def find_source(name: str) -> SourceKind:
    """The source of this name. Raises DataError with those that are known."""
    if name not in SOURCES:
        raise DataError(
            f"unknown source {name!r}; expected auto, {', '.join(sorted(SOURCES))}. Import the file "
            "that registers it (on the command line: COLAWORLD_IMPORT=file.py)"
        )
    return SOURCES[name]


def detect_source(path: Path) -> SourceKind:
    """The first source that recognises a path. DataError if none does."""
    for kind in reversed(SOURCES.values()):
        if kind.detect(path):
            return kind
    raise DataError(f"{path}: no source recognises it; known: {', '.join(sorted(SOURCES))}")
