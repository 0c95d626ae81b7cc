"""Machine code of a GPU kernel, read from what cuobjdump prints of it: loops, loads, what is counted.

Counts are of what stands in the code, each instruction once. Not here: the tools that print the code
(`compiled.py`), times and other predictions (`predict.py`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_FUNCTION = re.compile(r"^\s*Function : (\S+)\s*$", re.MULTILINE)
# An instruction is two words, printed on two lines; the second ends in the control bits.
_INSTRUCTION = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)"
    r"(?P<operands>[^;]*);\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x(?P<control>[0-9a-f]{16}) \*/"
)
_TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")
_BARRIER = re.compile(r"\bB\d+\b")
_TENSOR_CORES = re.compile(r"[HIQDO]MMA|HGMMA|[QI]GMMA|UTC\w*MMA")
_PASSES = 8  # over a loop, until loads that were issued passes ahead have all been counted


@dataclass(frozen=True)
class Instruction:
    """One machine instruction."""

    address: int
    guarded: bool  # runs in some lanes alone, or in none
    opcode: str  # LDG.E.128
    operands: str
    sets: int | None  # the scoreboard that it holds until its result is there
    waits: int  # mask of the scoreboards that must be free before it starts

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        found = _TARGET.search(self.operands)
        return int(found[1], 16) if found else None

    @property
    def bits(self) -> int:
        """What a lane loads or stores."""
        for part in self.opcode.split(".")[1:]:
            if found := re.fullmatch(r"[US]?(8|16|64|128|256)|ENL2", part):
                return int(found[1] or 256)
        return 32

    @property
    def loads(self) -> bool:
        """Reads from global memory, to registers or (LDGSTS, cp.async) to shared memory."""
        return self.name in ("LDG", "LD", "LDGSTS")

    @property
    def stores(self) -> bool:
        return self.name in ("STG", "ST")

    @property
    def bulk(self) -> bool:
        """A copy by the copy engine; how many bytes, only a register knows."""
        return self.name in ("UBLKCP", "UTMALDG", "UTMASTG")

    @property
    def moves(self) -> bool:
        return self.loads or self.stores or self.bulk

    @property
    def counts(self) -> bool:
        """Is no padding: neither a NOP nor the jump to itself behind the end."""
        return self.name != "NOP" and (self.name != "BRA" or self.target != self.address)


def functions(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each function, by its mangled name, from `cuobjdump -sass`.

    Control bits (scoreboards) as in Jia et al., arXiv 1804.06826, section 2.1: of the 128 bits, from
    105 on, 4 of stall, 1 of yield, 3 for the scoreboard of the result (7: none), 3 for that of the
    operands, 6 to wait for.
    """
    parts = _FUNCTION.split(text)
    return {
        name: [_instruction(found) for found in _INSTRUCTION.finditer(code)]
        for name, code in zip(parts[1::2], parts[2::2], strict=True)
    }


def _instruction(found: re.Match[str]) -> Instruction:
    control = int(found["control"], 16) >> 41
    sets = control >> 5 & 7
    return Instruction(
        address=int(found["address"], 16),
        guarded=found["guard"] is not None,
        opcode=found["opcode"],
        operands=found["operands"].strip(),
        sets=None if sets == 7 else sets,
        waits=control >> 11 & 63,
    )


@dataclass
class Block:
    """Instructions that run one after the other, and where they may go from there."""

    code: list[Instruction]
    next: list[int] = field(default_factory=list)  # addresses
    loops: tuple[int, ...] = ()  # the loops around it, by the address of their first block


def blocks(code: list[Instruction]) -> dict[int, Block]:
    """Basic blocks by address: those that a warp reaches whose lanes agree.

    A branch on lanes that disagree (BRA.DIV) is taken as not taken, and a call (CALL, a division as a
    rule) as one instruction, so neither what the lanes do one by one nor called code is among them.
    """
    leaders = {i.target for i in code if _jumps(i) or i.name == "BSSY"}
    made: dict[int, Block] = {}
    current = Block([])
    meets: dict[str, int] = {}  # barrier register -> where its lanes go on together
    for instruction, after in zip(code, [*code[1:], None], strict=True):
        if not current.code:
            made[instruction.address] = current
        current.code.append(instruction)
        if instruction.name == "BSSY":
            meets[_BARRIER.search(instruction.operands)[0]] = instruction.target
        ends = _jumps(instruction) or _stops(instruction)
        if after is not None and after.address not in leaders and not ends:
            continue
        if instruction.name == "BSYNC":
            # The lanes meet at the place that its BSSY named, as a rule the next instruction.
            register = _BARRIER.search(instruction.operands)[0]
            current.next = [meets[register]] if register in meets else []
        elif _jumps(instruction):
            current.next = [instruction.target]
        if after is not None and _goes_on(instruction, bool(current.next)):
            current.next.append(after.address)
        current = Block([])
    reached, left = set(), [code[0].address]
    while left:
        address = left.pop()
        if address not in reached:
            reached.add(address)
            left += made[address].next
    return {address: made[address] for address in sorted(reached)}


