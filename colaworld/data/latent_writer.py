"""Encode a data set once: latents of every frame or clip into the folder latent_cache.py reads.

What is stored is cut into shards of equal length by position alone, so ranks share them without
talking, a killed run goes on at the first shard that is missing (also with another number of
ranks), and two runs over the same data write the same bytes. A shard is written beside its name,
synced and renamed: under its name it is whole, with the hash of its tensors. A shard whose hash is
another is encoded again. Whoever finds all shards done writes the index.
Not here: reading, or any tokenizer: `encode` is a function, the tokenizer a fingerprint.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from colaworld.data import latent_cache
from colaworld.data.clips import ClipSet
from colaworld.data.errors import DataError
from colaworld.data.latent_cache import COLUMNS, INDEX, KEY, LatentKey, key_hash, shard_name
from colaworld.data.windows import Segment
from colaworld.files import FolderLock, seal, sha256_of, share, sync, verifies, write_refused

log = logging.getLogger(__name__)
_NO_SUM = "0" * 64  # in a shard's header until its tensors are hashed
Encode = Callable[[Tensor], Tensor]  # float [n, T, 3, H, W] in [0, 1] -> latents [n, C, T', h, w]
Progress = Callable[[int, int], None]  # entries done, entries in all, of this rank


@dataclass(frozen=True)
class Written:
    """What a call of `write_latents` did."""

    shards: int  # written by this call
    entries: int  # frames or clips in them
    left_out: int  # those of broken segments, or clips over a scene cut
    complete: bool  # whether the cache can be opened now; else other ranks are still at work


def write_latents(
    root: Path | str,
    clips: ClipSet,
    encode: Encode,
    *,
    tokenizer: str,
    temporal_stride: int,
    dtype: str = "float32",
    every: int = 1,
    batch_size: int = 8,
    shard_mb: float = 256.0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Written:
    """Write what is missing of the latents of `clips` into the folder `root`.

    Args:
        root: the cache; it may exist, whole or in part, of the same key and settings.
        clips: the set. With `split="all"` the cache serves training and evaluation. Whatever
            `data.labels` leaves out is written, too.
        encode: frames on `device` to latents; called without gradient.
        tokenizer: its fingerprint.
        temporal_stride: of the tokenizer. 1: each frame is stored once; else each clip.
        dtype: float32, float16 or bfloat16, in which latents are stored.
        every: only clips that start at multiples of this many frames (not for stride 1). Storing
            all takes frames_per_clip times the work of encoding the video once.
        batch_size: frames (stride 1) or clips given to `encode` at once.
        shard_mb: megabytes of a shard; held in memory while it is made.
        rank, world_size: which share of the shards is written here.

    Raises:
        ValueError: an argument that cannot be used.
        DataError: the folder holds latents of something else, another call works in it, the disk is
            full, or latents are not finite in `dtype`.
    """
    if dtype not in latent_cache.DTYPES:
        known = ", ".join(latent_cache.DTYPES)
        raise ValueError(f"write_latents: dtype: expected one of {known}, got {dtype!r}")
    if (
        not 0 <= rank < world_size
        or min(batch_size, every, temporal_stride) < 1
        or not (0 < shard_mb < float("inf"))
    ):
        raise ValueError(
            "write_latents: expected 0 <= rank < world_size, batch_size, every and temporal_stride "
            f">= 1 and shard_mb > 0, got rank={rank}, world_size={world_size}, batch_size="
            f"{batch_size}, every={every}, temporal_stride={temporal_stride}, shard_mb={shard_mb}"
        )
    root, per_clip = Path(root), temporal_stride > 1
    if every > 1 and not per_clip:
        raise ValueError(
            "write_latents: every: a tokenizer without temporal stride has one latent per frame, "
            f"and clips of any start share them; expected 1, got {every}"
        )
    # Relative actions leave first frames out, labels most episodes; the key does not tell them apart.
    if clips.config.actions == "relative" or clips.config.labels is not None:
        clips = ClipSet(replace(clips.config, actions="as_recorded", labels=None))
    work = _Work(root, clips, encode, per_clip, every, batch_size, torch.device(device), rank)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(root, shared=world_size > 1)
    except BlockingIOError:
        raise DataError(
            f"{root}: another process encodes into this folder; wait for it, or use another folder"
        ) from None
    except OSError as error:
        why, cause = write_refused(root, error)
        raise DataError(why) from cause
    try:
        for left in root.glob(".writing*") if world_size == 1 else []:
            left.unlink()  # by a process that was killed
        return work.write(work.header(tokenizer, dtype, shard_mb), world_size, progress)
    finally:
        lock.close()


@dataclass(frozen=True)
class _Work:
    root: Path
    clips: ClipSet
    encode: Encode
    per_clip: bool
    every: int
    batch_size: int
    device: torch.device
    rank: int

    def header(self, tokenizer: str, dtype: str, shard_mb: float) -> dict[str, Any]:
        """key.json: the one that is there, checked, or a new one, written."""
        settings = {
            "layout": "clip" if self.per_clip else "frame",
            "dtype": dtype,
            "every": self.every,
        }
        shards = any(self.root.glob("shard_*.safetensors"))  # asked first: another rank may begin
        if not self.per_clip:  # which episodes are long enough to be there
            settings["frames_per_clip"] = self.clips.config.frames_per_clip
        found = latent_cache.read_header(self.root)
        if found is None and shards:
            raise DataError(
                f"{self.root}: holds shards but no {KEY} that says what they are of; delete them, or "
                "encode into another folder"
            )
        if found is None:
            entry = self._try_one(latent_cache.DTYPES[dtype])
            per_shard = max(1, int(shard_mb * 1e6 / (entry.numel() * entry.element_size())))
            total = sum(len(entries) for _, entries in self._entries())
            key = LatentKey.of(
                self.clips, tokenizer=tokenizer, per_clip=self.per_clip, every=self.every
            )
            header = {
                "format": latent_cache.FORMAT,
                **settings,
                "shape": list(entry.shape),
                "entries_per_shard": per_shard,
                "shards": -(-total // per_shard),
                "key": asdict(key),
                "hashes": key.hashes(),
            }
            text = json.dumps(seal(header), indent=1)

            def fill(path: Path) -> None:
                path.write_text(text)

            (self.root / INDEX).unlink(missing_ok=True)  # of shards that another key had
            _appear(self.root / KEY, fill, len(text))
            found = latent_cache.read_header(self.root)
            assert found is not None
        for name, value in settings.items():
            if found[name] != value:
                raise DataError(
                    f"{self.root / KEY}: the latents there are stored with {name} "
                    f"{found[name]!r}, {value!r} was asked; use another folder, or the same {name}"
                )
        latent_cache.check_key(self.root, found, self.clips, tokenizer=tokenizer)
        split = found["key"]["data"]["split"]
        if split != self.clips.config.split:  # enough to read it, not to go on with it
            raise DataError(
                f"{self.root}: is being encoded with data.split {split!r}, "
                f"{self.clips.config.split!r} was asked; ask for the same, or use another folder"
            )
        return found

    def write(self, header: dict[str, Any], world_size: int, progress: Progress | None) -> Written:
        total, rank = header["shards"], self.rank
        mine = range(total * rank // world_size, total * (rank + 1) // world_size)
        parts = self._shards(header["entries_per_shard"])
        if len(parts) != total:
            raise DataError(
                f"{self.root / KEY}: damaged: {total} shards of {header['entries_per_shard']} "
                f"entries, but the data set fills {len(parts)}; delete it and encode again"
            )
        sizes = {k: sum(len(entries) for _, entries in parts[k]) for k in mine}
        done = shards = entries = left_out = 0
        for number in mine:
            path = self.root / shard_name(number)
            why = _harm(path, header, verify=verifies()) or _misplaced(path, parts[number])
            if why is not None:
                if path.exists():
                    log.warning("%s is damaged, and encoded again: %s", path, why)
                (self.root / INDEX).unlink(missing_ok=True)  # it will not be that of this shard
                made = self._write_shard(path, parts[number], header)
                shards, entries = shards + 1, entries + made
                left_out += sizes[number] - made
            done += sizes[number]
            if progress is not None:
                progress(done, sum(sizes.values()))
        complete = self._has_index(header) or self._write_index(total, header)
        return Written(shards, entries, left_out, complete)

    def _write_shard(
        self, path: Path, parts: list[tuple[Segment, range]], header: dict[str, Any]
    ) -> int:
        """Encode and store one shard. Returns its entries."""
        dtype, shape = latent_cache.DTYPES[header["dtype"]], tuple(header["shape"])
        latents, runs = [], _Runs(self.every)
        for names, frames in self._batches(parts):
            made = self._encoded(frames, dtype, names)
            if tuple(made.shape[1:]) != shape:
                raise DataError(
                    f"{self.root}: latents of {list(shape)} each are stored there, the tokenizer "
                    f"now gives {list(made.shape[1:])}"
                )
            latents.append(made)
            for episode, first in names:
                runs.add(episode, first)
        stored = torch.cat(latents) if latents else torch.empty((0, *shape), dtype=dtype)
        tensors = {"latents": stored, "runs": torch.tensor(runs.rows).reshape(-1, 4).long()}
        # One entry: safetensors writes several in an order that differs from run to run.
        about = {"key": f"{key_hash(header)} {_NO_SUM}"}

        def fill(temporary: Path) -> None:
            save_file(tensors, temporary, metadata=about)
            with temporary.open("r+b") as file:
                begin = 8 + int.from_bytes(file.read(8), "little")
                place = 8 + file.read(begin - 8).index(_NO_SUM.encode())
                file.seek(place)
                file.write(sha256_of(temporary, skip=begin).encode())

        _appear(path, fill, stored.nbytes)
        return len(stored)

    def _encoded(
        self, frames: np.ndarray, dtype: torch.dtype, names: list[tuple[int, int]]
    ) -> Tensor:
        """uint8 [n, T, 3, H, W] -> entries [n, C, T', h, w] or, per frame, [n, C, h, w]."""
        with torch.no_grad():
            x = torch.from_numpy(frames).to(self.device).float().div_(255)
            z = self.encode(x)
        if z.ndim != 5 or z.shape[0] != len(frames) or not (self.per_clip or z.shape[2] == 1):
            wanted = "T'" if self.per_clip else "1"
            raise ValueError(
                f"write_latents: encode: expected latents [{len(frames)}, C, {wanted}, h, w] of "
                f"frames {list(frames.shape)}, got {list(z.shape)}"
            )
        z = (z if self.per_clip else z[:, :, 0]).to(dtype).cpu().contiguous()
        bad = ~torch.isfinite(z.float()).flatten(1).all(1)
        if bad.any():
            episode, first = names[int(bad.nonzero()[0])]
            raise DataError(
                f"{self.root}: latents of {self.clips.source.episodes[episode].name} from frame "
                f"{first} on are not finite as {dtype}; float16 ends at 65504: use bfloat16 or "
                "float32, or check the tokenizer"
            )
        return z

    def _try_one(self, dtype: torch.dtype) -> Tensor:
        """The first entry, encoded: what shape entries have."""
        for names, frames in self._batches(list(self._entries())):
            return self._encoded(frames[:1], dtype, names)[0]
        raise DataError(f"{self.clips.config.path}: there is no clip to encode")

    def _entries(self) -> Iterator[tuple[Segment, range]]:
        """What each segment is to store: its own frames, or the starts of its clips."""
        last = {p.episode: p for p in self.clips.segments}  # segments come in order
        for segment in self.clips.segments:
            stop = segment.first + segment.starts  # what follows belongs to the next segment
            if self.per_clip:
                yield segment, range(-(-segment.first // self.every) * self.every, stop, self.every)
            else:
                yield (
                    segment,
                    range(
                        segment.first, segment.stop if segment is last[segment.episode] else stop
                    ),
                )

    def _shards(self, per_shard: int) -> list[list[tuple[Segment, range]]]:
        """All entries in order, `per_shard` in each shard but the last."""
        shards: list[list[tuple[Segment, range]]] = [[]]
        room = per_shard
        for segment, entries in self._entries():
            while entries:
                if not room:
                    shards.append([])
                    room = per_shard
                part, entries = entries[:room], entries[room:]
                shards[-1].append((segment, part))
                room -= len(part)
        return shards

    def _batches(
        self, parts: list[tuple[Segment, range]]
    ) -> Iterator[tuple[list[tuple[int, int]], np.ndarray]]:
        """(episode, first) of each entry, and their frames [n, T, 3, H, W]; T = 1 per frame."""
        length = self.clips.config.frames_per_clip if self.per_clip else 1
        frames = np.empty(
            (self.batch_size, length, 3, self.clips.height, self.clips.width), np.uint8
        )
        names: list[tuple[int, int]] = []
        for segment, decoded, entries in self._decoded(parts):
            for first in entries:
                if self.per_clip:
                    if not self.clips.clip(decoded, segment, first, frames[len(names)]):
                        continue
                elif decoded.usable:
                    frames[len(names), 0] = decoded.frames[first - segment.first]
                else:
                    continue
                names.append((segment.episode, first))
                if len(names) == self.batch_size:
                    yield names, frames
                    frames, names = np.empty_like(frames), []
        if names:
            yield names, frames[: len(names)]

    def _decoded(self, parts: list[tuple[Segment, range]]) -> Iterator[tuple[Segment, Any, range]]:
        """Each part with its frames; the next segment is decoded while this one is encoded."""
        if self.clips.config.workers == 0:
            for segment, entries in parts:
                yield segment, self.clips.decoded(segment), entries
            return
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
            coming = pool.submit(self.clips.decoded, parts[0][0]) if parts else None
            for i, (segment, entries) in enumerate(parts):
                assert coming is not None
                decoded = coming.result()
                if i + 1 < len(parts):
                    coming = pool.submit(self.clips.decoded, parts[i + 1][0])
                yield segment, decoded, entries

    def _write_index(self, shards: int, header: dict[str, Any]) -> bool:
        """The index, if all shards are there. Two ranks may both write it: it is the same."""
        paths = [self.root / shard_name(number) for number in range(shards)]
        if any(_harm(path, header, verify=False) for path in paths):
            return False
        rows = []
        for number, path in enumerate(paths):
            with safe_open(path, framework="np") as stored:
                runs = stored.get_tensor("runs")
            episode, first, count, row = runs.T
            rows.append(np.stack([episode, first, count, np.full_like(row, number), row], axis=1))
        joined = np.concatenate(rows)
        joined = joined[np.lexsort((joined[:, 1], joined[:, 0]))]
        sizes = [path.stat().st_size for path in paths]
        sums = latent_cache.index_hash(joined, sizes, header)
        table = pa.table({name: joined[:, i] for i, name in enumerate(COLUMNS)})
        table = table.replace_schema_metadata({"shard_bytes": json.dumps(sizes), "sha256": sums})

        def fill(path: Path) -> None:
            pq.write_table(table, path)

        _appear(self.root / INDEX, fill, table.nbytes)
        return True

    def _has_index(self, header: dict[str, Any]) -> bool:
        """Whether the index is there and whole; one of before hashes is written again, with its own."""
        try:
            return latent_cache.read_index(self.root / INDEX, header)[2]
        except DataError as error:
            if (self.root / INDEX).exists():
                log.warning("%s", error)
            return False


class _Runs:
    """Entries that follow each other, as rows (episode, first, count, row of the first)."""

    def __init__(self, every: int) -> None:
        self.every, self.entries = every, 0
        self.rows: list[list[int]] = []

    def add(self, episode: int, first: int) -> None:
        last = self.rows[-1] if self.rows else None
        if last and last[0] == episode and first == last[1] + last[2] * self.every:
            last[2] += 1
        else:
            self.rows.append([episode, first, 1, self.entries])
        self.entries += 1


def _appear(path: Path, fill: Callable[[Path], None], need: int) -> None:
    """Let `fill(temporary)` write a file, then make it appear at `path`, whole, in one rename.

    What a killed process leaves is removed by the next call that has the folder to itself.
    """
    temporary = path.with_name(f".writing{os.getpid()}_{path.name}")  # ranks write the same names
    try:
        fill(temporary)
        share(temporary)  # safetensors makes its files private
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        why, cause = write_refused(path, error, need)
        raise DataError(
            f"{why}, and run the same again. What was written before is whole"
        ) from cause
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _misplaced(path: Path, parts: list[tuple[Segment, range]]) -> str | None:
    """Why a whole shard is not the one of these entries, or None."""
    with safe_open(path, framework="np") as stored:
        runs = stored.get_tensor("runs").tolist()
    inside = all(
        any(segment.episode == episode and first in entries for segment, entries in parts)
        for episode, first, _, _ in runs
    )
    return None if inside else "it holds the latents of other frames"


def _harm(path: Path, header: dict[str, Any], *, verify: bool) -> str | None:
    """Why a file is not a whole shard of this key, or None."""
    try:
        latent_cache.check_shard(path, key_hash(header), verify=verify)
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        return str(error)
    return None
