"""Latents of a data set on disk: which ones they are, and reading them.

    DIR/key.json                 what the latents are of: data, transform, tokenizer; their layout
    DIR/shard_000000.safetensors "latents" [n, ...], and "runs": which frames or clips they are of
    DIR/index.parquet            all runs, and the size of every shard; written last

Each of the three holds a hash of its own content, and the latter two one of key.json. A shard is
compared when it is first read, and must be finite; COLAWORLD_VERIFY=0 skips both.

Two layouts. A tokenizer without temporal stride makes one latent per frame, whatever clip it is in:
`frame` stores each frame once and slices clips of any length out of them. With a stride, the
latents of a clip depend on where it starts: `clip` stores those of each clip (episode, start).

Reading maps the shards into memory, needs no lock, and returns bit for bit what was stored: what
the tokenizer gave, or, in half precision, that value rounded (float16 keeps 11 bits of it and ends
at 65504, bfloat16 keeps 8 bits and float32's range).
Not here: encoding (latent_writer.py), any tokenizer: it is a function and a fingerprint.
Shape legend: C channels, T' latent frames, h w latent locations. Frames are counted on an episode's
clock, as in clips.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from colaworld.data import windows
from colaworld.data.clips import ClipSet
from colaworld.data.errors import DataError
from colaworld.data.parquet_file import read_parquet
from colaworld.files import check_seal, check_sha256, read_json, verifies

log = logging.getLogger(__name__)
FORMAT = 1  # raised when the layout or the meaning of a field changes
KEY, INDEX = "key.json", "index.parquet"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
COLUMNS = ("episode", "first", "count", "shard", "row")  # of the index
_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.int16}  # numpy has no bf16


@dataclass(frozen=True)
class LatentKey:
    """What latents are of. Three parts, each compared by its hash, and shown where they differ."""

    data: Mapping[str, Any]  # source, episodes, files and sizes; which clips, in layout clip
    transform: Mapping[str, Any]  # crop, size, fps, stride
    tokenizer: str  # its fingerprint

    @classmethod
    def of(cls, clips: ClipSet, *, tokenizer: str, per_clip: bool, every: int = 1) -> LatentKey:
        """The key of latents of `clips`; `every`: only clips that start at multiples of it."""
        config, source = clips.config, clips.source
        about = source.describe()
        files, sizes = [], {}
        for e in source.episodes:
            place, size = source.identity(e.index)
            files.append((e.name, e.frames, e.fps, e.height, e.width, place))
            sizes[place] = size
        data: dict[str, Any] = {
            "source": source.kind,
            "camera": about.camera,  # the one in use, named or not
            "split": config.split,
            "holdout": config.holdout if config.split != "all" else None,
            "episodes": len(source.episodes),
            "frames": sum(e.frames for e in source.episodes),
            "bytes": sum(size or 0 for size in sizes.values()),
            "files": _hash([files, sizes]),
        }
        if about.reading is not None:
            data["reading"] = about.reading
        if per_clip:
            data["windows"] = {
                "frames_per_clip": config.frames_per_clip,
                "every": every,
                "scene_cut_threshold": config.scene_cut_threshold,
            }
        transform = {
            "crop": config.crop if isinstance(config.crop, str) else list(config.crop),
            "height": clips.height,
            "width": clips.width,
            "fps": config.fps,
            "stride": config.stride,
        }
        return cls(data, transform, tokenizer)

    def hashes(self) -> dict[str, str]:
        """One hash per part."""
        return {name: _hash(value) for name, value in asdict(self).items()}

    def differences(self, other: LatentKey) -> list[str]:
        """A line per part that differs, with both hashes and, where it is known, what differs."""
        lines = []
        mine, theirs = self.hashes(), other.hashes()
        for part in mine:
            if mine[part] == theirs[part]:
                continue
            a, b = getattr(self, part), getattr(other, part)
            if isinstance(a, Mapping) and isinstance(b, Mapping):
                names = [k for k in {**a, **b} if a.get(k) != b.get(k)]
                what = ", ".join(f"{k} {a.get(k)} -> {b.get(k)}" for k in names)
            else:
                what = f"{a} -> {b}"
            lines.append(f"{part} changed (hash {mine[part]} -> {theirs[part]}): {what}")
        return lines


class LatentCache:
    """Latents of the clips of a set, as `ClipLoader(latents=...)` wants them. Thread-safe."""

    def __init__(self, root: Path, clips: ClipSet, header: Mapping[str, Any]) -> None:
        """Use `open`."""
        self.root, self.clips = root, clips
        self.layout: str = header["layout"]  # "frame" or "clip"
        self.dtype = DTYPES[header["dtype"]]
        self.every: int = header["every"]
        self.shape: tuple[int, ...] = tuple(header["shape"])  # of an entry: [C, (T',) h, w]
        self._stored = np.dtype(_STORED[header["dtype"]])
        self._key, self._told = key_hash(header), False
        self._runs, self._sizes, hashed = read_index(root / INDEX, header)
        self._check_sizes()
        for number in range(0 if hashed else len(self._sizes)):
            self._open_shard(number, verify=False)
        self._order = self._runs[:, 0] << 32 | self._runs[:, 1]  # episode, first: sorted
        self._maps: dict[int, np.ndarray] = {}
        self._locks: dict[int, threading.Lock] = {}  # one a shard: to hash it takes a while

    @classmethod
    def open(cls, root: Path | str, clips: ClipSet, *, tokenizer: str) -> LatentCache:
        """The cache in `root`, if it is complete and of these clips and this tokenizer.

        Args:
            root: the folder it was written into.
            clips: the set that is trained on. Its split may be a part of what was written.
            tokenizer: fingerprint of the tokenizer whose latents are wanted.

        Raises:
            DataError: no cache, not complete, of something else (says which of data, transform and
                tokenizer changed, with both hashes), or a damaged shard (names the file).
        """
        root = Path(root)
        header = read_header(root)
        if header is None:
            raise DataError(f"{root}: no latent cache there (no {KEY}); encode the data set first")
        check_key(root, header, clips, tokenizer=tokenizer)
        if not (root / INDEX).is_file():
            done = len(list(root.glob("shard_*.safetensors")))
            raise DataError(
                f"{root}: the latent cache is not complete ({done} of {header['shards']} shards); "
                "encode again with the same settings: it goes on where it stopped"
            )
        cache = cls(root, clips, header)
        longest = header.get("frames_per_clip", 0)  # in layout frame
        ends = {p.episode: p.stop for p in clips.segments}  # segments come in order
        lost = [
            episode
            for episode in ends.keys() - set(cache._runs[:, 0].tolist())
            if ends[episode] < windows.span(longest, clips.stride(episode))
        ]
        if lost:
            raise DataError(
                f"{root}: was written for clips of {longest} frames and has no latents of {len(lost)} "
                f"episodes that are shorter; encode again with data.frames_per_clip "
                f"{clips.config.frames_per_clip}, into another folder"
            )
        return cache

    def __len__(self) -> int:
        """Entries: frames in layout frame, clips in layout clip."""
        return int(self._runs[:, 2].sum())

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"LatentCache({len(self)} {self.layout}s of {list(self.shape)} {kind}, {self.root})"

    @property
    def order(self) -> str | None:
        """What a loader's order depends on: None where every clip is here."""
        return None if self.every == 1 else f"every {self.every}"

    def has(self, episode: int, start: int) -> bool:
        """Whether the clip that starts there, on the episode's clock, is stored."""
        return self._places(episode, start) is not None

    def clip(self, episode: int, start: int) -> Tensor:
        """The latents [C, T', h, w] of a clip, as they were stored; a copy. KeyError if not there."""
        found = self._places(episode, start)
        if found is None:
            raise KeyError(f"{self.root}: no latents of episode {episode} from frame {start} on")
        shards, rows = found
        entries = np.empty((len(rows), *self.shape), self._stored)
        for shard in np.unique(shards).tolist():  # one, or two where a clip lies across shards
            there = shards == shard
            entries[there] = self._map(shard)[rows[there]]
        joined = entries[0] if self.layout == "clip" else entries.swapaxes(0, 1)
        made = torch.from_numpy(np.ascontiguousarray(joined))
        return made.view(torch.bfloat16) if self.dtype == torch.bfloat16 else made

    def _places(self, episode: int, start: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Shard and row of each entry that a clip needs, [n] and [n]; None where one is missing."""
        entries = 1 if self.layout == "clip" else self.clips.config.frames_per_clip
        firsts = start + self.clips.stride(episode) * np.arange(entries)
        at = np.searchsorted(self._order, (episode << 32) + firsts, "right") - 1
        if at[0] < 0:
            return None
        owner, begin, count, shard, row = self._runs[at].T
        offset, between = np.divmod(firsts - begin, self.every)
        if np.any((owner != episode) | (between != 0) | (offset >= count)):
            return None
        return shard, row + offset

    def _map(self, shard: int) -> np.ndarray:
        """The latents of a shard [n, ...], mapped, not read. Mapped once and kept."""
        found = self._maps.get(shard)
        if found is None:
            with self._locks.setdefault(shard, threading.Lock()):
                found = self._maps.get(shard)
                if found is None:
                    found = self._maps[shard] = self._open_shard(shard, verify=verifies())
        return found

    def _open_shard(self, shard: int, *, verify: bool) -> np.ndarray:
        path = self.root / shard_name(shard)
        try:
            header, begin, sums = check_shard(path, self._key, verify=verify)
            entry = header["latents"]
            shape, offset = tuple(entry["shape"]), begin + entry["data_offsets"][0]
            if shape[1:] != self.shape:
                raise ValueError(f"entries of {list(shape[1:])}, not {list(self.shape)}")
            self._check_runs(path, shard)
            made = np.memmap(path, self._stored, "r", offset=offset, shape=shape)
            if verify and not _is_finite(made):
                raise ValueError("it holds values that are not finite")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _damaged(path, str(error)) from None
        if not self._told and not (sums and verify):
            self._told = True
            why = "as asked" if sums else "since they are from before sums were recorded"
            log.warning("%s: latents are read without comparing sums, %s", self.root, why)
        return made

    def _check_runs(self, path: Path, shard: int) -> None:
        mine = self._runs[self._runs[:, 3] == shard]
        with safe_open(path, framework="np") as stored:
            if not np.array_equal(stored.get_tensor("runs"), mine[:, (0, 1, 2, 4)]):
                raise ValueError(f"{INDEX} tells of other frames than are in it")

    def _check_sizes(self) -> None:
        for number, size in enumerate(self._sizes):
            path = self.root / shard_name(number)
            found = _size(path)
            if found != size:
                raise _damaged(path, f"expected {size} bytes, found {found}")


def shard_name(number: int) -> str:
    return f"shard_{number:06d}.safetensors"


def key_hash(header: Mapping[str, Any]) -> str:
    """Stands in every shard: of which key.json it is."""
    return _hash(header)


def read_header(root: Path) -> dict[str, Any] | None:
    """key.json, or None where there is none. DataError if it is not that of a latent cache."""
    path = root / KEY
    if not path.exists():
        return None
    try:
        header = read_json(path)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this release reads {FORMAT}")
        key = LatentKey(**header["key"])
        per_frame = header["layout"] == "frame"
        counts = [header[name] for name in ("every", "shape", "entries_per_shard", "shards")]
        counts += [header["frames_per_clip"]] if per_frame else []
        check_seal(path, header)
        if not (isinstance(key.data, dict) and isinstance(key.transform, dict)):
            raise ValueError("key: expected what data and transform are")
        if header["layout"] not in ("frame", "clip") or header["dtype"] not in DTYPES:
            raise ValueError(f"layout {header['layout']!r}, dtype {header['dtype']!r}")
        if len(header["shape"]) != 4 - per_frame or (per_frame and header["every"] != 1):
            raise ValueError(f"shape {header['shape']}, every {header['every']} in that layout")
        for count in (*header["shape"], *counts):
            if count is not header["shape"] and (type(count) is not int or count < 1):
                raise ValueError(f"expected whole numbers above 0, got {counts}")
        return header
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the key of a latent cache: {error!r}") from None


def check_key(root: Path, header: Mapping[str, Any], clips: ClipSet, *, tokenizer: str) -> None:
    """DataError, saying what changed, if the cache is not of these clips and this tokenizer."""
    stored = LatentKey(**header["key"])
    per_clip = header["layout"] == "clip"
    wanted = LatentKey.of(clips, tokenizer=tokenizer, per_clip=per_clip, every=header["every"])
    if stored.data.get("split") == "all":  # holds every share
        data = {**wanted.data, "split": "all", "holdout": None}
        wanted = LatentKey(data, wanted.transform, tokenizer)
    changed = stored.differences(wanted)
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise DataError(
            f"{root}: these latents are of something else:\n{listed}\n"
            "undo the change, or encode again into another folder (or delete this one)"
        )


def read_index(path: Path, header: Mapping[str, Any]) -> tuple[np.ndarray, list[int], bool]:
    """Runs [m, 5] int64: episode, first, count, shard, row; the bytes of each shard; whether it holds
    a hash. DataError where it is not the index of shards of this key.json."""
    try:
        if not path.is_file():  # to open a pipe is to wait for ever
            raise ValueError("expected a file, found none")
        table = read_parquet(path, COLUMNS)
        runs = np.stack([table[name].to_numpy() for name in COLUMNS], axis=1)
        sizes = json.loads(table.schema.metadata[b"shard_bytes"])
        sums = table.schema.metadata.get(b"sha256")
        if sums is not None and sums.decode() != index_hash(runs, sizes, header):
            raise ValueError(f"its content, or {KEY}, does not match the recorded sha256")
        if runs.dtype != np.int64 or len(sizes) != header["shards"]:
            raise ValueError(
                f"{runs.dtype} runs of {len(sizes)} shards, expected {header['shards']}"
            )
        episode, first, count, shard, row = runs.T
        sound = (runs >= 0).all(1) & (count > 0) & (shard < len(sizes))
        sound &= (first < 1 << 32) & (row < header["entries_per_shard"] - count + 1)
        sound[1:] &= np.diff(episode << 32 | first) > 0
        if not sound.all():
            raise ValueError(f"line {int(np.argmin(sound))}: {runs[np.argmin(sound)].tolist()}")
        return runs, sizes, sums is not None
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        pa.ArrowException,
    ) as error:
        raise _damaged(path, str(error)) from None


def index_hash(runs: np.ndarray, sizes: list[int], header: Mapping[str, Any]) -> str:
    """Stands in the index: of all that is in it, and of which key.json it is."""
    about = json.dumps([sizes, key_hash(header)]).encode()
    return hashlib.sha256(about + np.ascontiguousarray(runs).tobytes()).hexdigest()


def check_shard(path: Path, key: str, *, verify: bool) -> tuple[dict[str, Any], int, str]:
    """The header of a shard, the bytes before its tensors, and their sha256 ("" in older ones).

    ValueError (or what reading raises) unless it is whole, of this key, and has that hash (`verify`).
    """
    if not path.is_file():
        raise ValueError("expected a file, found none")
    with safe_open(path, framework="np"):  # checks the length against the header
        pass
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    owner, _, sums = header.get("__metadata__", {}).get("key", "").partition(" ")
    if owner != key or not {"latents", "runs"} <= header.keys():
        raise ValueError(f"it is not a shard of this {KEY}")
    if sums and verify:
        check_sha256(path, sums, skip=8 + length)
    return header, 8 + length, sums


def _is_finite(latents: np.ndarray) -> bool:
    for part in (latents[i : i + 64] for i in range(0, len(latents), 64)):
        # bfloat16 comes as int16: its exponent is all ones.
        wrong = (part & 0x7F80) == 0x7F80 if part.dtype == np.int16 else ~np.isfinite(part)
        if wrong.any():
            return False
    return True


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path}: damaged: {why}; encode again with the same settings: only what is missing or "
        "damaged is done"
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
