"""A kernel made ready to run: each instruction decoded into a function, shared memory laid out.

Not here: the instructions themselves (`instructions/`), which register here under their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ptx import formats
from ptx.faults import Unknown
from ptx.formats import Array
from ptx.memory import SHARED_BASE
from ptx.parse import Address, Instruction, Kernel, Name, Operand, Pair, Register, Vector

if TYPE_CHECKING:
    from ptx.machine import Machine

Mask = Array | None
Run = Callable[["Machine", Mask], None]
Source = Callable[["Machine"], Any]  # an array over the threads, or one number for all of them
Target = Callable[["Machine", Any, Mask], None]
# (machine, place, all who are here, those whose predicate holds) -> where to go on, and who; None:
# back to the scheduler
Control = Callable[["Machine", int, Mask, Mask], "tuple[int, Mask] | None"]

PLAIN, CONTROL = 0, 1

Decoder = Callable[["Decode"], Run]
_PLAIN: dict[str, Decoder] = {}
_CONTROL: dict[str, Callable[[Decode], Control]] = {}


def instruction(*names: str) -> Callable[[Decoder], Decoder]:
    """Registers a decoder of the instructions with these names (what stands before the first dot)."""

    def register(decoder: Decoder) -> Decoder:
        for name in names:
            _PLAIN[name] = decoder
        return decoder

    return register


def control(*names: str):
    """The same for instructions that decide who runs next."""

    def register(decoder):
        for name in names:
            _CONTROL[name] = decoder
        return decoder

    return register


@dataclass(frozen=True)
class Step:
    kind: int
    run: Run | None
    control: Control | None
    predicate: int | None
    negated: bool
    text: str


class Program:
    """A kernel with its functions; made once, run by many gangs."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.variables: dict[str, int] = {}  # name -> address in shared memory
        at = SHARED_BASE
        for variable in sorted(kernel.shared, key=lambda v: v.size == 0):  # dynamic memory is last
            at = -(-at // variable.align) * variable.align
            if variable.size == 0:
                at = -(-at // 16) * 16
            self.variables[variable.name] = at
            at += variable.size
        self.shared_bytes = at - SHARED_BASE
        self.product_registers: set[int] = set()  # that wgmma reads or writes
        self.executed = [0] * len(kernel.code)  # by how many warps, each instruction
        self.steps = [self._step(ins) for ins in kernel.code]

    def _step(self, ins: Instruction) -> Step:
        decode = Decode(ins, self)
        predicate = None if ins.predicate is None else ins.predicate.index
        negated = ins.predicate is not None and ins.predicate.negated
        if ins.name in _CONTROL:
            made = _CONTROL[ins.name](decode)
            if made is not None:
                return Step(CONTROL, None, made, predicate, negated, ins.text)
        return Step(PLAIN, decode.plain(ins.name), None, predicate, negated, ins.text)


class Decode:
    """One instruction while it is decoded: its operands as functions of the machine."""

    def __init__(self, ins: Instruction, program: Program) -> None:
        self.ins, self.program = ins, program

    def unknown(self) -> Unknown:
        return Unknown(f"unknown form of an instruction: {self.ins.text}")

    def plain(self, name: str) -> Run:
        """The function of the instruction, as the decoder with this name makes it."""
        if name not in _PLAIN:
            raise Unknown(f"unknown instruction: {self.ins.text}")
        return _PLAIN[name](self)

    def source(self, operand: int | Operand, kind: str) -> Source:
        """What gives the operand as numbers of this type."""
        if isinstance(operand, int):
            operand = self.ins.operands[operand]
        wanted = formats.OF[kind]
        if isinstance(operand, Register):
            return _of_register(operand, kind)
        if isinstance(operand, Name):
            text = operand.text
            if (value := self.constant(text, kind)) is not None:
                return lambda m: value
            if text.startswith("%"):
                return lambda m: _resized(m.special[text], wanted)
        raise self.unknown()

    def constant(self, text: str, kind: str) -> Any:
        """A literal, or the address of a variable or parameter."""
        if (value := formats.immediate(text, kind)) is not None:
            return value
        for of in (self.program.variables, self.program.kernel.parameters):
            if text in of:
                return np.uint64(of[text]).astype(formats.OF[kind])
        return None

    def target(self, operand: int | Operand) -> Target:
        """What writes a result to the operand."""
        if isinstance(operand, int):
            operand = self.ins.operands[operand]
        if isinstance(operand, Name) and operand.text == "_":
            return lambda m, value, mask: None
        if not isinstance(operand, Register):
            raise self.unknown()
        index, width = operand.index, operand.bytes

        def put(m: Machine, value: Any, mask: Mask) -> None:
            value = _fitted(value, width)
            if mask is not None:
                m.registers[index] = np.where(mask, value, m.registers[index])
            else:
                m.registers[index] = value if value.ndim else np.full(m.total, value)

        return put

    def targets(self, operand: int | Operand) -> list[Target]:
        """The same for a vector, or for one register."""
        return [self.target(part) for part in self.parts(operand)]

    def sources(self, operand: int | Operand, kind: str) -> list[Source]:
        return [self.source(part, kind) for part in self.parts(operand)]

    def parts(self, operand: int | Operand) -> tuple[Operand, ...]:
        if isinstance(operand, int):
            operand = self.ins.operands[operand]
        if isinstance(operand, Vector):
            return operand.parts
        if isinstance(operand, Pair):
            return (operand.first, operand.second)
        return (operand,)

    def address(self, operand: int) -> Source:
        """int64 addresses; one number for all threads where it is known beforehand."""
        found = self.ins.operands[operand]
        if not isinstance(found, Address):
            raise self.unknown()
        offset = found.offset
        if isinstance(found.base, Name):
            value = self.constant(found.base.text, "s64")
            if value is None:
                raise self.unknown()
            return lambda m: np.int64(value + offset)
        index = found.base.index
        return lambda m: m.registers[index].astype(np.int64) + offset


def _of_register(register: Register, kind: str) -> Source:
    index, wanted = register.index, formats.OF[kind]
    if kind == "pred":
        if register.negated:
            return lambda m: ~m.registers[index]
        return lambda m: m.registers[index]
    size = formats.size_of(kind)
    if register.bytes == size:
        if wanted is formats.BITS[size]:
            return lambda m: m.registers[index]
        return lambda m: m.registers[index].view(wanted)
    if register.bytes < size:
        raise Unknown(f"a register of {register.bytes} bytes read as {kind}")
    narrow = formats.BITS[size]
    return lambda m: m.registers[index].astype(narrow).view(wanted)


def _resized(values: Array, wanted: type) -> Array:
    return values if values.dtype == wanted else values.astype(wanted)


def _fitted(value: Any, width: int) -> Any:
    """Bits of a register's width; signed numbers are extended by their sign."""
    if width == 0:
        return value
    size = value.dtype.itemsize
    if size == width:
        return formats.bits_of(value)
    if size > width:
        raise Unknown(f"a result of {size} bytes for a register of {width}")
    if value.dtype.kind == "i":
        return value.astype(formats.SIGNED[width]).view(formats.BITS[width])
    return formats.bits_of(value).astype(formats.BITS[width])
