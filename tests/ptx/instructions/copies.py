"""Asynchronous copies from global to shared memory: cp.async, its groups, and waiting for them.

A copy is carried out when its thread waits for its group: until then what is read there is old. An
access in between is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptx.faults import Unknown
from ptx.formats import Array
from ptx.instructions.memory import at_threads, load
from ptx.program import Decode, Run, instruction


@dataclass
class _Copy:
    """One executed instruction: lanes that are still under way."""

    threads: Array  # [k]
    at: Array  # [k] offsets in shared memory
    data: Array  # [k, size] uint8
    group: Array  # [k] of each thread, counted from 0


class Copies:
    """What the threads of a gang have under way."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.total, np.int64)  # groups
        self.pending: list[_Copy] = []

    def start(self, threads: Array, at: Array, data: Array) -> None:
        m, size = self.machine, data.shape[1]
        buffer = m.shared.buffer
        granules = buffer.granules(at, size)
        m.shared.check_in_flight(granules, True, m.note)
        whole = data.view(np.dtype(f"V{size}"))[:, 0] if size > 8 else data.view(f"u{size}")[:, 0]
        buffer.check_write(at, size, whole, threads, m.knowledge, m.note)
        np.add.at(m.shared.to_be_written, granules, 1)
        m.shared.in_flight += 1
        self.pending.append(_Copy(threads, at, whole, self.committed[threads]))

    def wait(self, threads: Array, newest: int) -> None:
        """All groups of these threads but the newest so many are complete."""
        m = self.machine
        waits = np.zeros(m.total, bool)
        waits[threads] = True
        left = []
        for copy in self.pending:
            done = waits[copy.threads] & (copy.group < self.committed[copy.threads] - newest)
            if done.any():
                buffer, size = m.shared.buffer, copy.data.dtype.itemsize
                at, who = copy.at[done], copy.threads[done]
                granules = buffer.granules(at, size)
                np.subtract.at(m.shared.to_be_written, granules, 1)
                m.shared.copied[granules] = True
                buffer.write(at, size, copy.data[done], who, m.now, m.knowledge, m.note)
                keep = ~done
                if keep.any():
                    left.append(
                        _Copy(copy.threads[keep], copy.at[keep], copy.data[keep], copy.group[keep])
                    )
                else:
                    m.shared.in_flight -= 1
            else:
                left.append(copy)
        self.pending = left


@instruction("cp")
def cp(decode: Decode) -> Run:
    ins = decode.ins
    if ins.fields[0] != "async" or ins.has("bulk", "reduce", "mbarrier"):
        raise decode.unknown()
    if ins.has("commit_group"):

        def commit(m, mask):
            m.state(Copies).committed[m.which(mask)] += 1

        return commit
    if ins.has("wait_all"):

        def wait_all(m, mask):
            copies, threads = m.state(Copies), m.which(mask)
            copies.committed[threads] += 1
            copies.wait(threads, 0)

        return wait_all
    if ins.has("wait_group"):
        newest = decode.constant(ins.operands[0].text, "u32")
        return lambda m, mask: m.state(Copies).wait(m.which(mask), int(newest))
    return _copy(decode)


def _copy(decode: Decode) -> Run:
    """cp.async.cg.shared.global [to], [from], size, bytes that are read (the rest is zero)"""
    ins = decode.ins
    to, of = decode.address(0), decode.address(1)
    size = int(decode.constant(ins.operands[2].text, "u32"))
    read = decode.source(3, "u32") if len(ins.operands) > 3 else lambda m: np.uint32(size)
    if len(ins.operands) > 4:
        raise decode.unknown()

    def run(m, mask):
        threads = m.which(mask)
        if len(threads) == 0:
            return
        at = m.shared.offsets(
            at_threads(m, to(m), threads, mask), m.block[threads], size, write=True
        )
        source = at_threads(m, of(m), threads, mask)
        count = at_threads(m, read(m), threads, mask)
        data = np.zeros((len(threads), size), np.uint8)
        for bytes_read in np.unique(count).tolist():
            if bytes_read == 0:
                continue
            if bytes_read != size:
                raise Unknown("a copy of a part, the rest zeros")
            mine = np.flatnonzero(count == bytes_read)
            found = load(m, "global", source[mine], size, threads[mine])
            data[mine] = found.view(np.uint8).reshape(len(mine), size)
        m.state(Copies).start(threads, at, data)

    return run
