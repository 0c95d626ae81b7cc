"""PTX text into kernels: parameters, registers, shared memory, labels and instructions.

Not here: what an instruction does (`instructions/`), and which it may be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from ptx.faults import Fault
from ptx.formats import size_of

_LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)\s*")
_NAME = re.compile(r"[%\w$.]+")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<kind>\w+)\s+"
    r"(?:\.ptr\s*)?(?:\.(?:global|shared|const|local)\s+)?(?:\.align\s+\d+\s+)?"
    r"(?P<name>[\w$]+)\s*(?:\[(?P<count>\d+)\])?"
)
_VARIABLE = re.compile(
    r"\.shared\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<kind>\w+)\s+(?P<name>[\w$.]+)"
    r"\s*(?:\[(?P<count>\d*)\])?"
)
SPECIAL = re.compile(
    r"%(?:(?:tid|ntid|ctaid|nctaid)\.[xyz]|laneid|warpid|nwarpid|clock(?:64|_hi)?|globaltimer|smid"
    r"|lanemask_(?:eq|le|lt|ge|gt)|cluster_\w+\.[xyz]|cluster_ctarank|dynamic_smem_size)$"
)


@dataclass(frozen=True)
class Register:
    index: int
    bytes: int  # 0: a predicate
    negated: bool = False


@dataclass(frozen=True)
class Name:
    """A literal, a variable, a label or a special register: what it is depends on who asks."""

    text: str


@dataclass(frozen=True)
class Address:
    base: Register | Name
    offset: int


@dataclass(frozen=True)
class Vector:
    parts: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """Two results of one instruction: `%p1|%p2`."""

    first: Operand
    second: Operand


Operand = Register | Name | Address | Vector | Pair


@dataclass(frozen=True)
class Instruction:
    text: str
    name: str  # "ld"
    fields: tuple[str, ...]  # ("global", "v4", "b32")
    operands: tuple[Operand, ...]
    predicate: Register | None

    @property
    def opcode(self) -> str:
        return ".".join((self.name, *self.fields))

    @property
    def type(self) -> str:
        return self.fields[-1]

    def has(self, *fields: str) -> bool:
        return any(f in self.fields for f in fields)


@dataclass(frozen=True)
class Variable:
    """Shared memory that the program names; size 0: what the launch gives."""

    name: str
    align: int
    size: int


@dataclass
class Kernel:
    name: str
    parameters: dict[str, int]  # name -> offset
    parameter_bytes: int
    code: list[Instruction]
    labels: dict[str, int]  # name -> index in code
    registers: list[int]  # bytes of each, 0 for a predicate
    shared: list[Variable]
    threads: int | None = None  # of a block, where the program demands a number

    @cached_property
    def starts(self) -> frozenset[int]:
        """Where a jump may land."""
        return frozenset(self.labels.values())

    def granule(self, space: str) -> int:
        """The largest power of two that divides every access to this memory, at most 4."""
        smallest = 4
        for ins in self.code:
            if ins.name in ("ld", "st", "atom", "red") and ins.has(
                space, f"{space}::cta", f"{space}::cluster"
            ):
                smallest = min(smallest, size_of(ins.type))
            elif ins.name in ("ld", "st") and not ins.has("global", "shared", "param"):
                smallest = min(smallest, size_of(ins.type))  # a generic address
            elif ins.name in ("ldmatrix", "stmatrix", "wgmma"):
                smallest = min(smallest, 2)
        return smallest


@dataclass
class Module:
    text: str
    kernels: dict[str, Kernel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text = _plain(self.text)
        outside: list[Variable] = []
        at = 0
        for entry in re.finditer(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?([^{;]*)\{", text, re.S):
            if entry.start() < at:
                continue
            outside += _variables(text[at : entry.start()])
            end = _closing(text, entry.end())
            at = end
            self.kernels[entry[1]] = _kernel(
                entry[1], entry[2] or "", entry[3], text[entry.end() : end], outside
            )


def _plain(text: str) -> str:
    """Without comments and what is for debuggers."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    return re.sub(r"^\s*\.(?:loc|file|pragma)\b[^\n]*$", "", text, flags=re.M)


def _closing(text: str, start: int) -> int:
    """Where the brace that was opened before `start` closes."""
    depth, at = 1, start
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        at = start + brace.start()
        if depth == 0:
            return at
    raise Fault("a brace is not closed")


def _variables(text: str) -> list[Variable]:
    return [
        Variable(
            v["name"],
            int(v["align"] or size_of(v["kind"])),
            size_of(v["kind"]) * int(v["count"] or 0)
            if v["count"] is not None
            else size_of(v["kind"]),
        )
        for v in _VARIABLE.finditer(text)
    ]


