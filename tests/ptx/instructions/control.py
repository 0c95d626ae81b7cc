"""Branches, exits, and meeting points of warps and blocks: who runs next.

A decoder here returns a function that says where to go on and with whom, or None to let the machine
look for the lowest place again.
"""

from __future__ import annotations

import numpy as np

from ptx.faults import Fault
from ptx.instructions.barriers import Arrivals
from ptx.parse import Name
from ptx.program import Control, Decode, control

_LANES = 32


@control("bra")
def bra(decode: Decode) -> Control:
    label = decode.ins.operands[-1]
    assert isinstance(label, Name)
    labels = decode.program.kernel.labels
    if label.text not in labels:
        raise decode.unknown()
    to = labels[label.text]

    def run(m, at, mask, mine):
        if mine is None or (mask is not None and (mine == mask).all()):
            if mask is None:
                return to, mask
            m.pc[mask] = to
            return None
        if not mine.any():
            return at + 1, mask
        if mask is None:
            m.pc[:] = at + 1
        else:
            m.pc[mask] = at + 1
        m.pc[mine] = to
        return None

    return run


@control("ret", "exit")
def leave(decode: Decode) -> Control:
    def run(m, at, mask, mine):
        m.leave(at + 1, mask)
        m.alive[m.which(mine)] = False
        release(m)  # who has left is not waited for
        return None

    return run


@control("trap")
def trap(decode: Decode) -> Control:
    def run(m, at, mask, mine):
        if mine is None or mine.any():
            raise Fault("trap")
        return at + 1, mask

    return run


@control("bar", "barrier")
def bar(decode: Decode) -> Control | None:
    """bar.sync of a block, or of some of its threads; bar.warp.sync is a collective."""
    ins = decode.ins
    if ins.has("warp"):
        return collective(decode)
    if ins.has("cluster"):
        raise decode.unknown()
    operands = [decode.source(i, "u32") for i in range(len(ins.operands))]
    if ins.has("red") or not ins.has("sync", "arrive"):
        raise decode.unknown()
    waits = ins.has("sync")

    def run(m, at, mask, mine):
        if mine is not None and not mine.any():
            return at + 1, mask
        number = operands[0](m) if operands else np.uint32(0)
        if waits and mine is None and len(operands) < 2 and np.ndim(number) == 0:
            m.knowledge.block_meets(slice(None), m.now)  # everybody is here
            return at + 1, mask
        m.leave(at + 1, mask)
        threads = m.which(mine)
        numbers = np.broadcast_to(number, m.total)[threads]
        counts = (
            np.broadcast_to(operands[1](m), m.total)[threads]
            if len(operands) > 1
            else np.zeros(len(threads), np.int64)
        )
        if not waits:
            m.state(Arrivals).arrive(threads, numbers)
        else:
            m.at_barrier[threads] = numbers
            m.expects[threads] = counts
        release(m)
        return None

    return run


def release(m) -> None:
    """Let go where everybody whom a barrier expects has come."""
    waiting = np.flatnonzero(m.alive & (m.at_barrier >= 0))
    if len(waiting) == 0:
        return
    keys = m.block[waiting] * 16 + m.at_barrier[waiting]
    for key in np.unique(keys):
        threads = waiting[keys == key]
        block, number = divmod(int(key), 16)
        expected = int(m.expects[threads[0]])
        everybody = expected == 0
        if everybody:
            expected = int((m.alive & (m.block == block)).sum())
        told = m.state(Arrivals).of(block, number)
        if len(threads) + len(told) < expected:
            continue
        m.at_barrier[threads] = -1
        members = np.unique(np.concatenate([threads, np.array(told, np.int64)]))
        m.state(Arrivals).clear(block, number)
        if everybody or len(members) == int((m.alive & (m.block == block)).sum()):
            m.knowledge.block_meets(threads, m.now)
        else:
            m.knowledge.some_meet(members, m.now)


@control("shfl", "vote", "match", "redux", "activemask", "elect", "mma", "movmatrix", "ldmatrix",
         "stmatrix", "wgmma")  # fmt: skip
def collective(decode: Decode) -> Control | None:
    """An instruction of a whole warp, or of the lanes that its mask names: they wait for each other."""
    ins = decode.ins
    if ins.name == "activemask":
        return None
    run_plain = decode.plain("barwarp" if ins.name in ("bar", "barrier") else ins.name)
    aligned = ins.has("aligned")
    size = 128 if ins.name == "wgmma" else _LANES
    named = None
    if not aligned:
        if not ins.has("sync"):
            raise decode.unknown()
        named = decode.source(len(ins.operands) - 1, "u32")

    def members(m):
        if named is None:
            return m.alive
        mask = named(m)
        if mask.ndim == 0 and int(mask) == 0xFFFFFFFF:
            return m.alive
        return ((mask >> m.lane.astype(np.uint32)) & np.uint32(1)).astype(bool) & m.alive

    def run(m, at, mask, mine):
        if mine is None:
            run_plain(m, None)
            return at + 1, mask
        if mask is not None:  # those who wait here already take part
            m.pc[mask] = at
            here = m.alive & m.waits & (m.pc == at)
            mine, mask = mine | here, mask | here
        needed = members(m).reshape(-1, size)
        present = mine.reshape(-1, size)
        complete = (~needed | present).all(1)
        go = mine & np.repeat(complete, size)
        hold = mine & ~go
        m.waits[go] = False
        if go.any():
            run_plain(m, None if go.all() else go)
        if not hold.any():
            return at + 1, mask
        m.waits[hold] = True
        rest = mask & ~hold if mask is not None else ~hold
        m.pc[hold] = at
        m.pc[rest] = at + 1
        return None

    return run
