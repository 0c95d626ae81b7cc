"""Predictions from compiled code, without a GPU: blocks on a processor, bytes under way, two floors of a time.

What no formula here knows: how long an access takes beyond the one latency that is stated, what L1 and
L2 hold, in which order warps are chosen, bank conflicts, tensor cores that are busy longer than it
takes to start them, which way a branch goes (both ways are counted). So a floor is no time, and a
kernel whose floor is lower is not proved faster. Not here: reading the code (`sass.py`), the table
(`resources.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

Row = dict[str, Any]  # of the resource table: what `compiled.py` reads of one kernel

# The GPU that times are predicted for, an H200: what of its 4.8e12 B/s a copy is expected to reach,
# how long an access to its memory takes (both as in `kernels/README.md`: expectations), multiprocessors,
# and a clock a little below the 1.98e9 that it may reach.
ARCH = 90
COPY = 4.3e12
LATENCY = 0.7e-6
PROCESSORS = 132
CLOCK = 1.9e9

LANES = 32
SCHEDULERS = 4  # of a multiprocessor, each starts one instruction of one warp a cycle
REGISTERS = 1 << 16  # of a multiprocessor
SYSTEM_SHARED = 1 << 10  # bytes of each block that belong to the system


@dataclass(frozen=True)
class Processor:
    """A multiprocessor: CUDA C++ Programming Guide, technical specifications per compute capability."""

    warps: int
    blocks: int
    shared: int  # bytes
    block_shared: int  # bytes that one block may ask for


PROCESSOR = {
    80: Processor(64, 32, 164 << 10, 163 << 10),
    89: Processor(48, 24, 100 << 10, 99 << 10),
    90: Processor(64, 32, 228 << 10, 227 << 10),
    100: Processor(64, 32, 228 << 10, 227 << 10),
}


def resident(arch: int, threads: int, registers: int, shared: int) -> int:
    """Blocks on a multiprocessor at a time; 0: none fits.

    The formula of NVIDIA's occupancy calculator (`cuda_occupancy.h` of the toolkit): a warp takes
    registers in units of 256, warps come in fours (one for each scheduler), a block takes shared memory
    in units of 128 bytes with 1 kB of the system's. `shared`: what the block asks for.
    """
    limits = PROCESSOR[arch]
    warps = ceil(threads / LANES)
    of_warp = ceil(registers * LANES / 256) * 256
    fours = REGISTERS // of_warp // SCHEDULERS * SCHEDULERS
    of_block = ceil((shared + SYSTEM_SHARED) / 128) * 128
    return min(limits.blocks, limits.warps // warps, fours // warps, limits.shared // of_block)


def blocks_of(row: Row) -> int:
    """Blocks of a row's kernel on a multiprocessor."""
    return resident(row["arch"], row["threads"], row["registers"], row["shared"])


@dataclass(frozen=True)
class Work:
    """What one launch has to do at the size that is shown."""

    read: int  # bytes from global memory, each once
    written: int  # bytes
    passes: int = 0  # over the main loop, of all blocks together
    blocks: int | None = None  # None: as many as the GPU holds at a time
    inner: tuple[
        int, ...
    ] = ()  # passes over a loop in the main one for each pass of that, and so on
    arithmetic: int = 1  # the same, over a loop without accesses to global memory, at any depth
    # Bytes in a row that one load asks for, piece by piece, and from one row of them to the next.
    pieces: tuple[int, ...] = ()
    step: int = 0

    @property
    def bytes_time(self) -> float:
        """Seconds that its bytes take at the speed of a copy."""
        return (self.read + self.written) / COPY

    @property
    def sectors(self) -> float | None:
        """Bytes used of the 32 of a sector; None where nothing is known of its loads."""
        return sector_bytes(self.pieces, self.step) if self.pieces else None


def sector_bytes(pieces: Sequence[int], step: int) -> float:
    """Bytes used of each 32-byte sector that is moved, where rows begin `step` bytes after each other.

    A load moves whole sectors (CUDA C++ Best Practices Guide, coalesced access): a piece that begins
    within a sector, or ends within one, moves it all, and so does the next piece again, being another
    instruction. The mean over all places in a sector that a row can begin at.
    """
    starts = [step * n % 32 for n in range(32)]
    moved = 0
    for start in starts:
        for piece in pieces:
            moved += (start % 32 + piece + 31) // 32
            start += piece
    return len(starts) * sum(pieces) / moved


def _times(row: Row, work: Work) -> list[float]:
    """How often each line of `depths` runs, all blocks together."""
    blocks = work.blocks or blocks_of(row) * PROCESSORS
    times = [blocks, work.passes]
    for more in [*work.inner, *[1] * len(row["depths"])]:
        times.append(times[-1] * more)
    return times[: len(row["depths"])]


def issue_time(row: Row, work: Work) -> float:
    """Seconds to start the instructions that run, one a cycle on each scheduler.

    Four schedulers of a multiprocessor start at most one instruction of a warp a cycle each (CUDA C++
    Programming Guide, compute capability 8.x and 9.0), whatever it does. They share the instructions of
    all warps evenly, but none starts two instructions of one warp at a time: the longer of the two ways
    to count it. Instructions are those of `sass.summary`'s `depths`; of a branch both ways are counted,
    and a loop within the main one that `work` says nothing about, once.
    """
    times = _times(row, work)
    each = sum(line[0] * n for line, n in zip(row["depths"], times, strict=True))
    for around, line in zip(times[1:], row["depths"][2:], strict=False):
        each += line[2] * around * work.arithmetic
    spread = each * ceil(row["threads"] / LANES) / (PROCESSORS * SCHEDULERS)
    return max(spread, each / times[0]) / CLOCK


def bytes_in_flight(row: Row, work: Work | None = None) -> float:
    """Most bytes of loads that a multiprocessor has under way at a time.

    Blocks x lanes x what a lane has under way (`sass.in_flight`). With the work known, times the share
    of all bytes that its loads could bring which have to come from memory: the rest are lanes beyond
    the end of a row, and numbers that are read again or by every block and come from a cache.
    """
    lanes = ceil(row["threads"] / LANES) * LANES
    blocks = blocks_of(row)
    if work is None:
        return blocks * lanes * row["in_flight"]
    if work.blocks is not None:
        blocks = min(blocks, ceil(work.blocks / PROCESSORS))
    often = _times(row, work)
    loaded = sum(line[1] * n for line, n in zip(row["depths"], often, strict=True))
    share = min(1.0, work.read / (loaded * lanes)) if loaded else 0.0
    return blocks * lanes * row["in_flight"] * share


def needed_in_flight() -> float:
    """Bytes that a multiprocessor must have under way to keep its share of memory busy.

    Little's law: what is in a queue is rate x time in it (Volkov, UCB/EECS-2016-143, chapter 4). Loads
    alone are asked for it, though stores take their part of the rate, since the most that is under way
    is not always under way.
    """
    return COPY * LATENCY / PROCESSORS