def _jumps(i: Instruction) -> bool:
    return (
        i.name == "BRA" and ".DIV" not in i.opcode and i.target is not None
    ) or i.name == "BSYNC"


def _stops(i: Instruction) -> bool:
    return i.name in ("EXIT", "RET", "BRX", "BRXU", "JMP", "JMX")


def _goes_on(i: Instruction, elsewhere: bool) -> bool:
    """Whether the next instruction may follow."""
    if i.name == "BSYNC":
        return not elsewhere
    if _stops(i):
        return i.guarded
    # Without a guard a branch may still be under a predicate, which it then names: BRA.U UP0, 0x100.
    return not _jumps(i) or i.guarded or re.search(r"\bU?P\d", i.operands) is not None


def find_loops(graph: dict[int, Block]) -> dict[int, set[int]]:
    """The blocks of each loop, by the address of its first; sets `loops` of every block.

    A loop is what can reach a branch back to a block that every way from the start to that branch
    leads through (a natural loop: Aho et al., Compilers, section 9.6). So code that was moved to the
    end of a kernel and jumps back into the middle is none.
    """
    order: list[int] = []
    _after(next(iter(graph)), graph, order)
    place = {address: at for at, address in enumerate(reversed(order))}
    before: dict[int, list[int]] = defaultdict(list)
    for address, block in graph.items():
        for to in block.next:
            before[to].append(address)
    above = _dominators(list(place), place, before)
    found: dict[int, set[int]] = defaultdict(set)
    for address, block in graph.items():
        for to in block.next:
            if to in graph and _dominates(to, address, above):
                body, left = {to}, [address]
                while left:
                    if (one := left.pop()) not in body:
                        body.add(one)
                        left += before[one]
                found[to] |= body
    for address, block in graph.items():
        inside = [first for first, body in found.items() if address in body]
        block.loops = tuple(sorted(inside, key=lambda first: -len(found[first])))
    return dict(found)


def _after(start: int, graph: dict[int, Block], order: list[int]) -> None:
    """Blocks in post-order; without recursion, which Python limits."""
    seen, stack = {start}, [(start, iter(graph[start].next))]
    while stack:
        address, following = stack[-1]
        for to in following:
            if to in graph and to not in seen:
                seen.add(to)
                stack.append((to, iter(graph[to].next)))
                break
        else:
            order.append(address)
            stack.pop()


def _dominators(
    order: list[int], place: dict[int, int], before: dict[int, list[int]]
) -> dict[int, int]:
    """The nearest block that every way to a block leads through (Cooper, Harvey, Kennedy 2001)."""
    above = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for address in order[1:]:
            known = [one for one in before[address] if one in above]
            new = known[0]
            for other in known[1:]:
                while new != other:
                    while place[new] > place[other]:
                        new = above[new]
                    while place[other] > place[new]:
                        other = above[other]
            if above.get(address) != new:
                above[address], changed = new, True
    return above


def _dominates(one: int, other: int, above: dict[int, int]) -> bool:
    while other != one and above[other] != other:
        other = above[other]
    return other == one


def main_loop(graph: dict[int, Block], loops: dict[int, set[int]]) -> int | None:
    """The first block of the loop that most numbers are moved in; None: no loop moves any.

    The one with most accesses to global memory of its own (not in loops inside it), where a loop is
    taken to run ten times for each pass of the one around it; among equals the one that loads more,
    then the shorter one.
    """

    def rank(first: int) -> tuple[int, ...]:
        own = _own(first, graph)
        moved, loaded = sum(i.moves for i in own), sum(i.loads for i in own)
        return moved * 10 ** len(graph[first].loops), loaded, -len(own), -first

    best = max(loops, key=rank, default=None)
    return None if best is None or rank(best)[0] == 0 else best


def _own(first: int, graph: dict[int, Block]) -> list[Instruction]:
    """The instructions of a loop, without those of loops inside it."""
    return [i for b in graph.values() if b.loops and b.loops[-1] == first for i in b.code]


