"""Any damage to tars and HDF5 files: the same episodes, others that are warned of, or an error with a name.

What the formats cannot tell is left out: a whole file that is gone, another name for a demonstration, other
bits within pixels.
"""

from __future__ import annotations

import io
import json
import logging
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colaworld.data.errors import BrokenFileError, DataError
from colaworld.data.sources import open_source


@pytest.fixture(autouse=True)
def quiet(caplog) -> None:
    caplog.set_level(logging.ERROR, "colaworld.data")  # set back afterwards


def outcome(path: Path) -> Any:
    """What a reader gets, pictures included; "named" for an error with the file's name."""
    try:
        source = open_source(path)
        if source.broken:
            raise DataError(source.broken[0].reason)
        return (
            [(e.name, e.frames, e.fps, e.height, e.width) for e in source.episodes],
            source.describe().warnings,
            [
                (
                    np.stack(list(source.stream(i, 0, e.frames))).tobytes(),
                    source.read(i, [e.frames - 1]).tobytes(),
                    None if (a := source.actions(i)) is None else a.tobytes(),
                )
                for i, e in enumerate(source.episodes)
            ],
        )
    except (DataError, BrokenFileError) as error:
        return "named" if str(path) in str(error) else f"names no file: {error}"


def tried(path: Path, count: int, change: Callable[[Path, random.Random], str]) -> None:
    """`count` changes of the file, each undone."""
    whole, before = outcome(path), path.read_bytes()
    seen, wrong = {"same": 0, "warned": 0, "named": 0}, []
    for seed in range(count):
        path.write_bytes(before)
        told = change(path, random.Random(f"{path.name} {seed}"))
        try:
            got = outcome(path)
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        finally:
            if path.is_fifo():
                path.unlink()
        if got in ("named", whole):
            seen["named" if got == "named" else "same"] += 1
        elif isinstance(got, tuple) and set(got[1]) - set(whole[1]):
            seen["warned"] += 1
        else:
            wrong.append(f"{told}: {str(got)[:300]}")
    assert not wrong, "\n".join(wrong)
    assert seen["named"] > count // 3, seen


def cut_or_pipe(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    if rng.random() < 0.8:
        length = rng.randrange(len(content))
        path.write_bytes(content[:length])
        return f"cut to {length}"
    path.unlink()
    os.mkfifo(path)
    return "a pipe"


def _change_tar(path: Path, rng: random.Random) -> str:
    how = rng.choice(["cut", "delete", "rename", "type", "shorter", "junk", "head", "head"])
    if how == "cut":
        return cut_or_pipe(path, rng)
    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar.getmembers()]
    at = rng.randrange(len(members))
    member, content = members[at]
    told = f"{member.name} {how}"
    if how == "delete":
        del members[at]
    elif how == "rename":
        member.name = rng.choice(["x.mp4", "../a.npy", "", "a", f"{member.name}.npy", "é.json"])
    elif how == "type":
        member.type = rng.choice([tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE, b"S", b"7"])
        member.linkname = "/etc/passwd"
    elif how in ("shorter", "junk"):
        content = content[: len(content) // 2] if how == "shorter" else rng.randbytes(300)
        member.size = len(content)
        members[at] = member, content
    with tarfile.open(path, "w") as tar:
        for m, c in members:
            m.size = m.size if m.isreg() else 0
            tar.addfile(m, io.BytesIO(c))
    if how == "head":  # one byte of a header, and half the time its checksum made to fit
        made = bytearray(path.read_bytes())
        start = members[at][0].offset
        made[start + rng.randrange(345)] = rng.randrange(256)
        head = made[start : start + 512]
        if rng.random() < 0.5:
            total = sum(head[:148]) + 256 + sum(head[156:])
            made[start + 148 : start + 156] = b"%06o\0 " % total
        path.write_bytes(made)
    return told


def test_tars(tmp_path, film) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i, name in enumerate("ab"):
            array = io.BytesIO()
            np.save(array, np.arange(18.0).reshape(9, 2) + i)
            film(tmp_path / "film.mp4", range(i, i + 9), height=16, width=40)
            for ending, content in (
                ("mp4", (tmp_path / "film.mp4").read_bytes()),
                ("npy", array.getvalue()),
                ("json", b'{"fps": 10}'),
            ):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    tried(tmp_path / "0.tar", 50, _change_tar)


def _change_hdf5(path: Path, rng: random.Random) -> str:
    import h5py

    how = rng.choice(
        ["cut", "delete", "type", "shorter", "zeros", "link", "attribute", "attribute"]
    )
    if how == "cut":
        return cut_or_pipe(path, rng)
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        value = file[name][()] if isinstance(file[name], h5py.Dataset) else np.zeros(3)
        if how == "attribute":
            place = file[rng.choice(["data", "data/demo_0"])]
            key = rng.choice(list(place.attrs))
            wrong = [
                None,
                "",
                -1,
                float("nan"),
                "{",
                "[]",
                '{"env_kwargs": 3}',
                [1, 2],
                h5py.Empty("f"),
            ]
            if (made := rng.choice(wrong)) is None:
                del place.attrs[key]
            else:
                place.attrs[key] = made
            return f"{place.name} {key} = {made!r}"
        del file[name]
        if how == "type":
            file[name] = value.astype(rng.choice(["f4", "i8", "S3"]))
        elif how == "shorter":
            file[name] = value[:-1]
        elif how == "zeros":
            file.create_dataset(name, value.shape, value.dtype)
        elif how == "link":
            file[name] = h5py.ExternalLink("/etc/passwd", "x")
    return f"{name} {how}"


def test_hdf5(tmp_path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "task.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        data.attrs["num_demos"], data.attrs["total"] = 2, 16
        for i, n in enumerate((9, 7)):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = n
            demo["actions"] = rng.normal(size=(n, 2))
            demo["obs/image"] = rng.integers(0, 256, (n, 6, 8, 3)).astype(np.uint8)
    tried(tmp_path / "task.hdf5", 50, _change_hdf5)
