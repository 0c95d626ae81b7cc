"""Videos inside uncompressed tar files, as WebDataset packs them: read in place, never unpacked.

    shards/000000.tar    a.mp4 a.json b.mp4 ...    one video is one episode; other members are not read

A tar stores each member's bytes in one run, so a video is read from the tar by its offset.
Not here: actions (WebDataset has no convention for them), compressed tars.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from colaworld.data.errors import BrokenFileError
from colaworld.data.index_cache import IndexCache
from colaworld.data.sources.registry import register_source
from colaworld.data.sources.videos import VideosSource, is_video, walk
from colaworld.data.video_file import Video, check_regular, file_stamp


class TarFolderSource(VideosSource):
    """Tars in order of their path, members in order within; a single tar is a set, too.

    Of members with the same name the last counts, as it does for tar itself.
    """

    kind = "tar_folder"
    format = "videos in tar files"
    _what = "a tar of videos"

    def _find(self, index: IndexCache) -> Iterator[tuple[str, Path, Video]]:
        alone = self.path.is_file()
        for tar in [self.path] if alone else self._files():
            if tar.suffix != ".tar":
                continue
            try:
                check_regular(tar)
                listed = index.get(str(tar), partial(file_stamp, tar), partial(_list, tar))
            except OSError as error:
                self._skip(tar, f"{tar}: cannot be read: {error.strerror}")
                continue
            except BrokenFileError as error:
                self._skip(tar, str(error))
                continue
            for reason in listed["broken"]:
                self._skip(tar, reason)
            place = tar.name if alone else tar.relative_to(self.path).as_posix()
            for member, (offset, size) in listed["members"].items():
                yield f"{place}/{member}", tar, _member(tar, member, offset, size)

    def _place(self, episode: int) -> str:
        return self.episodes[episode].name


def _list(tar: Path) -> dict[str, Any]:
    """{"members": {name: [offset, bytes]}, "broken": [reasons]}: its videos."""
    members: dict[str, list[int]] = {}
    broken = []
    try:
        with tarfile.open(tar, "r:") as opened:
            for member in opened:
                name = PurePosixPath(member.name)
                if member.isdir() or not is_video(name):
                    continue
                if not member.isfile():
                    broken.append(f"{tar}: {name}: is a link or a device, not a file")
                    continue
                if member.issparse():
                    broken.append(f"{tar}: {name}: is stored sparse; pack it again without")
                    continue
                members[str(name)] = [member.offset_data, member.size]
            opened.fileobj.seek(opened.offset)  # where the list ends: zeros, or a damaged header
            if any(opened.fileobj.read(tarfile.BLOCKSIZE)):
                broken.append(f"{tar}: damaged at byte {opened.offset}: what follows is not read")
    except tarfile.TarError as error:
        broken.append(f"{tar}: cannot be read as an uncompressed tar: {error}")
    return {"members": members, "broken": broken}


def _member(tar: Path, name: str, offset: int, size: int) -> Video:
    def open_member() -> BinaryIO:
        return cast(BinaryIO, _Slice(tar, name, offset, size))

    def stamp() -> tuple[int, ...]:
        return size, *file_stamp(tar), offset

    return Video(f"{tar}: {name}", open_member, stamp)


class _Slice(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file of its own."""

    def __init__(self, path: Path, name: str, offset: int, size: int) -> None:
        self.name = name  # its ending helps FFmpeg to guess the format
        self._file = path.open("rb", buffering=0)
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + to)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(memoryview(buffer)[:wanted])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _detect(path: Path) -> bool:
    """A tar, or a folder of tars without videos beside them."""
    if path.is_file():
        return path.suffix == ".tar"
    tars = False
    for file in walk(path):  # once, and in a folder of videos only up to the first
        if is_video(file.relative_to(path)) and file.is_file():
            return False
        tars = tars or file.suffix == ".tar"
    return tars


register_source(TarFolderSource.kind, detect=_detect, open=TarFolderSource)
