"""wgmma: products of a warpgroup (four warps) out of shared memory, and waiting for them.

The product is made at once, its result held back until a wait: before that the registers hold NaN. What
is checked beside the numbers: a fence between other writes of a register and the product that takes it,
one between threads' writes of shared memory and the product that reads it, no write of what a product
under way still reads.
"""

from __future__ import annotations

import re

import numpy as np

from ptx import formats
from ptx.faults import Fault
from ptx.formats import Array
from ptx.instructions.barriers import Proxies
from ptx.instructions.mma import accumulator, of_accumulator, operand_a
from ptx.instructions.warp import lanes
from ptx.memory import SHARED_BASE
from ptx.parse import Register, Vector
from ptx.program import Decode, Run, instruction

GROUP = 128  # threads of a warpgroup
_POISON = np.uint32(0x7FFFDEAD)
_SWIZZLE = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a row, by the mode in a descriptor


class Products:
    """What the warpgroups of a gang have under way."""

    def __init__(self, machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.total, np.int64)  # groups
        self.held: dict[int, Array] = {}  # register -> its number once it is there
        self.group: dict[int, Array] = {}  # register -> group of each thread, -1: not under way
        self.fenced: dict[int, Array] = {}  # register -> what it was at the last fence
        self.reading: list[tuple[Array, int, Array]] = []  # threads [k], group, granules

    def fence(self, mask) -> None:
        m = self.machine
        for index in m.program.product_registers:
            now = m.registers[index]
            before = self.fenced.get(index)
            self.fenced[index] = (
                now if mask is None or before is None else np.where(mask, now, before)
            )

    def check_fenced(self, index: int, threads: Array) -> None:
        before, now = self.fenced.get(index), self.machine.registers[index]
        if before is None:
            self.machine.note("ASYNC: a product before the first wgmma.fence")
        elif before is not now and (before[threads] != now[threads]).any():
            self.machine.note(
                "ASYNC: a product takes a register written since the last wgmma.fence"
            )

    def start_of(self, index: int) -> Array:
        """An accumulator: of the product before, if that is under way."""
        now = self.machine.registers[index]
        if index not in self.held:
            return now
        return np.where(self.group[index] >= 0, self.held[index], now)

    def hold(self, index: int, made: Array, mask) -> None:
        m = self.machine
        under_way = self.committed
        if mask is not None:
            made = np.where(mask, made, self.held.get(index, made))
            under_way = np.where(mask, under_way, self.group.get(index, np.int64(-1)))
        self.held[index], self.group[index] = made, under_way.copy()
        poisoned = np.full(m.total, _POISON)
        if mask is not None:
            poisoned = np.where(mask, poisoned, m.registers[index])
        m.registers[index] = self.fenced[index] = poisoned

    def wait(self, mask, newest: int) -> None:
        m = self.machine
        for index, group in self.group.items():
            done = (group >= 0) & (group < self.committed - newest)
            if mask is not None:
                done &= mask
            if done.any():
                m.registers[index] = np.where(done, self.held[index], m.registers[index])
                self.fenced[index] = m.registers[index]
                group[done] = -1
        left = []
        for thread, group, granules in self.reading:
            waits = mask is None or mask[thread]
            if waits and group < self.committed[thread] - newest:
                np.subtract.at(m.shared.being_read, granules, 1)
                m.shared.in_flight -= 1
            else:
                left.append((thread, group, granules))
        self.reading = left

    def read(self, thread: int, granules: Array) -> None:
        """The warpgroup of `thread` reads granules of shared memory until its group is waited for."""
        m = self.machine
        shared = m.shared
        shared.check_in_flight(granules, False, m.note)
        buffer = shared.buffer
        if not buffer.written[granules].all():
            m.note(f"a read of {buffer.name} that nobody has written")
        if buffer.shadow is not None:
            leaders = thread + 32 * np.arange(4)
            at = np.broadcast_to(granules, (4, len(granules)))
            if buffer.shadow.read(at, leaders, m.now, m.knowledge):
                m.note(f"RACE: a product reads {buffer.name} that was written, no barrier between")
            fenced = m.state(Proxies).fenced_at
            written_at = buffer.shadow.written_at[granules]
            by = buffer.shadow.written_by[granules] - m.knowledge.first
            here = fenced[thread : thread + GROUP].min()
            unfenced = (fenced[by] <= written_at) & (here <= written_at)
            if (unfenced & ~shared.copied[granules]).any():
                m.note("ASYNC: a product reads what was written with no fence.proxy.async after it")
            elif unfenced.any():
                m.note("PROXY: a product reads what was copied with no fence.proxy.async after it")
        np.add.at(shared.being_read, granules, 1)
        shared.in_flight += 1
        self.reading.append((thread, int(self.committed[thread]), granules))


@instruction("wgmma")
def wgmma(decode: Decode) -> Run:
    ins = decode.ins
    if ins.has("fence"):
        return lambda m, mask: m.state(Products).fence(mask)
    if ins.has("commit_group"):

        def commit(m, mask):
            m.state(Products).committed[m.which(mask)] += 1

        return commit
    if ins.has("wait_group"):
        newest = int(decode.constant(ins.operands[0].text, "u32"))
        return lambda m, mask: m.state(Products).wait(mask, newest)
    if ins.has("mma_async"):
        return _product(decode)
    raise decode.unknown()


