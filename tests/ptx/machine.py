"""A gang: some thread blocks of a launch, run together, all their threads at once.

Registers are numpy arrays over the threads of the gang. Of the threads that can run, those at the
lowest place of the program run next, so that those who parted meet again. An instruction was decoded
once into a function of the machine and of a mask (None: every thread).
Not here: what instructions do (`instructions/`), memory (`memory.py`), launches (`launch.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx.count import Counts
from ptx.faults import Fault, Reports
from ptx.formats import Array
from ptx.memory import GlobalMemory, SharedMemory
from ptx.program import PLAIN, Program, Step
from ptx.races import Knowledge

LANES = 32
_POISON = {
    0: np.bool_(True),
    1: np.uint8(0xAD),
    2: np.uint16(0x7FAD),
    4: np.uint32(0x7FFFDEAD),
    8: np.uint64(0x7FFFDEAD7FFFDEAD),
}
_NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Shape:
    """What is launched: blocks and threads along x, y, z, and bytes of dynamic shared memory."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int


class Machine:
    def __init__(
        self,
        program: Program,
        shape: Shape,
        first: int,  # number of the first block of the gang
        blocks: int,
        memory: GlobalMemory,
        parameters: Array,  # uint8
        reports: Reports,
        counts: Counts | None,
        races: bool,
        apart: bool = False,  # a warp runs alone as far as it can, then the next
    ) -> None:
        self.program, self.kernel, self.shape = program, program.kernel, shape
        self.memory, self.parameters = memory, parameters
        self.reports, self.counts = reports, counts
        threads = int(np.prod(shape.block))
        self.threads = -(-threads // LANES) * LANES  # of a block, its last warp filled up
        self.blocks, self.total = blocks, blocks * self.threads
        self.all = np.arange(self.total)
        self.block = self.all // self.threads
        self.lane = self.all % LANES
        self.warps = self.total // LANES
        self.alive = self.all % self.threads < threads
        poison = {width: np.full(self.total, value) for width, value in _POISON.items()}
        poison[16] = np.full((self.total, 2), _POISON[8])
        self.registers = [poison[width] for width in self.kernel.registers]
        self.pc = np.zeros(self.total, np.int64)
        self.at_barrier = np.full(self.total, -1, np.int64)  # number of the barrier
        self.expects = np.zeros(self.total, np.int64)  # threads, 0: all of the block
        self.waits = np.zeros(self.total, bool)  # for lanes of its warp, at its pc
        self.now = 0
        self.knowledge = Knowledge(blocks, self.threads, first)
        self.shared = SharedMemory(
            blocks, program.shared_bytes + shape.shared, self.kernel.granule("shared"), races
        )
        self.special = self._special(first, threads)
        self.asynchronous: dict[type, object] = {}  # states of what runs beside the threads
        self.text = ""
        self.apart = apart

    def _special(self, first: int, threads: int) -> dict[str, Array]:
        local = (self.all % self.threads).astype(np.uint32)
        number = (self.block + first).astype(np.uint32)
        of: dict[str, Array] = {}
        for name, count, index in (
            ("tid", self.shape.block, local),
            ("ctaid", self.shape.grid, number),
        ):
            rest = index
            for axis, size in zip("xyz", count, strict=True):
                of[f"%{name}.{axis}"] = rest % np.uint32(size)
                of[f"%n{name}.{axis}"] = np.full(self.total, size, np.uint32)
                rest = rest // np.uint32(size)
        lane = self.lane.astype(np.uint32)
        of["%laneid"] = lane
        of["%warpid"] = local // np.uint32(LANES)
        of["%nwarpid"] = np.full(self.total, self.threads // LANES, np.uint32)
        one = np.uint32(1)
        of["%lanemask_eq"] = one << lane
        of["%lanemask_lt"] = (one << lane) - one
        of["%lanemask_le"] = of["%lanemask_lt"] | of["%lanemask_eq"]
        of["%lanemask_ge"] = ~of["%lanemask_lt"]
        of["%lanemask_gt"] = ~of["%lanemask_le"]
        of["%dynamic_smem_size"] = np.full(self.total, self.shape.shared, np.uint32)
        return of

    # --- for instructions ------------------------------------------------------------------------

    def state(self, kind: type):
        """The one object of this kind that belongs to this gang: asynchronous copies, barriers ..."""
        if kind not in self.asynchronous:
            self.asynchronous[kind] = kind(self)
        return self.asynchronous[kind]

    def which(self, mask: Array | None) -> Array:
        """The threads of a mask, by number."""
        return self.all if mask is None else np.flatnonzero(mask)

    def note(self, what: str) -> None:
        self.reports.note(self.kernel.name, what, self.text)

    # --- running ---------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while True:
                ready = self.alive & ~self.waits & (self.at_barrier < 0)
                places = np.where(ready, self.pc, _NOWHERE)
                at = int(places.min())
                if at == _NOWHERE:
                    if not self.alive.any():
                        return
                    self._stuck()
                if self.apart:
                    ready &= self._first_warps(ready)
                    places = np.where(ready, self.pc, _NOWHERE)
                    at = int(places.min())
                mask = ready & (places == at)
                self._from(at, None if mask.all() else mask)
        except Fault as fault:
            threads = (
                f"{self.kernel.name}, blocks {int(self.knowledge.first // self.threads)} and on"
            )
            raise type(fault)(f"{fault} | {self.text} | {threads}") from None

    def _first_warps(self, ready: Array) -> Array:
        """The lowest warp of each block that can run."""
        warps = ready.reshape(self.blocks, -1, LANES).any(2)
        first = warps.cumsum(1) == 1
        return np.repeat((first & warps).reshape(-1), LANES)

    def _stuck(self) -> None:
        """Nobody can run: lanes wait for lanes that stand elsewhere, or for a barrier."""
        where = {self.kernel.code[pc].text for pc in self.pc[self.alive & self.waits].tolist()}
        barriers = sorted(set(self.at_barrier[self.alive & (self.at_barrier >= 0)].tolist()))
        raise Fault(f"deadlock: lanes wait at {sorted(where)}, threads at barriers {barriers}")

    def _from(self, at: int, mask: Array | None) -> None:
        """Run the threads of `mask`, all at `at`, until they part or may meet others."""
        steps, registers, starts = self.program.steps, self.registers, self.kernel.starts
        executed = self.program.executed
        active = self._count(mask)
        while True:
            if at >= len(steps):
                raise Fault("the program ends without ret")
            step: Step = steps[at]
            self.now += 1
            self.text = step.text
            executed[at] += active
            mine = mask
            if step.predicate is not None:
                mine = registers[step.predicate]
                if step.negated:
                    mine = ~mine
                if mask is not None:
                    mine = mine & mask
                if mine.all():
                    mine = None
                elif step.kind == PLAIN and not mine.any():
                    at += 1
                    if mask is not None and at in starts:
                        self.leave(at, mask)
                        return
                    continue
            if step.kind == PLAIN:
                step.run(self, mine)
                at += 1
            else:
                follow = step.control(self, at, mask, mine)
                if follow is None:
                    return
                if follow[1] is not mask:
                    mask = follow[1]
                    active = self._count(mask)
                at = follow[0]
            if mask is not None and at in starts:
                self.leave(at, mask)
                return

    def leave(self, at: int, mask: Array | None) -> None:
        """The threads of a mask stand at this place of the program."""
        if mask is None:
            self.pc[:] = at
        else:
            self.pc[mask] = at

    def _count(self, mask: Array | None) -> int:
        """Warps that execute."""
        if mask is None:
            return self.warps
        return int(mask.reshape(-1, LANES).any(1).sum())
