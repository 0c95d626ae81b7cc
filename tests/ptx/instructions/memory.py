"""Loads and stores of global and shared memory and of parameters; atomics."""

from __future__ import annotations

import numpy as np

from ptx import formats
from ptx.faults import Unknown
from ptx.formats import Array
from ptx.memory import SHARED_WINDOW
from ptx.program import Decode, Run, instruction

_SPACES = ("global", "shared", "param", "local", "const")


def space_of(ins) -> str | None:
    """None: a generic address."""
    for f in ins.fields:
        plain = f.split("::")[0]
        if plain in _SPACES:
            return plain
    return None


def load(m, space: str | None, addresses: Array, size: int, threads: Array) -> Array:
    """[k] numbers of `size` bytes (16 and more: void) at `addresses` [k] for `threads` [k]."""
    if space is None:
        shared = addresses >= SHARED_WINDOW
        if shared.all():
            return load(m, "shared", addresses - SHARED_WINDOW, size, threads)
        if shared.any():
            raise Unknown("generic addresses of shared and of global memory at once")
        space = "global"
    if space == "shared":
        shared = m.shared
        at = shared.offsets(addresses, m.block[threads], size, write=False)
        if shared.in_flight:
            shared.check_in_flight(shared.buffer.granules(at, size), False, m.note)
        return shared.buffer.read(at, size, threads, m.now, m.knowledge, m.note)
    parts = m.memory.split(addresses, size, write=False)
    if m.counts is not None and len(threads):
        m.counts.traffic("ld", addresses, size, threads)
    if len(parts) == 1:
        buffer, _, offsets = parts[0]
        return buffer.read(offsets, size, threads, m.now, m.knowledge, m.note)
    found = np.zeros(len(threads), formats.BITS.get(size, np.dtype(f"V{size}")))
    for buffer, mine, offsets in parts:
        found[mine] = buffer.read(offsets, size, threads[mine], m.now, m.knowledge, m.note)
    return found


def store(m, space: str | None, addresses: Array, data: Array, threads: Array) -> None:
    """`data` [k] numbers of any size."""
    size = data.dtype.itemsize
    if space is None:
        shared = addresses >= SHARED_WINDOW
        if shared.all():
            return store(m, "shared", addresses - SHARED_WINDOW, data, threads)
        if shared.any():
            raise Unknown("generic addresses of shared and of global memory at once")
        space = "global"
    rest = (m.knowledge, m.note)
    if space == "shared":
        shared = m.shared
        at = shared.offsets(addresses, m.block[threads], size, write=True)
        if shared.in_flight:
            shared.check_in_flight(shared.buffer.granules(at, size), True, m.note)
        shared.buffer.check_write(at, size, data, threads, *rest)
        shared.buffer.write(at, size, data, threads, m.now, *rest)
        if m.program.product_registers:
            shared.copied[shared.buffer.granules(at, size)] = False
        return None
    for buffer, mine, offsets in m.memory.split(addresses, size, write=True):
        buffer.check_write(offsets, size, data[mine], threads[mine], *rest)
        buffer.write(offsets, size, data[mine], threads[mine], m.now, *rest)
    if m.counts is not None and len(threads):
        m.counts.traffic("st", addresses, size, threads)
    return None


def at_threads(m, values: Array, threads: Array, mask) -> Array:
    """A source's value at the threads of a mask."""
    if np.ndim(values) == 0:
        return np.full(len(threads), values)
    return values if mask is None else values[threads]


def spread(m, values: Array, threads: Array, mask) -> Array:
    """[k] values at their threads, of all threads."""
    if mask is None:
        return values
    made = np.zeros(m.total, values.dtype)
    made[threads] = values
    return made


