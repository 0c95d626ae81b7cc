"""Where episodes come from: one file per format behind the `Source` protocol of source.py.

Not here: clips (../clips.py).
"""

from __future__ import annotations

from pathlib import Path

from colaworld.data.config import check_there
from colaworld.data.errors import DataError

# Each registers itself. The last is asked first; video_folder takes what no other does.
from colaworld.data.sources import video_folder, webdataset, hdf5, lerobot  # noqa: F401 # isort: skip
from colaworld.data.sources.registry import SOURCES, detect_source
from colaworld.data.sources.source import Source
from colaworld.data.video_file import check_regular


def open_source(
    path: Path | str,
    *,
    kind: str = "auto",
    camera: str | None = None,
    action_column: str | None = "action",
    recorded_fps: float | None = None,
) -> Source:
    """Open a data set.

    Args:
        path: a folder, or one file.
        kind: the name of a registered source; auto: the first that recognises the path.
        camera: of several views, the one to use (default: the first).
        action_column: name of the real actions; None: none are wanted.
        recorded_fps: the rate, for sources whose files may not say it.

    Raises:
        DataError: nothing is there, no such source, or nothing in it can be used.
    """
    path = check_there(Path(path))
    if not path.is_dir():
        check_regular(path)
    found = detect_source(path) if kind == "auto" else SOURCES[kind]
    options = {} if recorded_fps is None else {"recorded_fps": recorded_fps}
    if options and not found.takes_fps:
        raise DataError(
            f"{path}: a set of the kind {found.name!r} says its own rate; leave recorded_fps out"
        )
    return found.open(path, camera=camera, action_column=action_column, **options)