def in_flight(code: list[Instruction], *, repeats: bool) -> int:
    """Most bytes of global loads that a lane has under way at a time, as the instructions stand.

    A load into registers is under way until an instruction waits for its scoreboard, and what was
    issued before it has come then, too. A copy to shared memory (LDGSTS) is under way until its group
    (LDGDEPBAR closes one) is waited for (DEPBAR.LE: but for the newest groups). A loop is walked often
    enough to count loads of passes ahead. Not known: how many lanes a guard lets load, bulk copies.
    """
    most = 0
    under_way: list[tuple[int, int | None]] = []  # (bytes, scoreboard), the oldest first
    groups: list[int] = [0]  # bytes of each group of copies, the newest last
    for _ in range(_PASSES if repeats else 1):
        most = 0
        for i in code:
            arrived = [n for n, (_, board) in enumerate(under_way) if i.waits >> board & 1]
            if arrived:
                del under_way[: arrived[-1] + 1]
            if i.name == "LDGSTS":
                groups[-1] += i.bits // 8
            elif i.name == "LDGDEPBAR":
                groups.append(0)
            elif i.name == "DEPBAR" and (found := re.search(r"SB\d, 0x([0-9a-f]+)", i.operands)):
                closed = groups[:-1]
                keep = min(int(found[1], 16), len(closed))
                groups = closed[len(closed) - keep :] + groups[-1:]
            elif i.loads and i.sets is not None:
                under_way.append((i.bits // 8, i.sets))
            most = max(most, sum(size for size, _ in under_way) + sum(groups))
    return most


def _widths(code: Iterable[Instruction]) -> dict[str, int]:
    """How many instructions of each width, the widest first."""
    counted = Counter(i.bits for i in code)
    return {str(bits): counted[bits] for bits in sorted(counted, reverse=True)}


def _depths(graph: dict[int, Block], main: int | None) -> list[list[int]]:
    """[instructions, bytes that a lane loads, instructions of inner loops without memory], one such
    line for what is outside of loops, one for loops, one for loops within loops, and so on.

    An outermost loop that has less than a quarter of the accesses that the one with the main loop has,
    or more than four times as many, is another kind of work (it fills a table, waits, or writes the
    results) and taken to be outside.
    """
    moved = Counter[int | None]()
    for block in graph.values():
        for first in block.loops or (None,):
            moved[first] += sum(i.moves for i in block.code)
    usual = 0 if main is None else moved[graph[main].loops[0]]
    lines: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for block in graph.values():
        outside = not block.loops or not usual / 4 <= moved[block.loops[0]] <= usual * 4
        line = lines[0 if outside else len(block.loops)]
        counted = sum(i.counts for i in block.code)
        plain = outside or len(block.loops) == 1 or moved[block.loops[-1]]
        line[0 if plain else 2] += counted
        line[1] += sum(i.bits // 8 for i in block.code if i.loads)
    return [lines[depth] for depth in range(max(lines) + 1)]


def _body(inside: Iterable[int], graph: dict[int, Block]) -> list[Instruction]:
    return [i for address in sorted(inside) for i in graph[address].code]


def summary(code: list[Instruction]) -> dict[str, Any]:
    """What the resource table holds of one kernel.

    `instructions`: all but padding, called code among them. `loop`: those of the main loop, with loops
    inside it; 0 where there is none, and what follows is then of the whole kernel. `loads`, `stores`:
    how many instructions of each width in bits; `copies`: how many of the loads go to shared memory by
    themselves; `bulk`: copies by the copy engine. `in_flight`: bytes a lane. `calls`; `barriers` of the
    block. Of the whole kernel: `depths` (see `_depths`), `tensor_cores`.
    """
    graph = blocks(code)
    loops = find_loops(graph)
    main = main_loop(graph, loops)
    body = _body(graph if main is None else loops[main], graph)
    alike = [body]
    if main is not None:  # queries in one loop, keys in the next: the one with less under way
        moves = Counter(i.opcode for i in body if i.moves)
        bodies = [_body(inside, graph) for inside in loops.values()]
        alike = [b for b in bodies if Counter(i.opcode for i in b if i.moves) == moves]
    return {
        "instructions": sum(i.counts for i in code),
        "loop": 0 if main is None else sum(i.counts for i in body),
        "loads": _widths(i for i in body if i.loads),
        "copies": sum(i.name == "LDGSTS" for i in body),
        "bulk": sum(i.bulk for i in body),
        "stores": _widths(i for i in body if i.stores),
        "in_flight": min(in_flight(other, repeats=main is not None) for other in alike),
        "calls": sum(i.name == "CALL" for i in body),
        "barriers": sum(i.name == "BAR" for i in body),
        "depths": _depths(graph, main),
        "tensor_cores": sum(_TENSOR_CORES.match(i.opcode) is not None for i in code),
    }
