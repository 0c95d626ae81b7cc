"""One launch of a kernel: its blocks in gangs, its reports and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

import ptx.instructions  # noqa: F401  registers every instruction
from ptx.count import Counts
from ptx.faults import Fault, Reports
from ptx.machine import Machine, Shape
from ptx.memory import GlobalMemory
from ptx.program import Program

GANG = 1024  # threads that are run together, about: what numpy does at once at little more than one
MOST_SHARED = 227 << 10  # bytes of a block on sm_90


def launch(
    program: Program,
    shape: Shape,
    memory: GlobalMemory,
    parameters: bytes,
    *,
    reports: Reports,
    counts: Counts | None = None,
    races: bool = True,
    apart: bool = False,  # one warp of a block after the other, from barrier to barrier
    blocks: Iterable[int] | None = None,  # these alone
) -> None:
    """Run every block; a Fault where a GPU would stop, findings go to `reports`."""
    kernel = program.kernel
    threads = int(np.prod(shape.block))
    if kernel.threads is not None and kernel.threads != threads:
        raise Fault(
            f"{kernel.name} is for blocks of {kernel.threads} threads, launched with {threads}"
        )
    if len(parameters) < kernel.parameter_bytes:
        raise Fault(
            f"{kernel.name} takes {kernel.parameter_bytes} bytes of parameters, got {len(parameters)}"
        )
    if program.shared_bytes + shape.shared > MOST_SHARED:
        raise Fault(f"{kernel.name}: {program.shared_bytes + shape.shared} bytes of shared memory")
    memory.prepare(kernel.granule("global"), races)
    given = np.frombuffer(parameters, np.uint8)
    wanted = list(range(int(np.prod(shape.grid))) if blocks is None else blocks)
    size = max(1, GANG // max(32, threads))
    now = 0
    before = list(program.executed)
    with np.errstate(all="ignore"):
        for first, count in _runs(wanted, size):
            machine = Machine(
                program, shape, first, count, memory, given, reports, counts, races, apart
            )
            machine.now = now
            machine.run()
            now = machine.now
    if counts is not None:
        counts.blocks += len(wanted)
        done: Counter[str] = Counter()
        for ins, old, new in zip(kernel.code, before, program.executed, strict=True):
            done[ins.opcode] += new - old
        counts.instructions += done


def _runs(blocks: list[int], size: int) -> Iterable[tuple[int, int]]:
    """(first, count) of runs of consecutive numbers, at most `size` long."""
    at = 0
    while at < len(blocks):
        count = 1
        while (
            count < size and at + count < len(blocks) and blocks[at + count] == blocks[at] + count
        ):
            count += 1
        yield blocks[at], count
        at += count
