"""What the interpreter must find, each in a program of a few lines; and what it must not.

Kernels that were broken on purpose are in test_mutations.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from ptx.count import Counts
from ptx.faults import Fault, Reports
from ptx.small import at, load, run, store

WORDS = np.arange(64, dtype=np.uint32)


def reports_of(body: str, arrays, **options) -> str:
    reports = Reports()
    run(body, arrays, reports=reports, **options)
    return str(reports)


# --- where an access may go ----------------------------------------------------------------------


def test_a_read_beyond_the_end() -> None:
    with pytest.raises(Fault, match="read of 4 bytes at byte 256 of a0, which has 256"):
        run(load("%r10", "%d0"), [WORDS], threads=96)


def test_a_read_before_the_start() -> None:
    with pytest.raises(Fault, match="at byte -4 of a0"):
        run("ld.global.b32 %r10, [%d0+-4];", [WORDS])


def test_a_wide_read_that_begins_inside() -> None:
    with pytest.raises(Fault, match="read of 16 bytes at byte 248"):
        run("ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%d0+248];", [WORDS], skew=8)


def test_a_write_beyond_the_end() -> None:
    with pytest.raises(Fault, match="write of 4 bytes at byte 256 of a0"):
        run(store("%r0", "%d0"), [WORDS], threads=96)


def test_an_address_of_nothing() -> None:
    with pytest.raises(Fault, match="is in no buffer"):
        run("mov.b64 %d5, 64;\nld.global.b32 %r10, [%d5];", [WORDS])


@pytest.mark.parametrize(("what", "skew"), [("v2.b32 {%r10, %r11}", 4), ("v4.b32 {%r10, %r11, %r12, %r13}", 8), ("b64 %d9", 4)])  # fmt: skip
def test_a_base_that_is_not_aligned(what, skew) -> None:
    run(f"ld.global.{what}, [%d0];", [WORDS], skew=16)
    with pytest.raises(Fault, match="misaligned access"):
        run(f"ld.global.{what}, [%d0];", [WORDS], skew=skew)


def test_shared_memory_has_an_end_and_an_alignment() -> None:
    run("st.shared.b32 [%r2+252], %r0;", [], threads=32, shared=256, reports=Reports())
    with pytest.raises(Fault, match="write of 4 bytes at byte 256 of shared memory, which has 256"):
        run("st.shared.b32 [%r2+256], %r0;", [], shared=256)
    with pytest.raises(Fault, match="misaligned"):
        run("ld.shared.v2.b32 {%r10, %r11}, [%r2+4];", [], shared=256)
    with pytest.raises(Fault, match=r"read of 4 bytes at byte -1024 of shared memory"):
        run("mov.b32 %r10, 0;\nld.shared.b32 %r10, [%r10];", [], shared=256)


def test_a_predicate_keeps_threads_out() -> None:
    body = f"setp.lt.u32 %p1, %r0, 64;\nmov.b32 %r10, 9;\n{at('%d0', '%r0', 4, '%d60')}@%p1 ld.global.b32 %r10, [%d60];\n{store('%r10', '%d1')}"
    found = run(body, [WORDS, (96, np.uint32)], threads=96)[1]
    assert found.tolist() == [*range(64), *[9] * 32]


def test_a_trap_is_a_fault() -> None:
    run("setp.gt.u32 %p1, %r0, 99;\n@%p1 trap;", [])
    with pytest.raises(Fault, match="trap"):
        run("setp.gt.u32 %p1, %r0, 9;\n@%p1 trap;", [])


# --- what was written ----------------------------------------------------------------------------


def test_a_read_of_what_nobody_wrote() -> None:
    assert "a0 that nobody has written" in reports_of(load("%r10", "%d0"), [(64, np.uint32)])
    half = (
        "setp.lt.u32 %p1, %r0, 16;\n"
        + at("%d0", "%r0", 4, "%d60")
        + "@%p1 st.global.b32 [%d60], %r0;\n"
    )
    assert "a0 that nobody has written" in reports_of(half + load("%r10", "%d0"), [(64, np.uint32)])
    whole = store("%r0", "%d0") + load("%r10", "%d0")
    assert reports_of(whole, [(32, np.uint32)]) == ""
    assert "shared memory that nobody has written" in reports_of(
        "ld.shared.b32 %r10, [%r2];", [], shared=16
    )


def test_two_threads_that_write_one_place() -> None:
    one = at("%d0", "%r10", 4, "%d60") + "st.global.b32 [%d60], %r11;\n"
    same = "shr.u32 %r10, %r0, 1;\nmov.b32 %r11, %r10;\n"
    assert reports_of(same + one, [(64, np.uint32)]) == ""  # what both write is the same
    differ = "shr.u32 %r10, %r0, 1;\nmov.b32 %r11, %r0;\n"
    assert "CONFLICT" in reports_of(differ + one, [(64, np.uint32)])
    shared = "shr.u32 %r10, %r0, 1;\nshl.b32 %r10, %r10, 2;\nadd.u32 %r10, %r10, %r2;\nst.shared.b32 [%r10], %r0;\n"
    assert "CONFLICT" in reports_of(shared, [], shared=64)


def test_sums_that_differ_in_their_last_bits_are_told_apart() -> None:
    """1 and 1 + 2^-23 in the lanes of a pair, to one place."""
    body = """
    and.b32 %r10, %r0, 1;
    add.u32 %r11, %r10, 0x3F800000;
    st.shared.b32 [%r2], %r11;
    """
    reports = Reports()
    run(body, [], shared=16, reports=reports)
    assert not reports and len(reports.remarks) == 1


# --- races ---------------------------------------------------------------------------------------

MINE = "shl.b32 %r10, %r0, 2;\nadd.u32 %r10, %r10, %r2;\n"  # the word of a thread
WRITE = MINE + "st.shared.b32 [%r10], %r0;\n"


def reading(neighbour: int) -> str:
    return f"xor.b32 %r11, %r0, {neighbour};\nshl.b32 %r11, %r11, 2;\nadd.u32 %r11, %r11, %r2;\nld.shared.b32 %r12, [%r11];\n"


@pytest.mark.parametrize(
    ("barrier", "neighbour", "finds"),
    [("", 0, False), ("", 1, True), ("bar.warp.sync -1;", 1, False), ("bar.warp.sync -1;", 32, True),
     ("bar.sync 0;", 32, False), ("barrier.sync 0;", 32, False), ("", 32, True)],
)  # fmt: skip
def test_a_read_of_what_another_wrote(barrier, neighbour, finds) -> None:
    found = reports_of(WRITE + barrier + reading(neighbour), [], threads=64, shared=256)
    assert ("RACE: a read of shared memory" in found) == finds, found


@pytest.mark.parametrize(
    ("barrier", "neighbour", "finds"),
    [("", 0, False), ("", 1, True), ("bar.warp.sync -1;", 1, False), ("bar.warp.sync -1;", 32, True),
     ("bar.sync 0;", 32, False), ("", 32, True)],
)  # fmt: skip
def test_a_write_over_what_another_read(barrier, neighbour, finds) -> None:
    before = WRITE + "bar.sync 0;\n" + reading(neighbour)
    after = "add.u32 %r13, %r0, 1;\nst.shared.b32 [%r10], %r13;\n"
    found = reports_of(before + barrier + after, [], threads=64, shared=256)
    assert ("RACE: a write over what another thread has read" in found) == finds, found


def test_a_write_over_what_many_read() -> None:
    """All 64 threads read the first word: a barrier of the block is needed, one of the warp is not enough."""
    before = WRITE + "bar.sync 0;\nld.shared.b32 %r12, [%r2];\n"
    after = "add.u32 %r13, %r0, 1;\nst.shared.b32 [%r10], %r13;\n"
    for barrier, finds in (("", True), ("bar.warp.sync -1;\n", True), ("bar.sync 0;\n", False)):
        found = reports_of(before + barrier + after, [], threads=64, shared=256)
        assert ("has read" in found) == finds, (barrier, found)


def test_a_write_over_what_another_wrote() -> None:
    other = "xor.b32 %r11, %r0, 32;\nshl.b32 %r11, %r11, 2;\nadd.u32 %r11, %r11, %r2;\nst.shared.b32 [%r11], %r0;\n"
    assert "RACE: a write over what another thread has written" in reports_of(
        WRITE + other, [], threads=64, shared=256
    )
    assert reports_of(WRITE + "bar.sync 0;\n" + other, [], threads=64, shared=256) == ""


def test_what_a_warp_knows_it_tells_its_block() -> None:
    """Lane 0 learns of the other warp at a barrier; all others of lane 0 through their warp."""
    body = WRITE + "bar.sync 0;\n" + reading(32) + "bar.warp.sync -1;\n" + reading(33)
    assert reports_of(body, [], threads=64, shared=256) == ""


def test_a_barrier_of_some_warps() -> None:
    """Two of four warps meet at barrier 1: they know each other, and nobody else knows them."""
    body = f"""
    {WRITE}
    setp.ge.u32 %p1, %r0, 64;
    @%p1 bra REST;
    bar.sync 1, 64;
    {reading(32)}
    REST:
    """
    assert reports_of(body, [], threads=128, shared=512) == ""
    wrong = body.replace("REST:", reading(64) + "REST:")
    assert "RACE" in reports_of(wrong, [], threads=128, shared=512)


def test_blocks_do_not_know_each_other() -> None:
    """Block 1 reads what block 0 wrote to global memory, in the same launch."""
    body = f"""
    setp.eq.u32 %p1, %r1, 0;
    @!%p1 bra READ;
    {store("%r0", "%d0")}
    bra.uni DONE;
    READ:
    {load("%r10", "%d0")}
    DONE:
    """
    assert "RACE: a read of a0" in reports_of(body, [WORDS], blocks=2)
    write, read = store("%r0", "%d0"), load("%r10", "%d0")
    other = body.replace(write, "first").replace(read, write).replace("first", read)
    assert "RACE: a write over what another thread has read of a0" in reports_of(
        other, [WORDS], blocks=2
    )
    assert "RACE" in reports_of(body, [WORDS], blocks=80)  # of another gang, too


def test_global_memory_within_a_block() -> None:
    neighbour = (
        f"xor.b32 %r11, %r0, 32;\n{at('%d0', '%r11', 4, '%d61')}ld.global.b32 %r12, [%d61];\n"
    )
    assert "RACE" in reports_of(store("%r0", "%d0") + neighbour, [WORDS], threads=64)
    assert reports_of(store("%r0", "%d0") + "bar.sync 0;\n" + neighbour, [WORDS], threads=64) == ""


# --- asynchronous copies -------------------------------------------------------------------------

COPY = MINE + at("%d0", "%r0", 4, "%d60") + "cp.async.ca.shared.global [%r10], [%d60], 4;\n"
COMMIT, WAIT = "cp.async.commit_group;\n", "cp.async.wait_group 0;\n"


def copied(middle: str, neighbour: int = 0) -> tuple[str, np.ndarray]:
    reports = Reports()
    body = COPY + middle + reading(neighbour) + store("%r12", "%d1")
    found = run(body, [WORDS, (64, np.uint32)], threads=64, shared=256, reports=reports)[1]
    return str(reports), found


def test_a_copy_is_there_after_its_wait() -> None:
    said, found = copied(COMMIT + WAIT)
    assert said == "" and (found == WORDS).all()
    said, found = copied("cp.async.wait_all;\n")
    assert said == "" and (found == WORDS).all()


@pytest.mark.parametrize("middle", ["", COMMIT, WAIT, COMMIT + "cp.async.wait_group 1;\n"])
def test_a_copy_that_was_not_waited_for(middle) -> None:
    said, found = copied(middle)
    assert "a copy under way will write" in said
    assert (found != WORDS).all()


def test_groups_are_waited_for_in_their_order() -> None:
    """With one group still open, the first is there and the second is not."""
    second = "add.u32 %r20, %r10, 256;\ncp.async.ca.shared.global [%r20], [%d60], 4;\n" + COMMIT
    one = COPY + COMMIT + second + "cp.async.wait_group 1;\n"
    reports = Reports()
    run(one + "ld.shared.b32 %r12, [%r10];\n", [WORDS], threads=64, shared=512, reports=reports)
    assert not reports, str(reports)
    run(one + "ld.shared.b32 %r12, [%r20];\n", [WORDS], threads=64, shared=512, reports=reports)
    assert "a copy under way" in str(reports)


def test_a_copy_of_another_thread_needs_a_barrier_as_well() -> None:
    assert "RACE: a read of shared memory" in copied(COMMIT + WAIT, neighbour=32)[0]
    said, found = copied(COMMIT + WAIT + "bar.sync 0;\n", neighbour=32)
    assert said == "" and (found == WORDS[np.arange(64) ^ 32]).all()
    assert "RACE" in copied(COMMIT + "bar.sync 0;\n" + WAIT, neighbour=32)[0]  # the other way round


def test_a_copy_over_what_another_still_reads() -> None:
    body = WRITE + "bar.sync 0;\n" + reading(32) + COPY + COMMIT + WAIT
    assert "has read" in reports_of(body, [WORDS], threads=64, shared=256)
    body = WRITE + "bar.sync 0;\n" + reading(32) + "bar.sync 0;\n" + COPY + COMMIT + WAIT
    assert reports_of(body, [WORDS], threads=64, shared=256) == ""


def test_a_copy_of_nothing_writes_zeros() -> None:
    body = (
        MINE
        + at("%d0", "%r0", 4, "%d60")
        + "setp.lt.u32 %p1, %r0, 16;\nselp.b32 %r20, 4, 0, %p1;\n"
    )
    body += "cp.async.ca.shared.global [%r10], [%d60], 4, %r20;\ncp.async.wait_all;\n"
    body += reading(0) + store("%r12", "%d1")
    found = run(body, [WORDS[:16], (32, np.uint32)], shared=128)[
        1
    ]  # beyond the end nothing is read
    assert found.tolist() == [*range(16), *[0] * 16]


# --- atomics -------------------------------------------------------------------------------------


def test_atomics_add_up_and_race_with_nobody() -> None:
    body = "atom.global.add.u32 %r10, [%d0], 2;\n" + store("%r10", "%d1")
    total, before = run(body, [np.zeros(1, np.uint32), (64, np.uint32)], threads=64)
    assert total[0] == 128 and sorted(before.tolist()) == list(range(0, 128, 2))
    lowest = "cvt.rn.f32.u32 %r10, %r0;\nred.shared.add.f32 [%r2], %r10;\nbar.sync 0;\nld.shared.b32 %r11, [%r2];\n"
    body = (
        "mov.b32 %r20, 0;\nsetp.eq.u32 %p1, %r0, 0;\n@%p1 st.shared.b32 [%r2], %r20;\nbar.sync 0;\n"
        + lowest
        + store("%r11", "%d0")
    )
    (found,) = run(body, [(64, np.uint32)], threads=64, shared=16)
    assert (found.view(np.float32) == 2016).all()


# --- counting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "size", "sectors"), [(4, 4, 4), (8, 4, 8), (32, 4, 32), (16, 16, 16), (0, 4, 1)]
)
def test_sectors_that_a_warp_touches(stride, size, sectors) -> None:
    """32 lanes read `size` bytes, `stride` apart."""
    counts = Counts()
    addresses = np.arange(32) * stride + 256
    counts.traffic("ld", addresses, size, np.arange(32))
    asked = size * (32 if stride else 1)
    assert counts.sectors["ld"] == sectors and counts.bytes["ld"] == asked
    counts.traffic("ld", addresses, size, np.arange(32) + 32)  # another warp asks for itself
    assert counts.sectors["ld"] == 2 * sectors and counts.requests["ld"] == 2
    assert counts.used("ld") == asked / (32 * sectors)


def test_instructions_are_counted_by_warp() -> None:
    """Two warps; the second leaves the loop after one pass of three."""
    body = """
    mov.b32 %r10, 0;
    setp.lt.u32 %p2, %r0, 32;
    AGAIN:
    mul.lo.u32 %r11, %r10, 3;
    add.u32 %r10, %r10, 1;
    setp.lt.and.u32 %p1, %r10, 3, %p2;
    @%p1 bra AGAIN;
    """
    counts = Counts()
    run(body, [], threads=64, counts=counts)
    assert counts.instructions["mul.lo.u32"] == 4 and counts.instructions["ret"] == 2
    assert counts.blocks == 1 and counts.executed("mul") == 4
