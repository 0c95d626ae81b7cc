"""Machine code read as a person reads it: `recorded.sass`, and short listings made up for a case."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda_check import sass

RECORDED = sass.functions((Path(__file__).parent / "recorded.sass").read_text())


def code(text: str) -> list[sass.Instruction]:
    """A line for each instruction: what it is, and where wanted `; sets 2`, `; waits 0 2`."""
    lines = []
    for place, line in enumerate(text.strip().splitlines()):
        what, *control = (part.strip() for part in line.split(";"))
        said = {name: [int(n) for n in numbers] for name, *numbers in map(str.split, control)}
        waits = sum(1 << n for n in said.get("waits", []))
        bits = (said.get("sets", [7])[0] << 5 | waits << 11) << 41
        lines.append(f"/*{16 * place:04x}*/ {what} ; /* 0x{0:016x} */\n /* 0x{bits:016x} */")
    return sass.functions("Function : f\n" + "\n".join(lines))["f"]


def test_an_instruction_of_the_recording() -> None:
    load = next(i for i in RECORDED["walk"] if i.address == 0xF0)
    assert (load.opcode, load.guarded, load.bits, load.loads) == ("LDG.E.128", False, 128, True)
    assert load.sets == 2 and load.waits == 1 << 0  # for its address
    use = next(i for i in RECORDED["walk"] if i.address == 0x110)
    assert use.waits == 1 << 2 and use.sets is None
    jump = next(i for i in RECORDED["walk"] if i.address == 0x2D0)
    assert jump.guarded and jump.target == 0xE0


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E", 32),
        ("LDG.E.64.CONSTANT", 64),
        ("LDGSTS.E.BYPASS.LTC128B.128", 128),
        ("LDG.E.U16", 16),
        ("STG.E.U8", 8),
        ("LDG.E.ENL2.256", 256),
    ],
)
def test_widths(opcode, bits) -> None:
    (one,) = code(f"{opcode} R0, [R2]")
    assert one.bits == bits


def test_a_loop_with_a_division_by_hand() -> None:
    # 0xe0 to 0x2d0, 32 instructions; 15 in front of it or behind; the division's own are called.
    # The second load is issued when the first has come: 16 bytes, not 20.
    assert sass.summary(RECORDED["walk"]) == {
        "instructions": 152,
        "loop": 32,
        "loads": {"128": 1, "32": 1},
        "copies": 0,
        "bulk": 0,
        "stores": {"64": 1},
        "in_flight": 16,
        "calls": 1,
        "barriers": 0,
        "depths": [[15, 0, 0], [32, 20, 0]],
        "tensor_cores": 0,
    }


def test_a_pipeline_of_three_stages_by_hand() -> None:
    # 0x1a0 to 0x320, 25 instructions. After a copy is issued two older ones are on their way: 3 x 16.
    read = sass.summary(RECORDED["staged"])
    assert read["loop"] == 25 and read["instructions"] == 57
    assert read["loads"] == {"128": 1} and read["copies"] == 1
    assert read["in_flight"] == 48
    assert read["barriers"] == 2
    assert read["depths"] == [[32, 32, 0], [25, 16, 0]]


def test_code_that_was_moved_behind_the_end_is_no_loop() -> None:
    made = code("""
        ISETP P0, R0
        @P0 BRA 0x50
        LDG.E R2, [R4]
        STG.E [R4], R2
        EXIT
        IADD3 R0, R0, 0x1
        BRA 0x20
        BRA 0x70
        NOP
    """)
    graph = sass.blocks(made)
    assert sass.find_loops(graph) == {}
    read = sass.summary(made)
    assert read["loop"] == 0 and read["instructions"] == 7
    assert read["depths"] == [[7, 4, 0]]


def test_a_branch_of_lanes_that_disagree_is_not_taken() -> None:
    made = code("""
        BRA.DIV UR4, 0x30
        SHFL R0, R1
        EXIT
        WARPSYNC.COLLECTIVE R2, 0x50
        BRA 0x10
        EXIT
    """)
    assert [i.address for b in sass.blocks(made).values() for i in b.code] == [0, 0x10, 0x20]


def test_a_branch_under_a_predicate_that_it_names_goes_on() -> None:
    made = code("""
        LDG.E R2, [R4]
        BRA.U UP0, 0x0
        EXIT
    """)
    graph = sass.blocks(made)
    assert graph[0].next == [0, 0x20] and sass.find_loops(graph) == {0: {0}}


def test_lanes_meet_where_their_barrier_says() -> None:
    made = code("""
        BSSY B0, 0x50
        @P0 BRA 0x40
        IADD3 R0, R0, 0x1
        BSYNC B0
        BSYNC B0
        EXIT
    """)
    graph = sass.blocks(made)
    assert graph[0x20].next == [0x50] and graph[0x40].next == [0x50]


NESTED = """
    MOV R0, RZ
    LDG.E R2, [R4]
    STG.E [R4], R2
    LDG.E R3, [R6]
    FFMA R8, R8, R8, R8
    @P1 BRA 0x40
    @P0 BRA 0x30
    @P2 BRA 0x10
    EXIT
