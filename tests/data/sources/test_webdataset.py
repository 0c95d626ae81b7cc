"""Videos inside tars: the same frames as unpacked, and every fault named by tar and member."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from colaworld.data.clips import ClipSet
from colaworld.data.config import DataConfig
from colaworld.data.episode_stream import episode_stream
from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.loader import ClipLoader
from colaworld.data.sources import open_source

KINDS = {"b.mp4": "libx264", "deep/c.mkv": "libx264", "a.avi": "mpeg4", "d.gif": "gif"}


@pytest.fixture
def loose(tmp_path, film) -> Path:
    """A folder of videos of several containers, with what does not belong to it."""
    for i, (name, codec) in enumerate(KINDS.items()):
        film(tmp_path / "loose" / name, range(100 * i, 100 * i + 30), codec=codec)
    (tmp_path / "loose/b.json").write_text('{"caption": "bars"}')
    (tmp_path / "loose/._b.mp4").write_text("what macOS leaves")
    return tmp_path / "loose"


def _pack(tar: Path, folder: Path, names=None, **options) -> Path:
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w", **options) as archive:
        for file in sorted(folder.rglob("*")) if names is None else [folder / n for n in names]:
            archive.add(file, f"./{file.relative_to(folder)}", recursive=False)
    return tar


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_frames_of_the_unpacked_files(tmp_path, loose, number_of, layout) -> None:
    _pack(tmp_path / "tars/sub/1.tar", loose, ["d.gif"], format=layout)
    _pack(tmp_path / "tars/0.tar", loose, ["b.mp4", "b.json", "deep/c.mkv", "a.avi"], format=layout)
    packed, unpacked = open_source(tmp_path / "tars"), open_source(loose)
    assert packed.kind == "webdataset" and packed.describe().format == "WebDataset"
    names = ["0.tar/b.mp4", "0.tar/deep/c.mkv", "0.tar/a.avi", "sub/1.tar/d.gif"]
    assert [e.name for e in packed.episodes] == names
    places = {e.name: e for e in unpacked.episodes}
    for e in packed.episodes:
        same = places[e.name.split(".tar/")[1]]
        assert (e.frames, e.fps, e.height, e.width) == (
            same.frames,
            same.fps,
            same.height,
            same.width,
        )
        for wanted in ([29, 3, 3, 17], range(30)):
            frames = packed.read(e.index, list(wanted))
            np.testing.assert_array_equal(frames, unpacked.read(same.index, list(wanted)))
        np.testing.assert_array_equal(packed.times(e.index), unpacked.times(same.index))
    assert [number_of(f) for f in packed.stream(1, 11, 15)] == [111, 112, 113, 114]
    assert packed.action_spec is None and packed.actions(0) is None
    assert packed.identity(2) == ("0.tar/a.avi", (loose / "a.avi").stat().st_size)


def test_one_tar_is_a_set_and_trains(tmp_path, loose, number_of) -> None:
    tar = _pack(tmp_path / "one.tar", loose)
    config = DataConfig(path=tar, frames_per_clip=3, split="all", height=16, width=40)
    loader = ClipLoader(config, batch_size=4, seed=0)
    assert [e.name for e in loader.clips.episodes] == [
        "one.tar/a.avi",
        "one.tar/b.mp4",
        "one.tar/d.gif",
        "one.tar/deep/c.mkv",
    ]
    first = {"a.avi": 200, "b.mp4": 0, "d.gif": 300, "deep/c.mkv": 100}
    for _ in range(5):
        batch = next(loader)
        for b in range(4):
            name = loader.clips.source.episodes[int(batch.episode[b])].name
            begin = first[name.removeprefix("one.tar/")] + int(batch.start[b])
            assert [number_of(f.numpy()) for f in batch.frames[b]] == [begin, begin + 1, begin + 2]
    loader.close()
    assert sum(len(w.index) - w.repeats for w in episode_stream(loader.clips, window=7)) == 120
    with pytest.raises(DataError, match=r"one\.tar: no sample has an action column"):
        loader.clips.require_actions()


def test_loose_videos_beside_a_tar_are_the_set(tmp_path, loose) -> None:
    _pack(loose / "backup.tar", loose, ["b.mp4"])
    assert open_source(loose).kind == "video_folder"
    assert len(open_source(loose, kind="webdataset").episodes) == 1


def test_a_packed_set_may_be_appended_to(tmp_path, loose, film) -> None:
    tar = _pack(tmp_path / "tars/0.tar", loose, ["b.mp4"])
    assert [e.frames for e in open_source(tar).episodes] == [30]
    film(loose / "b.mp4", range(9))
    with tarfile.open(tar, "a") as archive:
        archive.add(loose / "b.mp4", "b.mp4")
        archive.add(loose / "a.avi", "a.avi")
    assert [(e.name, e.frames) for e in open_source(tar).episodes] == [
        ("0.tar/b.mp4", 9),  # the later of two with a name
        ("0.tar/a.avi", 30),
    ]


def test_faults_name_tar_and_member(tmp_path, loose) -> None:
    (loose / "bad.mp4").write_bytes(b"no film" * 100)
    whole = _pack(tmp_path / "tars/0.tar", loose, ["bad.mp4", "b.mp4"])
    bytes_ = whole.read_bytes()
    with tarfile.open(whole) as archive:
        second = archive.getmember("./b.mp4")
    (tmp_path / "tars/1.tar").write_bytes(bytes_[: second.offset_data + second.size // 2])
    damaged = bytearray(bytes_)
    damaged[second.offset + 150] ^= 1  # in the checksum of its header
    (tmp_path / "tars/2.tar").write_bytes(damaged)
    (tmp_path / "tars/3.tar").write_bytes(b"not a tar" * 100)
    with tarfile.open(tmp_path / "tars/4.tar", "w:gz") as archive:
        archive.add(loose / "b.mp4")
    source = open_source(tmp_path / "tars")
    assert [e.name for e in source.episodes] == ["0.tar/b.mp4"]
    reasons = [b.reason for b in source.broken]
    tars = tmp_path / "tars"
    for begin in (
        f"{tars / '0.tar'}: bad.mp4: cannot be opened as a video",
        f"{tars / '1.tar'}: bad.mp4: cannot be opened",
        f"{tars / '1.tar'}: b.mp4: ",
        f"{tars / '1.tar'}: cannot be read as an uncompressed tar: unexpected end of data",
        f"{tars / '2.tar'}: damaged at byte {second.offset}",
        f"{tars / '2.tar'}: bad.mp4: cannot be opened",
        f"{tars / '3.tar'}: cannot be read as an uncompressed tar",
        f"{tars / '4.tar'}: cannot be read as an uncompressed tar",
    ):
        assert any(r.startswith(begin) for r in reasons), begin
    assert len(reasons) == 8
    with pytest.raises(DataError, match=r"8 of 9 files or episodes are broken"):
        ClipSet(DataConfig(path=tars, frames_per_clip=3))


def test_a_tar_that_changes_while_it_is_read(tmp_path, loose) -> None:
    tar = _pack(tmp_path / "0.tar", loose, ["b.mp4"])
    source = open_source(tar)
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(BrokenFileError, match=r"0\.tar: b\.mp4: "):
        source.read(0, [3])


def test_nothing_to_use(tmp_path, loose) -> None:
    _pack(tmp_path / "tars/0.tar", loose, ["b.json"])
    with pytest.raises(DataError, match=r"tars: no video files in it \(looked for"):
        open_source(tmp_path / "tars")


def test_members_and_tars_that_are_no_files_are_named(tmp_path, loose) -> None:
    tars = tmp_path / "tars"
    _pack(tars / "0.tar", loose, ["b.mp4"])
    with tarfile.open(tars / "0.tar", "a") as archive:
        for name, kind in (("pipe.mp4", tarfile.FIFOTYPE), ("link.mp4", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    os.mkfifo(tars / "1.tar")
    source = open_source(tars)
    assert [e.name for e in source.episodes] == ["0.tar/b.mp4"]
    assert [b.reason for b in source.broken] == [
        f"{tars}/0.tar: pipe.mp4: is a link or a device, not a file",
        f"{tars}/0.tar: link.mp4: is a link or a device, not a file",
        f"{tars}/1.tar: is a FIFO, not a file",
    ]


def test_hidden_folders_are_left_out(tmp_path, loose) -> None:
    _pack(tmp_path / "set/.trash/0.tar", loose, ["b.mp4"])
    with pytest.raises(DataError, match="no video files in it"):
        open_source(tmp_path / "set")
    _pack(tmp_path / "set/1.tar", loose, ["a.avi"])
    assert [e.name for e in open_source(tmp_path / "set").episodes] == ["1.tar/a.avi"]


def test_a_set_within_a_hidden_folder_is_seen_as_elsewhere(tmp_path, loose) -> None:
    hidden = loose.rename(tmp_path / ".cache")
    _pack(hidden / "backup.tar", hidden, ["b.mp4"])
    assert open_source(hidden).kind == "video_folder"
