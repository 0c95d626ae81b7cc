"""Tensors that lie in parts on several processes (DTensor): their parts as files, and back.

    model/rank_0.safetensors  model/rank_1.safetensors      each tensor's part, and where it belongs

The files are those of torch.distributed.checkpoint's safetensors storage, which reads them, too. They
are written and read here because nothing of this is collective: DCP exchanges plans at each save and
load, in which processes wait for ever for one that has failed, and serialises a shard in memory first.
Not here: when, and into which folder (checkpoint.py), and what is sharded (sharding.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from colaworld.training.sharding import is_sharded

_PLACES, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"  # as DCP calls them in a file's header
_SHAPE = "shape"  # of the whole, which DCP concludes from the parts


class Region(NamedTuple):
    """A box of a tensor: where it begins and how large it is, per dimension."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    def slices(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """The region in a box that begins at `origin`."""
        return tuple(
            slice(a - o, a - o + n) for a, n, o in zip(self.start, self.size, origin, strict=True)
        )

    def common(self, other: Region) -> Region | None:
        """What both cover, or None."""
        start = tuple(map(max, self.start, other.start))
        ends = [
            min(a + n, b + m)
            for a, n, b, m in zip(self.start, self.size, other.start, other.size, strict=True)
        ]
        size = tuple(end - a for a, end in zip(start, ends, strict=True))
        return Region(start, size) if all(n > 0 for n in size) else None


def region(value: Any) -> Region:
    """What of `value` this process holds."""
    if not is_sharded(value):
        return Region((0,) * value.ndim, tuple(value.shape))
    (chunk,) = value.__create_chunk_list__()
    return Region(tuple(chunk.offsets), tuple(chunk.sizes))


def parts(tensors: Mapping[str, Tensor], *, main: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What this process writes of `tensors`, and the entries of its file's header.

    Each part of a sharded tensor is written by one process; what every process has, by the main one.
    """
    own: dict[str, Tensor] = {}
    places = {}
    for name, value in tensors.items():
        if is_sharded(value):
            wrote = _writes(value)
            local = value.to_local()  # type: ignore[attr-defined]
        else:
            wrote, local = main, value
        if wrote and (local.numel() or not value.numel()):
            own[name] = local
            places[name] = {_OFFSETS: list(region(value).start), _SHAPE: list(value.shape)}
    return own, {_PLACES: json.dumps(places), "DCP_VERSION": "1.0", "format": "pt"}


def _writes(value: Any) -> bool:
    """Whether this process is the first of those that hold the same part."""
    where = value.device_mesh.get_coordinate()
    return where is not None and all(
        at == 0
        for at, placement in zip(where, value.placements, strict=True)
        if placement.is_replicate()
    )


def read(files: Sequence[Path], like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """All tensors of `files`: this process's part where `like(name)` is sharded and of that shape,
    else whole ones on the CPU.

    Raises:
        ValueError: a part is missing.
        OSError, SafetensorError: a file cannot be read.
    """
    with contextlib.ExitStack() as stack:
        shapes: dict[str, tuple[int, ...]] = {}
        pieces: dict[str, list[tuple[Any, Region]]] = {}
        for path in files:
            file = stack.enter_context(safe_open(path, "pt"))
            places = json.loads((file.metadata() or {}).get(_PLACES, "{}"))
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                size = tuple(file.get_slice(name).get_shape())
                place = places[name] if places else {_OFFSETS: (0,) * len(size), _SHAPE: size}
                shapes[name] = tuple(place[_SHAPE])
                held = Region(tuple(place[_OFFSETS]), size)
                pieces.setdefault(name, []).append((file, held))
        return {name: _joined(name, shapes[name], pieces[name], like(name)) for name in pieces}


def _joined(
    name: str, shape: tuple[int, ...], pieces: list[tuple[Any, Region]], like: Tensor | None
) -> Tensor:
    regions = sorted(held for _, held in pieces)
    if sum(_numel(r.size) for r in regions) != _numel(shape) or any(
        a.common(b) for a, b in pairwise(regions)
    ):
        raise ValueError(f"{name} is not there in full")
    sharded = is_sharded(like) and tuple(like.shape) == shape  # type: ignore[union-attr]
    if len(pieces) == 1 and not sharded:
        return pieces[0][0].get_tensor(name)
    wanted = region(like) if sharded else Region((0,) * len(shape), shape)
    target = torch.empty(wanted.size, dtype=pieces[0][0].get_slice(name)[:0].dtype)
    for file, held in pieces:
        both = wanted.common(held)
        if both is not None:
            found = file.get_slice(name)[both.slices(held.start)]
            target[both.slices(wanted.start)] = found
    return _placed(target, like) if sharded else target


def own_part(value: Tensor, like: Tensor) -> Tensor:
    """`value`, whole, as `like` is sharded; as it is where `like` is not."""
    if not is_sharded(like) or is_sharded(value) or value.shape != like.shape:
        return value
    return _placed(value[region(like).slices((0,) * value.ndim)], like)


def _placed(local: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(like.device).contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _numel(size: Sequence[int]) -> int:
    return torch.Size(size).numel()