def _product(decode: Decode) -> Run:
    ins = decode.ins
    shape = next((f for f in ins.fields if re.fullmatch(r"m64n\d+k\d+", f)), None)
    kinds = ins.fields[-3:]
    if shape is None or kinds[0] != "f32" or kinds[1] != kinds[2]:
        raise decode.unknown()
    kind = kinds[1]
    if kind not in ("bf16", "f16", "tf32"):
        raise decode.unknown()
    N, K = map(int, shape[4:].split("k"))
    size = 4 if kind == "tf32" else 2
    results = [part.index for part in decode.parts(0) if isinstance(part, Register)]
    if len(results) != N // 2 or K * size != 32:
        raise decode.unknown()
    in_registers = isinstance(ins.operands[1], Vector)
    a = decode.sources(1, "b32") if in_registers else [decode.source(1, "b64")]
    of_a = [p.index for p in decode.parts(1) if isinstance(p, Register)] if in_registers else []
    b = decode.source(2, "b64")
    keep = decode.source(3, "pred")
    rest = [int(decode.constant(o.text, "s32")) for o in ins.operands[4:]]
    sign = rest[0] * rest[1]
    turned_a = not in_registers and len(rest) > 2 and rest[2] == 1
    turned_b = len(rest) > 2 and rest[-1] == 1
    decode.program.product_registers |= {*results, *of_a}

    def run(m, mask):
        products = m.state(Products)
        threads = m.which(mask)
        first = threads[threads % GROUP == 0]  # the first thread of each warpgroup that takes part
        for index in {*results, *of_a}:
            products.check_fenced(index, threads)
        if in_registers:
            left = operand_a([lanes(x(m), m) for x in a], kind)
            left = left.reshape(-1, 64, K)[first // GROUP]
        else:
            left = _matrix(m, products, a[0](m), first, 64, K, kind, turned_a)
        right = _matrix(m, products, b(m), first, N, K, kind, turned_b)
        made = left.astype(np.float64) @ right.astype(np.float64).transpose(0, 2, 1)
        made = np.ascontiguousarray((sign * made).reshape(-1, 16, N))  # [warps, 16, N]
        warps = (first[:, None] // 32 + np.arange(4)).reshape(-1)
        keeps = np.broadcast_to(keep(m), m.total)
        for block in range(N // 8):
            registers = results[4 * block : 4 * block + 4]
            start = accumulator([lanes(products.start_of(i), m) for i in registers])
            start = np.where(keeps.reshape(-1, 32)[:, :1, None], start, np.float32(0))
            whole = start.astype(np.float64)
            whole[warps] += made[:, :, 8 * block : 8 * block + 8]
            found = of_accumulator(whole.astype(np.float32)).view(np.uint32)
            for index, value in zip(registers, found, strict=True):
                products.hold(index, value, mask)

    return run


def _matrix(m, products: Products, descriptors, first, rows: int, K: int, kind: str, turned: bool):
    """[warpgroups, rows, K] float32 of matrices that lie in shared memory as descriptors say."""
    all_of = np.broadcast_to(descriptors, m.total)
    groups = first[:, None] + np.arange(GROUP)
    if (all_of[groups] != all_of[first][:, None]).any():
        raise Fault("a matrix descriptor differs between the threads of a warpgroup")
    size = 4 if kind == "tf32" else 2
    found = []
    for thread, descriptor in zip(first.tolist(), all_of[first].tolist(), strict=True):
        at = places(int(descriptor), rows, K, size, turned) - SHARED_BASE
        if (at < 0).any() or (at + size > m.shared.size).any():
            raise Fault(
                f"a matrix of shared memory from byte {int(at.min())} to {int(at.max()) + size}, "
                f"of {m.shared.size}"
            )
        at = at + int(m.block[thread]) * m.shared.stride
        granules = np.unique(m.shared.buffer.granules(at.reshape(-1), size))
        products.read(thread, granules)
        bits = m.shared.buffer.view(size)[at]
        if kind == "tf32":
            found.append(formats.as_tf32(bits))
        elif kind == "bf16":
            found.append(formats.from_bf16(bits))
        else:
            found.append(bits.view(np.float16).astype(np.float32))
    return np.stack(found)


def places(descriptor: int, rows: int, K: int, size: int, turned: bool) -> Array:
    """[rows, K] addresses in shared memory of the numbers of a matrix.

    Lengths of a descriptor are in units of 16 bytes. A tile is 8 rows (turned: 8 columns) of so many
    bytes as the swizzle is wide; the strides lead from tile to tile (PTX ISA, "Matrix descriptor
    format"; the layouts as CUTLASS writes them down in mma_sm90_desc.hpp).
    """
    start = (descriptor & 0x3FFF) << 4
    leading = ((descriptor >> 16) & 0x3FFF) << 4
    stride = ((descriptor >> 32) & 0x3FFF) << 4
    if (descriptor >> 49) & 7:
        raise Fault("a matrix descriptor with a base offset")
    width = _SWIZZLE[descriptor >> 62]
    row, column = np.arange(rows)[:, None], np.arange(K)[None, :] * size
    if turned:  # neighbours are rows: [K / 8] x 8 columns of `width` bytes
        row, column = np.arange(rows)[:, None] * size, np.arange(K)[None, :]
        if width == 16:
            at = row % 16 + row // 16 * stride + column % 8 * 16 + column // 8 * leading
        else:
            at = row % width + row // width * leading
            at = at + column % 8 * width + column // 8 * stride
    elif width == 16:
        at = row % 8 * 16 + row // 8 * stride + column % 16 + column // 16 * leading
    else:
        at = row % 8 * width + row // 8 * stride + column
    at = at + start
    # The swizzle exchanges 16-byte pieces of a row by the row's number, as bits of the address.
    return at ^ ((at >> 7 & (width // 16 - 1)) << 4)
