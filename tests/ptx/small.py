"""Small programs in PTX for the tests of instructions: one warp or a few, words in, words out."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from ptx import formats
from ptx.count import Counts
from ptx.faults import Reports
from ptx.formats import Array
from ptx.launch import launch
from ptx.machine import Shape
from ptx.memory import GlobalMemory
from ptx.parse import Module
from ptx.program import Program

_REGISTERS = """
.reg .pred %p<64>;
.reg .b16 %h<64>;
.reg .b32 %r<400>;
.reg .b64 %d<64>;
"""


def run(
    body: str,
    arrays: Sequence[Array | tuple[int, type]],  # or (count, type): not written yet
    *,
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    reports: Reports | None = None,
    skew: int = 0,
    counts: Counts | None = None,
) -> list[Array]:
    """The arrays after the program: their addresses are its parameters, in %d0, %d1, ...

    %r0 is the thread, %r1 the block, %r2 the address of shared memory, `words` gets at them.
    """
    parameters = ", ".join(f".param .u64 a{i}" for i in range(len(arrays)))
    loads = "".join(f"ld.param.u64 %d{i}, [a{i}];\n" for i in range(len(arrays)))
    text = f"""
.extern .shared .align 16 .b8 memory[];
.visible .entry program({parameters}) {{
{_REGISTERS}
{loads}
mov.u32 %r0, %tid.x;
mov.u32 %r1, %ctaid.x;
mov.u32 %r2, memory;
{body}
ret;
}}
"""
    memory = GlobalMemory()
    held, packed = [], b""
    for i, array in enumerate(arrays):
        made = not isinstance(array, np.ndarray)
        array = np.zeros(*array) if made else np.ascontiguousarray(array).copy()
        held.append(array)
        packed += struct.pack("<Q", memory.add(array, f"a{i}", written=not made, skew=skew))
    found = Reports() if reports is None else reports
    program = Program(Module(text).kernels["program"])
    launch(
        program,
        Shape((blocks, 1, 1), (threads, 1, 1), shared),
        memory,
        packed,
        reports=found,
        counts=counts,
    )
    if reports is None:
        assert not found, str(found)
    return held


def at(pointer: str, index: str, size: int, to: str) -> str:
    """`to` = pointer + index x size; registers by name."""
    return f"mad.wide.u32 {to}, {index}, {size}, {pointer};\n"


def load(register: str, pointer: str, word: int = 0, words: int = 1) -> str:
    """Word `word` of the `words` of this thread into a 32-bit register; uses %d60."""
    return at(pointer, "%r0", 4 * words, "%d60") + f"ld.global.b32 {register}, [%d60+{4 * word}];\n"


def store(register: str, pointer: str, word: int = 0, words: int = 1) -> str:
    return at(pointer, "%r0", 4 * words, "%d60") + f"st.global.b32 [%d60+{4 * word}], {register};\n"


def on_words(body: str, inputs: Array, outputs: int, **options) -> Array:
    """[outputs, threads] of [inputs, threads] 32-bit words: %r10, %r11, ... become %r200, %r201, ..."""
    words = np.ascontiguousarray(inputs.astype(np.uint32).T)
    threads, count = words.shape
    text = "".join(load(f"%r{10 + i}", "%d0", i, count) for i in range(count))
    text += body
    text += "".join(store(f"%r{200 + i}", "%d1", i, outputs) for i in range(outputs))
    made = run(text, [words, (threads * outputs, np.uint32)], threads=threads, **options)[1]
    return np.ascontiguousarray(made.reshape(threads, outputs).T)


def elementwise(opcode: str, kinds: Sequence[str], result: str, *operands: Array | str) -> Array:
    """opcode d, a, b, ... in every thread: arrays of any length, or literals."""
    registers = {1: "h", 2: "h", 4: "r", 8: "d"}
    count = next(len(x) for x in operands if isinstance(x, np.ndarray))
    padded = -(-count // 32) * 32
    arrays, text, names = [], "", []
    for i, (kind, operand) in enumerate(zip(kinds, operands, strict=True)):
        if isinstance(operand, str):
            names.append(operand)
            continue
        size = formats.size_of(kind)
        array = np.resize(operand.astype(formats.OF[kind]), padded)
        if kind == "pred":
            text += at(f"%d{len(arrays)}", "%r0", 4, "%d50")
            text += f"ld.global.b32 %r{100 + i}, [%d50];\nsetp.ne.u32 %p{10 + i}, %r{100 + i}, 0;\n"
            array = array.astype(np.uint32)
            names.append(f"%p{10 + i}")
        else:
            name = f"%{registers[size]}{10 + i}"
            text += at(f"%d{len(arrays)}", "%r0", size, "%d50")
            text += f"ld.global.b{8 * size} {name}, [%d50];\n"
            names.append(name)
        arrays.append(array)
    out = formats.OF["u32" if result == "pred" else result]
    size = np.dtype(out).itemsize
    target = "%p9" if result == "pred" else f"%{registers[size]}9"
    text += f"{opcode} {target}, {', '.join(names)};\n"
    if result == "pred":
        text += "selp.b32 %r9, 1, 0, %p9;\n"
        target = "%r9"
    text += (
        at(f"%d{len(arrays)}", "%r0", size, "%d50") + f"st.global.b{8 * size} [%d50], {target};\n"
    )
    assert padded <= 1024
    found = run(text, [*arrays, (padded, out)], threads=padded)[-1][:count]
    return found.astype(bool) if result == "pred" else found