"""


def test_depths_and_the_main_loop_by_hand() -> None:
    # Three loops: 0x10-0x70, in it 0x30-0x60, in that 0x40-0x50 with arithmetic alone.
    graph = sass.blocks(code(NESTED))
    loops = sass.find_loops(graph)
    assert set(loops) == {0x10, 0x30, 0x40}
    # Two accesses in the outer one, one in the inner one, which runs ten times as often.
    assert sass.main_loop(graph, loops) == 0x30
    read = sass.summary(code(NESTED))
    assert read["loop"] == 4
    assert read["depths"] == [[2, 0, 0], [3, 4, 0], [2, 4, 0], [0, 0, 2]]


def test_a_loop_that_fills_a_table_is_outside() -> None:
    made = code("""
        LDG.E R2, [R4]
        @P0 BRA 0x0
        LDG.E.128 R4, [R8]
        LDG.E.128 R4, [R8]
        LDG.E.128 R4, [R8]
        STG.E.128 [R8], R4
        STG.E.128 [R8], R4
        @P1 BRA 0x20
        EXIT
    """)
    assert sass.summary(made)["depths"] == [[3, 4, 0], [6, 48, 0]]


def test_no_loop_moves_anything() -> None:
    made = code("""
        FFMA R8, R8, R8, R8
        @P0 BRA 0x0
        LDG.E R2, [R4]
        EXIT
    """)
    read = sass.summary(made)
    assert read["loop"] == 0 and read["loads"] == {"32": 1}


def test_in_flight_by_hand() -> None:
    made = code("""
        LDG.E.128 R4, [R2] ; sets 0
        LDG.E.64 R8, [R2] ; sets 1
        LDG.E R10, [R2] ; sets 2
        FADD R0, R8, R9 ; waits 1
        LDG.E.64 R12, [R2] ; sets 3
        FADD R0, R10, R12 ; waits 2 3
    """)
    # 16 + 8 + 4; with the second the first has come, so then 4 + 8.
    assert sass.in_flight(made, repeats=False) == 28


def test_in_flight_of_loads_that_the_next_pass_waits_for() -> None:
    made = code("""
        LDG.E.128 R4, [R2] ; sets 0
        FADD R0, R8, R9 ; waits 1
        FADD R0, R4, R5 ; waits 0
        LDG.E.64 R8, [R2] ; sets 1
    """)
    assert sass.in_flight(made, repeats=False) == 16
    assert sass.in_flight(made, repeats=True) == 24


def test_of_two_loops_alike_the_one_with_less_under_way() -> None:
    made = code("""
        LDG.E.128 R4, [R2] ; sets 0
        LDG.E.128 R8, [R2] ; sets 1
        FADD R0, R4, R8 ; waits 0 1
        @P0 BRA 0x0
        LDG.E.128 R4, [R2] ; sets 0
        FADD R0, R4, R4 ; waits 0
        FADD R0, R4, R4
        LDG.E.128 R8, [R2] ; sets 0
        FADD R0, R8, R8 ; waits 0
        @P1 BRA 0x40
        EXIT
    """)
    read = sass.summary(made)
    assert read["loop"] == 4 and read["in_flight"] == 16
    assert read["depths"] == [[1, 0, 0], [10, 64, 0]]


def test_copies_by_the_copy_engine_are_counted_and_not_measured() -> None:
    made = code("""
        UBLKCP [UR4], [UR6], UR8
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24
        HMMA.16816.F32.BF16 R4, R8, R12, R4
        EXIT
    """)
    read = sass.summary(made)
    assert (read["bulk"], read["in_flight"], read["tensor_cores"]) == (1, 0, 2)
