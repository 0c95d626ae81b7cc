"""Where episodes come from: one file per format behind the `Source` protocol of source.py.

Not here: clips (../clips.py).
"""

from __future__ import annotations

from pathlib import Path

from colaworld.data.config import check_there

# Each registers itself. The last is asked first; video_folder takes what no other does.
from colaworld.data.sources import video_folder, webdataset, lerobot  # noqa: F401 # isort: skip
from colaworld.data.sources.registry import SOURCES, detect_source
from colaworld.data.sources.source import Source
from colaworld.data.video_file import check_regular


def open_source(
    path: Path | str,
    *,
    kind: str = "auto",
    camera: str | None = None,
    action_column: str | None = "action",
) -> Source:
    """Open a data set.

    Args:
        path: a folder, or one file.
        kind: the name of a registered source; auto: the first that recognises the path.
        camera: of several views, the one to use (default: the first).
        action_column: name of the real actions; None: none are wanted.

    Raises:
        DataError: nothing is there, no such source, or nothing in it can be used.
    """
    path = check_there(Path(path))
    if not path.is_dir():
        check_regular(path)
    found = detect_source(path) if kind == "auto" else SOURCES[kind]
    return found.open(path, camera=camera, action_column=action_column)
