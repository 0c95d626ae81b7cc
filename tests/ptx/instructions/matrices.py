"""8 x 8 tiles of 16-bit numbers between registers and shared memory: ldmatrix, stmatrix, movmatrix.

Lane l holds row l / 4, columns 2 (l % 4) and the next, in one word; lanes 8 i to 8 i + 7 give the
addresses of the rows of tile i.
"""

from __future__ import annotations

import numpy as np

from ptx.instructions.memory import load, store
from ptx.instructions.warp import lanes
from ptx.program import Decode, Run, instruction


def tiles(words) -> np.ndarray:
    """[warps, 8, 8] of a word in each lane, [warps, 32]."""
    return np.ascontiguousarray(words).view(np.uint16).reshape(-1, 8, 8)


def words(made) -> np.ndarray:
    """The inverse: [threads]."""
    return np.ascontiguousarray(made).reshape(-1, 32, 2).view(np.uint32).reshape(-1)


@instruction("movmatrix")
def movmatrix(decode: Decode) -> Run:
    if not decode.ins.has("trans"):
        raise decode.unknown()
    put, x = decode.target(0), decode.source(1, "b32")
    return lambda m, mask: put(m, words(tiles(lanes(x(m), m)).transpose(0, 2, 1)), mask)


def _count(decode: Decode) -> int:
    ins = decode.ins
    if not ins.has("m8n8") or not ins.has("b16"):
        raise decode.unknown()
    return next(n for n in (1, 2, 4) if ins.has(f"x{n}"))


def _rows(m, addresses, count: int, mask):
    """The lanes that give addresses, and those."""
    gives = m.lane < 8 * count
    threads = np.flatnonzero(gives if mask is None else gives & mask)
    return threads, np.broadcast_to(addresses, m.total)[threads]


@instruction("ldmatrix")
def ldmatrix(decode: Decode) -> Run:
    count, trans = _count(decode), decode.ins.has("trans")
    puts, address = decode.targets(0), decode.address(1)

    def run(m, mask):
        threads, addresses = _rows(m, address(m), count, mask)
        found = load(m, "shared", addresses, 16, threads)
        rows = np.zeros((m.total, 8), np.uint16)
        rows[threads] = found.view(np.uint16).reshape(-1, 8)
        rows = rows.reshape(-1, 32, 8)
        for i, put in enumerate(puts):
            tile = rows[:, 8 * i : 8 * i + 8]
            put(m, words(tile.transpose(0, 2, 1) if trans else tile), mask)

    return run


@instruction("stmatrix")
def stmatrix(decode: Decode) -> Run:
    count, trans = _count(decode), decode.ins.has("trans")
    sources, address = decode.sources(1, "b32"), decode.address(0)

    def run(m, mask):
        threads, addresses = _rows(m, address(m), count, mask)
        rows = np.zeros((m.warps, 32, 8), np.uint16)
        for i, x in enumerate(sources):
            tile = tiles(lanes(x(m), m))
            rows[:, 8 * i : 8 * i + 8] = tile.transpose(0, 2, 1) if trans else tile
        data = rows.reshape(-1, 8)[threads].view("V16")[:, 0]
        store(m, "shared", addresses, data, threads)

    return run
