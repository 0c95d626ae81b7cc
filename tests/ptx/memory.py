"""Memory of a launch: what stands where, and the checks of every access.

Bounds, alignment, reads of what nobody wrote, two lanes that write different numbers to one place,
and races (`races.py`). Global memory is a set of buffers far apart from each other, so that an address
that leaves one never lands in the next. The blocks of a gang have their windows of one shared buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ptx.faults import Fault
from ptx.formats import BITS, Array
from ptx.races import Knowledge, Shadow

APART = 40  # bits of an address within its buffer
SHARED_BASE = 1024  # where shared memory begins; the lowest addresses are nobody's
SHARED_WINDOW = 1 << 60  # generic addresses of shared memory


@dataclass
class Buffer:
    """Consecutive bytes with their history."""

    raw: Array  # uint8
    name: str
    granule: int = 1  # bytes that are always accessed together
    written: Array | None = None  # [granules] bool; None: all of it was, before the launch
    shadow: Shadow | None = None  # made by the first launch that looks for races
    _views: dict[int, Array] = field(default_factory=dict)

    def view(self, size: int) -> Array:
        """Numbers of `size` bytes that start at each byte."""
        if size not in self._views:
            kind = BITS.get(size, np.dtype(f"V{size}"))
            count = max(0, len(self.raw) - size + 1)
            self._views[size] = np.ndarray((count,), kind, self.raw, 0, (1,))
        return self._views[size]

    def granules(self, offsets: Array, size: int) -> Array:
        """[k, w] the granules that accesses of `size` bytes at `offsets` [k] touch."""
        first = offsets // self.granule
        return first[:, None] + np.arange(max(1, size // self.granule))

    def read(
        self,
        offsets: Array,  # [k] bytes, checked
        size: int,
        threads: Array,  # [k]
        now: int,
        knowledge: Knowledge,
        note: Callable[[str], None],
    ) -> Array:
        if self.written is not None or self.shadow is not None:
            at = self.granules(offsets, size)
            if self.written is not None and not self.written[at].all():
                note(f"a read of {self.name} that nobody has written")
            if self.shadow is not None and self.shadow.read(at, threads, now, knowledge):
                note(
                    f"RACE: a read of {self.name} that another thread has written, no barrier between"
                )
        return self.view(size)[offsets]

    def check_write(
        self,
        offsets: Array,
        size: int,
        data: Array,  # [k] numbers of `size` bytes
        threads: Array,
        knowledge: Knowledge,
        note: Callable[[str], None],
    ) -> None:
        """Races of a write. Another's number that is the same, bit for bit, is none."""
        if self.shadow is None:
            return
        at = self.granules(offsets, size)
        over, race = self.shadow.races_of_write(at, threads, knowledge)
        if over.any():
            rows = over.any(1)
            there, new = self.view(size)[offsets[rows]], data[rows]
            if (there != new).any():
                what = "ROUNDING" if near(there, new) else "RACE"
                note(
                    f"{what}: a write over what another thread has written to {self.name}, no barrier"
                )
        if race:
            note(
                f"RACE: a write over what another thread has read of {self.name}, no barrier between"
            )

    def write(
        self,
        offsets: Array,
        size: int,
        data: Array,
        threads: Array,
        now: int,
        knowledge: Knowledge,
        note: Callable[[str], None],
    ) -> None:
        view = self.view(size)
        view[offsets] = data
        there = view[offsets]
        if (there != data).any():
            what = "ROUNDING" if near(there, data) else "CONFLICT"
            note(f"{what}: two threads write different numbers to one place of {self.name} at once")
        if self.written is not None or self.shadow is not None:
            at = self.granules(offsets, size)
            if self.written is not None:
                self.written[at] = True
            if self.shadow is not None:
                self.shadow.write(at, threads, now, knowledge)


def near(a: Array, b: Array) -> bool:
    """Whether two arrays of bits differ by rounding alone, read as float32.

    Lanes that each hold the same sum may have added it up in different orders; a compiler lets all of
    them store it.
    """
    if a.dtype.itemsize % 4:
        return False
    x, y = (np.ascontiguousarray(v).view(np.float32).astype(np.float64) for v in (a, b))
    same = np.ascontiguousarray(a).view(np.uint32) == np.ascontiguousarray(b).view(np.uint32)
    x, y = x[~same], y[~same]
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False
    size = np.maximum(np.abs(x), np.abs(y))  # what cancels is as exact as the largest of them
    return bool((np.abs(x - y) <= 2.0**-18 * np.maximum(size, size.max())).all())


