"""Who knows what of whom: the order of accesses to one place of memory, and the accesses without one.

Every executed instruction has a time. A thread knows an event of another when a barrier stands
between the two: `bar.sync` tells every thread of the block everything so far, `bar.warp.sync` the
lanes of one warp, a barrier of some threads those. An access that conflicts with one that its thread
does not know of is a race, whichever came first here.
Not here: memory order without barriers (fences, atomics as locks), which nothing shipped relies on.
"""

from __future__ import annotations

import numpy as np

from ptx.formats import Array

SEVERAL = -1  # readers of more than one warp; -2 - w: several lanes of warp w


class Knowledge:
    """Of each thread of a gang: up to what time it knows the threads of its block, and of its warp."""

    def __init__(self, blocks: int, threads: int, first_block: int) -> None:
        total = blocks * threads
        self.threads = threads  # of a block, a multiple of 32
        self.number = np.arange(total, dtype=np.int64) + first_block * threads  # within the launch
        self.of_block = np.zeros(total, np.int64)
        self.of_warp = np.zeros(total, np.int64)
        # [blocks, threads, threads], made when something tells some threads and not others
        self.of_thread: Array | None = None
        self.first = first_block * threads

    def block_meets(self, threads: Array | slice, now: int) -> None:
        """All threads of a block, or of several: each of them knows its whole block."""
        self.of_block[threads] = now

    def warp_meets(self, threads: Array, now: int) -> None:
        """All lanes of some warps: what one of them knew, each knows now."""
        lanes = self.of_block[threads].reshape(-1, 32)
        self.of_block[threads] = np.repeat(lanes.max(1), 32)
        self.of_warp[threads] = now
        if self.threads == 32:
            self.of_block[threads] = now
        if self.of_thread is not None:
            for warp in np.unique(threads // 32):
                self._join(np.arange(32) + 32 * warp, now)

    def some_meet(self, threads: Array, now: int) -> None:
        """Some threads of one block."""
        self.matrix()
        self._join(threads, now)

    def matrix(self) -> Array:
        """[blocks, threads, threads] what each thread knows of each beyond `of_block`."""
        if self.of_thread is None:
            blocks = len(self.number) // self.threads
            self.of_thread = np.zeros((blocks, self.threads, self.threads), np.int64)
            for warp in range(len(self.number) // 32):
                block, lane = divmod(32 * warp, self.threads)
                mine = self.of_warp[32 * warp : 32 * warp + 32]
                self.of_thread[block, lane : lane + 32, lane : lane + 32] = mine[:, None]
        return self.of_thread

    def _join(self, threads: Array, now: int) -> None:
        block = int(threads[0]) // self.threads
        local = threads % self.threads
        known = self.matrix()[block]
        joined = np.maximum(known[local].max(0), self.of_block[threads].max())
        joined[local] = now
        known[local] = joined

    def unknown(self, threads: Array, others: Array, times: Array) -> Array:
        """Which events of `others` at `times` the `threads` do not know of; arrays of one shape.

        `others` are numbers within the launch, or several lanes of a warp (-2 - w), or SEVERAL.
        """
        mine = self.number[threads]
        exact = others >= 0
        warp = np.where(exact, others >> 5, np.where(others == SEVERAL, -1, -2 - others))
        same_warp = warp == mine >> 5
        same_block = np.where(
            others == SEVERAL, True, warp // (self.threads // 32) == mine // self.threads
        )
        known = (times == 0) | (others == mine)
        known |= same_block & (times <= self.of_block[threads])
        known |= same_warp & (times <= self.of_warp[threads])
        if self.of_thread is not None and not known.all():
            at = np.flatnonzero(~known & same_block & (others != SEVERAL))
            for i in at:  # rare: what mbarriers and barriers of some threads order
                block, local = divmod(int(threads.flat[i]), self.threads)
                other = int(others.flat[i])
                first = (other if other >= 0 else 32 * (-2 - other)) - int(
                    self.number[block * self.threads]
                )
                span = slice(first, first + (1 if other >= 0 else 32))
                seen = self.of_thread[block, local, span].min()
                known.flat[i] |= times.flat[i] <= seen
            at = np.flatnonzero(~known & (others == SEVERAL))
            for i in at:
                block, local = divmod(int(threads.flat[i]), self.threads)
                seen = np.maximum(self.of_thread[block, local], self.of_block[threads.flat[i]])
                seen[local] = times.flat[i]
                known.flat[i] |= times.flat[i] <= seen.min()
        return ~known


class Shadow:
    """The last write of every granule of a memory, and who has read it since."""

    def __init__(self, granules: int) -> None:
        self.written_at = np.zeros(granules, np.int64)  # 0: not by this launch
        self.written_by = np.zeros(granules, np.int32)
        self.read_at = np.zeros(granules, np.int64)
        self.read_by = np.zeros(granules, np.int32)

    def read(self, at: Array, threads: Array, now: int, knowledge: Knowledge) -> bool:
        """Granules `at` [k, w] are read by `threads` [k]; whether that races with a write."""
        times = self.written_at[at]
        newest = int(times.max(initial=0))
        oldest = int(knowledge.of_block[threads].min(initial=now))
        who = np.broadcast_to(threads[:, None], at.shape)
        race = False
        if newest > oldest:
            race = bool(knowledge.unknown(who, self.written_by[at], times).any())
        self._note_readers(at, who, now, knowledge, oldest)
        return race

    def _note_readers(
        self, at: Array, who: Array, now: int, knowledge: Knowledge, oldest: int
    ) -> None:
        number = knowledge.number[who].astype(np.int32)
        times = self.read_at[at]
        if int(times.max(initial=0)) > oldest:
            before = self.read_by[at]
            keep = knowledge.unknown(who, before, times)
            number = np.where(keep, _several(before, number), number)
        self.read_by[at] = number
        self.read_at[at] = now
        # More than one thread read a granule at once: say so, several warps last.
        got = self.read_by[at]
        if (differ := got != number).any():
            both = _several(got, number)
            lanes = differ & (both != SEVERAL)
            self.read_by[at[lanes]] = both[lanes]
            warps = differ & (both == SEVERAL)
            self.read_by[at[warps]] = SEVERAL

    def races_of_write(self, at: Array, threads: Array, knowledge: Knowledge) -> tuple[Array, bool]:
        """For a write of granules `at` [k, w] by `threads` [k]: which of them [k, w] another has written
        without an order, and whether another has read any of them without one."""
        who = np.broadcast_to(threads[:, None], at.shape)
        oldest = int(knowledge.of_block[threads].min(initial=0))
        written, read = self.written_at[at], self.read_at[at]
        over = np.zeros(at.shape, bool)
        if int(written.max(initial=0)) > oldest:
            over = knowledge.unknown(who, self.written_by[at], written)
        race = False
        if int(read.max(initial=0)) > oldest:
            race = bool(knowledge.unknown(who, self.read_by[at], read).any())
        return over, race

    def write(self, at: Array, threads: Array, now: int, knowledge: Knowledge) -> None:
        self.written_by[at] = knowledge.number[threads][:, None]
        self.written_at[at] = now


def _several(a: Array, b: Array) -> Array:
    """Who two readers are together: one thread, several lanes of a warp, or several warps."""
    warp = lambda x: np.where(x >= 0, x >> 5, np.where(x == SEVERAL, -1, -2 - x))  # noqa: E731
    of_a, of_b = warp(a), warp(b)
    both = np.where((of_a == of_b) & (of_a >= 0), -2 - of_a, SEVERAL)
    return np.where(a == b, a, both).astype(np.int32)
