"""Any folder of video files, recursive and unconverted: one file is one episode without actions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from colaworld.data.index_cache import IndexCache
from colaworld.data.sources.registry import register_source
from colaworld.data.sources.videos import SUFFIXES, VideosSource
from colaworld.data.video_file import Video


class VideoFolderSource(VideosSource):
    """Files are taken in order of their path; hidden files and folders are left out."""

    kind = "video_folder"

    def _find(self, index: IndexCache) -> Iterator[tuple[str, Path, Video]]:
        for file in self._files():
            if (
                file == self.path or file.suffix.lower() in SUFFIXES
            ):  # what is no file (a FIFO) is named
                yield self._place_of(file), file, Video.file(file)


# Takes anything, so that a folder without videos is told what was looked for.
register_source(VideoFolderSource.kind, detect=lambda path: True, open=VideoFolderSource)
