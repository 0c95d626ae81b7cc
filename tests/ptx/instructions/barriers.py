"""Fences, waits and barriers that do not decide who runs next; bar.warp.sync; arrivals at barriers."""

from __future__ import annotations

import numpy as np

from ptx.program import Decode, Run, instruction


class Arrivals:
    """Threads that arrived at a barrier of their block without waiting there (bar.arrive)."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.threads: dict[tuple[int, int], list[int]] = {}

    def arrive(self, threads, numbers) -> None:
        for thread, number in zip(threads.tolist(), numbers.tolist(), strict=True):
            key = (int(self.machine.block[thread]), int(number))
            self.threads.setdefault(key, []).append(thread)

    def of(self, block: int, number: int) -> list[int]:
        return self.threads.get((block, number), [])

    def clear(self, block: int, number: int) -> None:
        self.threads.pop((block, number), None)


@instruction("barwarp")
def bar_warp_sync(decode: Decode) -> Run:
    def run(m, mask):
        if mask is None:
            m.knowledge.warp_meets(m.all, m.now)
            return
        lanes = mask.reshape(-1, 32)
        whole = np.repeat(lanes.all(1), 32)
        if whole.any():
            m.knowledge.warp_meets(np.flatnonzero(whole), m.now)
        for warp in np.flatnonzero(lanes.any(1) & ~lanes.all(1)):
            m.knowledge.some_meet(32 * warp + np.flatnonzero(lanes[warp]), m.now)

    return run


class Proxies:
    """When each thread last made its writes visible to asynchronous readers (fence.proxy.async)."""

    def __init__(self, machine) -> None:
        self.fenced_at = np.zeros(machine.total, np.int64)


@instruction("fence", "membar")
def fence(decode: Decode) -> Run:
    """Memory order between threads is what barriers give here; only proxies are kept track of."""
    if not decode.ins.has("proxy"):
        return lambda m, mask: None

    def run(m, mask):
        m.state(Proxies).fenced_at[m.which(mask)] = m.now

    return run


@instruction(
    "griddepcontrol", "nanosleep", "prefetch", "prefetchu", "discard", "setmaxnreg", "pmevent"
)
def nothing(decode: Decode) -> Run:
    """What changes times and no numbers."""
    return lambda m, mask: None