class _Body:
    """One pass over the statements of a kernel. Names within inner braces are their own."""

    def __init__(self) -> None:
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.widths: list[int] = []
        self.scopes: list[dict[str, Register]] = [{}]
        self.families: list[dict[str, int]] = [{}]
        self.shared: list[Variable] = []

    def declare(self, text: str) -> None:
        found = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
        assert found is not None, text
        width = 0 if found[1] == "pred" else size_of(found[1]) if found[1] != "b128" else 16
        for name in found[2].split(","):
            family = re.match(r"([%\w$]+)<\d+>", name.strip())
            if family:
                self.families[-1][family[1]] = width
            else:
                self.scopes[-1][name.strip()] = self._new(width)

    def _new(self, width: int) -> Register:
        self.widths.append(width)
        return Register(len(self.widths) - 1, width)

    def register(self, name: str) -> Register:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        stem = name.rstrip("0123456789")
        for depth in range(len(self.families) - 1, -1, -1):
            if stem in self.families[depth]:
                made = self.scopes[depth][name] = self._new(self.families[depth][stem])
                return made
        raise Fault(f"no register {name} was declared")

    def known(self, name: str) -> bool:
        if any(name in scope for scope in self.scopes):
            return True
        return any(name.rstrip("0123456789") in family for family in self.families)

    def operand(self, text: str) -> Operand:
        text = text.strip()
        if text[0] == "{":
            return Vector(tuple(self.operand(part) for part in _split(text[1:-1])))
        if text[0] == "[":
            inside = text[1:-1].strip()
            found = re.fullmatch(r"([%\w$.]+)\s*(?:\+\s*(-?\w+))?", inside)
            if found is None:
                raise Fault(f"address {text}")
            base = self.operand(found[1])
            assert isinstance(base, Register | Name)
            return Address(base, int(found[2], 0) if found[2] else 0)
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first), self.operand(second))
        if text[0] == "!":
            register = self.register(text[1:].strip())
            return Register(register.index, register.bytes, negated=True)
        if not SPECIAL.match(text) and self.known(text):
            return self.register(text)
        return Name(text)

    def instruction(self, text: str) -> None:
        guard = re.match(r"@(!?)\s*([%\w$]+)\s+", text)
        predicate = None
        plain = text
        if guard:
            register = self.register(guard[2])
            predicate = Register(register.index, 0, negated=guard[1] == "!")
            plain = text[guard.end() :]
        found = re.match(r"([a-z][\w.:]*)\s*(.*)", plain, re.S)
        if found is None:
            raise Fault(f"statement {text[:100]}")
        name, *fields = found[1].split(".")
        self.code.append(
            Instruction(
                " ".join(text.split()),
                name,
                tuple(fields),
                tuple(self.operand(part) for part in _split(found[2])),
                predicate,
            )
        )

    def read(self, text: str) -> None:
        at = 0
        while True:
            space = re.compile(r"[\s;]*").match(text, at)
            at = space.end()
            if at >= len(text):
                return
            if text[at] == "{":
                self.scopes.append({})
                self.families.append({})
                at += 1
                continue
            if text[at] == "}":
                self.scopes.pop()
                self.families.pop()
                at += 1
                continue
            label = _LABEL.match(text, at)
            if label:
                self.labels[label[1]] = len(self.code)
                at = label.end()
                continue
            end = text.index(";", at)
            statement = text[at:end].strip()
            at = end + 1
            if statement.startswith(".reg"):
                self.declare(statement)
            elif statement.startswith(".shared"):
                self.shared += _variables(statement)
            elif statement.startswith("."):
                raise Fault(f"declaration {statement[:100]}")
            else:
                self.instruction(statement)


def _split(text: str) -> list[str]:
    """Operands at the commas outside of braces."""
    parts, depth, last = [], 0, 0
    for at, c in enumerate(text):
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            parts.append(text[last:at])
            last = at + 1
    rest = text[last:].strip()
    return [p.strip() for p in parts] + ([rest] if rest else [])


def _kernel(
    name: str, parameters: str, directives: str, body: str, outside: list[Variable]
) -> Kernel:
    offsets, offset = {}, 0
    for p in _PARAMETER.finditer(parameters):
        size = size_of(p["kind"])
        align = int(p["align"] or size)
        size *= int(p["count"] or 1)
        offset = -(-offset // align) * align
        offsets[p["name"]] = offset
        offset += size
    if len(offsets) != parameters.count(".param"):
        raise Fault(f"parameters of {name}: {parameters}")
    read = _Body()
    # The debug sections behind a body are no part of it.
    read.read(re.sub(r"\.section.*", "", body, flags=re.S))
    demanded = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", directives)
    threads = None
    if demanded:
        threads = 1
        for number in demanded.groups():
            threads *= int(number or 1)
    shared = [v for v in outside if v.name in body] + read.shared
    return Kernel(name, offsets, offset, read.code, read.labels, read.widths, shared, threads)
