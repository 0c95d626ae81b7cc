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
    requests: Counter[str] = field(default_factory=Counter)  # "ld", "st": warps that asked
    bytes: Counter[str] = field(default_factory=Counter)  # asked for, by several lanes once
    sectors: Counter[str] = field(default_factory=Counter)  # that they lie in, warp by warp

    def traffic(self, kind: str, addresses: Array, size: int, threads: Array) -> None:
        warps = threads // 32
        first = (warps << 44) | (addresses // SECTOR)
        sectors = first
        if size > SECTOR:
            sectors = (first[:, None] + np.arange(-(-size // SECTOR))).ravel()
        self.requests[kind] += len(np.unique(warps))
        self.bytes[kind] += size * len(np.unique((warps << 44) | addresses))
        self.sectors[kind] += len(np.unique(sectors))

    def add(self, other: Counts) -> None:
        self.blocks += other.blocks
        for name in ("instructions", "requests", "bytes", "sectors"):
            getattr(self, name).update(getattr(other, name))

    def executed(self, name: str = "") -> int:
        """Executions by a warp of the instructions with this name ("mma"), or of all."""
        return sum(
            n for opcode, n in self.instructions.items() if name in ("", opcode.split(".")[0])
        )

    def used(self, kind: str) -> float:
        """Bytes asked for of those moved."""
        moved = SECTOR * self.sectors[kind]
        return self.bytes[kind] / moved if moved else 1.0
