"""The mask that FlexAttention takes of a block-causal attention, made once.

A mask lists the blocks of keys that each block of queries reads. Making one takes some fifty small ops.
In a graph that is traced they would run again in every call of every layer, so a graph has one op in
their place, which copies the finished tables.
Not here: the attention (`block_causal.py`, `attention_backends.py`).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._guards import active_fake_mode

if TYPE_CHECKING:  # its module imports torch._dynamo, as long again as torch itself
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # rows and columns of a block of the mask: FlexAttention's own
_TABLES = tuple(
    f"{full}{side}_{what}"
    for full in ("", "full_")
    for side in ("kv", "q")
    for what in ("num_blocks", "indices")
)


def block_mask(frames: int, all_frames: int, per_frame: int, device: str) -> BlockMask:
    """Which blocks of keys each block of queries reads, whole or in part; no mask of tokens is made.

    Frames of one token make it the plain causal mask.

    Args:
        frames: T of the queries, the last of `all_frames`.
        all_frames: P + T of the keys.
        per_frame: S.
        device: of the queries.
    """
    sizes = (frames, all_frames, per_frame)
    if torch.compiler.is_compiling():
        return _assembled(_copied(*sizes, torch.device(device)), *sizes)
    # What any later call can use: not tensors of inference mode, which no gradient takes; fake ones,
    # which have no values, are not kept.
    with torch.inference_mode(False):
        return (_made if active_fake_mode() else _kept)(*sizes, device)


def _made(frames: int, all_frames: int, per_frame: int, device: str) -> BlockMask:
    sizes = (frames, all_frames, per_frame)
    return _assembled(_packed(*sizes, device), *sizes)


_kept = functools.lru_cache(maxsize=32)(_made)


def _assembled(packed: Tensor, frames: int, all_frames: int, per_frame: int) -> BlockMask:
    from torch.nn.attention.flex_attention import BlockMask

    queries, keys = frames * per_frame, all_frames * per_frame
    before, shapes = keys - queries, _shapes(queries, keys)
    parts = packed.split([_room(shape) for shape in shapes])
    tables = [x[: math.prod(shape)].view(shape) for x, shape in zip(parts, shapes, strict=True)]

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q + before) // per_frame >= k // per_frame

    return BlockMask(
        (queries, keys),
        **dict(zip(_TABLES, tables, strict=True)),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=seen,
    )


def _shapes(queries: int, keys: int) -> list[tuple[int, ...]]:
    """Of the tables, in the order of their names."""
    rows, columns = -(-queries // BLOCK), -(-keys // BLOCK)
    one = [(1, 1, rows), (1, 1, rows, columns), (1, 1, columns), (1, 1, columns, rows)]
    return 2 * one


def _room(shape: tuple[int, ...]) -> int:
    """Numbers that a table takes: the next one begins at a multiple of 16 bytes."""
    return -(-math.prod(shape) // 4) * 4


def _packed(frames: int, all_frames: int, per_frame: int, device: str) -> Tensor:
    """The tables one after another, int32."""
    queries, keys = frames * per_frame, all_frames * per_frame

    def first_and_last(length: int, offset: int) -> tuple[Tensor, Tensor]:
        """Frames of the first and the last token of each block."""
        starts = torch.arange(0, length, BLOCK)
        ends = (starts + BLOCK).clamp(max=length) - 1
        return (starts + offset) // per_frame, (ends + offset) // per_frame

    q_first, q_last = first_and_last(queries, keys - queries)
    k_first, k_last = first_and_last(keys, 0)
    read = k_first[None] <= q_last[:, None]
    whole = k_last[None] <= q_first[:, None]
    if keys % BLOCK:
        whole[:, -1] = False  # what is beyond the last key is masked token by token
    tables = []
    for blocks in (read & ~whole, whole):
        for way in (blocks, blocks.T):
            # How many, then their columns in order, ahead of those that are not read.
            tables += [way.sum(1), way.int().argsort(dim=1, descending=True, stable=True)]
    tables = [F.pad(table.flatten(), (0, -table.numel() % 4)) for table in tables]
    return torch.cat(tables).to(device, torch.int32)


_kept_packed = functools.lru_cache(maxsize=32)(_packed)


@torch.library.custom_op(
    "colaworld::block_mask",
    mutates_args=(),
    schema="(SymInt frames, SymInt all_frames, SymInt per_frame, Device device) -> Tensor",
)
def _copied(frames, all_frames, per_frame, device):
    with torch.inference_mode(False):
        packed = _kept_packed(frames, all_frames, per_frame, str(device))
    return packed.clone()


@_copied.register_fake
def _(frames, all_frames, per_frame, device):
    shapes = _shapes(frames * per_frame, all_frames * per_frame)
    return torch.empty(sum(map(_room, shapes)), dtype=torch.int32, device=device)