@instruction("ld", "ldu")
def ld(decode: Decode) -> Run:
    ins = decode.ins
    kind, space = ins.type, space_of(ins)
    puts = decode.targets(0)
    each = formats.size_of(kind)
    size = each * len(puts)
    address = decode.address(1)
    of = formats.OF[kind]
    if space == "param":
        return _parameter(decode, puts, each, of)
    if space in ("local", "const"):
        raise decode.unknown()

    def run(m, mask):
        threads = m.which(mask)
        addresses = at_threads(m, address(m), threads, mask)
        found = load(m, space, addresses, size, threads)
        if len(puts) == 1:
            puts[0](m, spread(m, found, threads, mask).view(of), mask)
            return
        columns = np.ascontiguousarray(found.view(of).reshape(-1, len(puts)).T)
        for put, column in zip(puts, columns, strict=True):
            put(m, spread(m, column, threads, mask), mask)

    return run


def _parameter(decode: Decode, puts, each: int, of) -> Run:
    address = decode.address(1)

    def run(m, mask):
        at = address(m)
        if np.ndim(at):
            at = at if mask is None else at[mask]
            if (at != at[0]).any():
                raise Unknown("parameters at different places for different threads")
            at = at[0]
        for i, put in enumerate(puts):
            start = int(at) + i * each
            put(m, m.parameters[start : start + each].view(of)[0], mask)

    return run


@instruction("st")
def st(decode: Decode) -> Run:
    ins = decode.ins
    kind, space = ins.type, space_of(ins)
    each = formats.size_of(kind)
    bits = f"b{8 * each}"
    sources = decode.sources(1, bits)
    address = decode.address(0)
    size = each * len(sources)
    if space in ("local", "const", "param"):
        raise decode.unknown()
    whole = formats.BITS.get(size, np.dtype(f"V{size}"))

    def run(m, mask):
        threads = m.which(mask)
        addresses = at_threads(m, address(m), threads, mask)
        if len(sources) == 1:
            data = at_threads(m, sources[0](m), threads, mask)
        else:
            rows = np.empty((len(threads), len(sources)), formats.BITS[each])
            for i, source in enumerate(sources):
                value = source(m)
                rows[:, i] = value if mask is None or np.ndim(value) == 0 else value[threads]
            data = rows.view(whole)[:, 0]
        store(m, space, addresses, data, threads)

    return run


@instruction("atom", "red")
def atom(decode: Decode) -> Run:
    """Read-modify-writes, thread after thread. They order nothing and race with nothing here."""
    ins = decode.ins
    kind, space = ins.type, space_of(ins)
    of = formats.OF[kind]
    size = formats.size_of(kind)
    with_result = ins.name == "atom"
    address = decode.address(1 if with_result else 0)
    operands = [decode.source(i, kind) for i in range(2 if with_result else 1, len(ins.operands))]
    functions = {
        "add": lambda old, x: old + x,
        "min": lambda old, x: min(old, x),
        "max": lambda old, x: max(old, x),
        "and": lambda old, x: old & x,
        "or": lambda old, x: old | x,
        "xor": lambda old, x: old ^ x,
        "exch": lambda old, x: x,
        "cas": lambda old, x, y: y if old == x else old,
    }
    name = next((f for f in ins.fields if f in functions), None)
    if name is None or kind in ("bf16", "bf16x2", "f16x2"):
        raise decode.unknown()
    function = functions[name]

    def run(m, mask):
        threads = m.which(mask)
        addresses = at_threads(m, address(m), threads, mask)
        values = [at_threads(m, o(m), threads, mask) for o in operands]
        before = np.zeros(len(threads), of)
        shared = space == "shared"
        if shared:
            at = m.shared.offsets(addresses, m.block[threads], size, write=True)
            parts = [(m.shared.buffer, np.arange(len(threads)), at)]
        else:
            parts = m.memory.split(addresses, size, write=True)
        for buffer, mine, offsets in parts:
            view = buffer.view(size)
            if (
                buffer.written is not None
                and not buffer.written[buffer.granules(offsets, size)].all()
            ):
                m.note(f"an atomic on {buffer.name} that nobody has written")
            for i, offset in zip(mine.tolist(), offsets.tolist(), strict=True):
                old = view[offset].view(of)
                before[i] = old
                view[offset] = formats.bits_of(
                    np.asarray(function(old, *(v[i] for v in values)), of)
                )
        if with_result:
            decode_put(m, spread(m, before, threads, mask), mask)

    decode_put = decode.target(0) if with_result else None
    return run