class GlobalMemory:
    """Buffers by address."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.bases: list[int] = []

    def add(
        self,
        array: Array,  # contiguous; its memory is what kernels read and write
        name: str,
        *,
        written: bool | Array = True,  # or which of its numbers were
        skew: int = 0,  # its address modulo 256
    ) -> int:
        """The address of its first byte."""
        raw = array.reshape(-1).view(np.uint8) if array.size else np.zeros(0, np.uint8)
        granule = array.dtype.itemsize
        flags = None
        if written is not True:
            flags = np.zeros(-(-len(raw) // granule), bool)
            flags[:] = written
        self.buffers.append(Buffer(raw, name, granule, flags))
        self.bases.append((len(self.buffers) << APART) + 256 + skew % 256)
        return self.bases[-1]

    def written(self, base: int) -> Array | None:
        """Which numbers of the buffer at this address were written; None: it was full from the start."""
        return self.buffers[self.bases.index(base)].written

    def prepare(self, granule: int, races: bool) -> None:
        """Before a launch whose accesses are all multiples of `granule` bytes."""
        for buffer in self.buffers:
            if buffer.granule > granule:
                if buffer.written is not None:
                    buffer.written = np.repeat(buffer.written, buffer.granule // granule)
                buffer.granule = granule
            buffer.shadow = Shadow(-(-len(buffer.raw) // buffer.granule) + 1) if races else None

    def split(self, addresses: Array, size: int, write: bool) -> list[tuple[Buffer, Array, Array]]:
        """(buffer, which of the addresses, offsets); a Fault for what no GPU would let through."""
        if len(addresses) == 0:
            return []
        wrong = addresses % size != 0
        if wrong.any():
            raise Fault(f"misaligned access of {size} bytes at {int(addresses[wrong][0]):#x}")
        which = (addresses >> APART) - 1
        first = int(which[0])
        parts = []
        for number in [first] if (which == first).all() else np.unique(which).tolist():
            mine = np.flatnonzero(which == number)
            if not 0 <= number < len(self.buffers):
                raise Fault(f"address {int(addresses[mine[0]]):#x} is in no buffer")
            buffer = self.buffers[number]
            offsets = addresses[mine] - self.bases[number]
            outside = (offsets < 0) | (offsets + size > len(buffer.raw))
            if outside.any():
                what = "write" if write else "read"
                raise Fault(
                    f"{what} of {size} bytes at byte {int(offsets[outside][0])} of {buffer.name}, "
                    f"which has {len(buffer.raw)}"
                )
            parts.append((buffer, mine, offsets))
        return parts


class SharedMemory:
    """The shared memory of the blocks of a gang."""

    def __init__(self, blocks: int, size: int, granule: int, races: bool) -> None:
        self.size = size
        self.stride = -(-max(size, 1) // 128) * 128
        self.buffer = Buffer(
            np.full(blocks * self.stride, 0xFF, np.uint8), "shared memory", granule
        )
        granules = blocks * self.stride // granule
        self.buffer.written = np.zeros(granules, bool)
        if races:
            self.buffer.shadow = Shadow(granules)
        # Bytes that asynchronous work will write, or is still reading.
        self.to_be_written = np.zeros(granules, np.int32)
        self.being_read = np.zeros(granules, np.int32)
        self.in_flight = 0
        self.copied = np.zeros(granules, bool)  # last written by cp.async

    def offsets(self, addresses: Array, blocks: Array, size: int, write: bool) -> Array:
        """Where in the buffer `addresses` [k] of `blocks` [k] are."""
        wrong = addresses % size != 0
        if wrong.any():
            raise Fault(
                f"misaligned access of {size} bytes at {int(addresses[wrong][0]):#x} of shared memory"
            )
        inside = addresses - SHARED_BASE
        outside = (inside < 0) | (inside + size > self.size)
        if outside.any():
            what = "write" if write else "read"
            raise Fault(
                f"{what} of {size} bytes at byte {int(inside[outside][0])} of shared memory, "
                f"which has {self.size}"
            )
        return blocks * self.stride + inside

    def check_in_flight(self, at: Array, write: bool, note: Callable[[str], None]) -> None:
        """Granules that are read or written while asynchronous work on them was not waited for."""
        if self.in_flight == 0:
            return
        if (self.to_be_written[at] > 0).any():
            what = "write" if write else "read"
            note(
                f"ASYNC: a {what} of shared memory that a copy under way will write: no wait before it"
            )
        if write and (self.being_read[at] > 0).any():
            note(
                "ASYNC: a write of shared memory that a product under way reads: no wait before it"
            )
