"""What a launch did: instructions of warps, and what they moved between the cores and memory.

A sector is 32 bytes, the least that a GPU moves; the bytes that were asked for against those of the
sectors that they lie in say how much of the traffic was of use. Not here: time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ptx.formats import Array

SECTOR = 32


@dataclass
class Counts:
    blocks: int = 0
    instructions: Counter[str] = field(default_factory=Counter)  # opcode -> executions by a warp
    requests: Counter[str] = field(default_factory=Counter)  # "ld", "st" -> warps that asked
    bytes: Counter[str] = field(default_factory=Counter)  # asked for
    sectors: Counter[str] = field(default_factory=Counter)  # that they lie in, warp by warp

    def traffic(self, kind: str, addresses: Array, size: int, threads: Array) -> None:
        warps = threads // 32
        first = (warps << 44) | (addresses // SECTOR)
        sectors = first
        if size > SECTOR:
            sectors = (first[:, None] + np.arange(-(-size // SECTOR))).ravel()
        self.requests[kind] += len(np.unique(warps))
        self.bytes[kind] += size * len(addresses)
        self.sectors[kind] += len(np.unique(sectors))

    def used(self, kind: str) -> float:
        """Bytes asked for of those moved."""
        moved = SECTOR * self.sectors[kind]
        return self.bytes[kind] / moved if moved else 1.0
