"""Exchanges within a warp, against what the manual says lane by lane; and who waits for whom."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ptx.faults import Fault, Reports
from ptx.small import at, on_words, run, store

VALUES = np.random.default_rng(0).integers(0, 1 << 32, (1, 64), np.uint32)  # two warps


def shuffled(mode: str, lane: int, by: int, width: int, edge: int) -> int:
    """Which lane is read, within segments of `width`; the lane itself beyond the edge of its segment."""
    first = lane // width * width
    if mode == "bfly":
        source = lane ^ by
    elif mode == "idx":
        source = first + by % width
    else:
        source = lane + (by if mode == "down" else -by)
    if mode == "up":
        return source if source >= first + edge else lane
    return source if source <= first + edge else lane


@pytest.mark.parametrize("mode", ["bfly", "idx", "down", "up"])
@pytest.mark.parametrize(("by", "width"), [(1, 32), (16, 32), (3, 8), (5, 16), (31, 32)])
def test_shuffles(mode, by, width) -> None:
    edge = 0 if mode == "up" else width - 1
    c = (32 - width) << 8 | edge
    body = f"shfl.sync.{mode}.b32 %r200|%p1, %r10, {by}, {c}, -1;\nselp.b32 %r201, 1, 0, %p1;\n"
    found = on_words(body, VALUES, 2)
    lanes = [shuffled(mode, t % 32, by, width, edge) for t in range(64)]
    wanted = [VALUES[0, t // 32 * 32 + s] for t, s in enumerate(lanes)]
    assert found[0].tolist() == wanted
    if mode != "bfly" and by < width:
        beyond = (
            [s == t % 32 for t, s in enumerate(lanes)] if mode in ("up", "down") else [False] * 64
        )
        assert found[1].tolist() == [0 if b else 1 for b in beyond]


def test_votes() -> None:
    body = """
    and.b32 %r100, %r10, 3;
    setp.eq.u32 %p1, %r100, 0;
    vote.sync.ballot.b32 %r200, %p1, -1;
    vote.sync.any.pred %p2, %p1, -1;
    vote.sync.all.pred %p3, !%p1, -1;
    selp.b32 %r201, 1, 0, %p2;
    selp.b32 %r202, 1, 0, %p3;
    """
    values = VALUES.copy()
    values[0, 32:] |= 1  # nobody in the second warp
    found = on_words(body, values, 3)
    p = values[0] & 3 == 0
    for warp in range(2):
        mine = p[32 * warp : 32 * warp + 32]
        ballot = sum(1 << i for i in range(32) if mine[i])
        assert (found[0][32 * warp : 32 * warp + 32] == ballot).all()
        assert (found[1][32 * warp : 32 * warp + 32] == mine.any()).all()
        assert (found[2][32 * warp : 32 * warp + 32] == (~mine).all()).all()


@pytest.mark.parametrize(("name", "kind", "fold"), [
    ("add", "u32", lambda v: sum(v) % 2**32), ("min", "u32", min), ("max", "u32", max),
    ("and", "b32", lambda v: int(np.bitwise_and.reduce(np.array(v, np.uint32)))),
    ("or", "b32", lambda v: int(np.bitwise_or.reduce(np.array(v, np.uint32)))),
    ("xor", "b32", lambda v: int(np.bitwise_xor.reduce(np.array(v, np.uint32)))),
])  # fmt: skip
def test_redux(name, kind, fold) -> None:
    found = on_words(f"redux.sync.{name}.{kind} %r200, %r10, -1;\n", VALUES, 1)
    for warp in range(2):
        mine = slice(32 * warp, 32 * warp + 32)
        assert (found[0][mine] == fold(VALUES[0][mine].tolist())).all()
    signed = on_words("redux.sync.min.s32 %r200, %r10, -1;\n", VALUES, 1)
    assert signed.view(np.int32)[0, 0] == VALUES.view(np.int32)[0, :32].min()


PARTED = """
and.b32 %r100, %r0, 1;
setp.eq.u32 %p1, %r100, 0;
@%p1 bra EVEN;
mov.b32 %r101, 100;
bra.uni MEET;
EVEN:
mov.b32 %r101, 7;
MEET:
"""


def test_lanes_that_parted_meet_again() -> None:
    body = PARTED + "shfl.sync.bfly.b32 %r102, %r101, 1, 31, -1;\n" + store("%r102", "%d0")
    (found,) = run(body, [(32, np.uint32)])
    assert found.tolist() == [100, 7] * 16


def test_half_a_warp_exchanges_alone() -> None:
    """The mask names those who come; the others never do."""
    body = f"""
    setp.lt.u32 %p1, %r0, 16;
    mov.b32 %r102, 5;
    @!%p1 bra DONE;
    shfl.sync.bfly.b32 %r102, %r0, 1, 31, 0xFFFF;
    DONE:
    {store("%r102", "%d0")}
    """
    (found,) = run(body, [(32, np.uint32)])
    assert found.tolist() == [lane ^ 1 for lane in range(16)] + [5] * 16


def test_a_lane_that_never_comes_is_a_deadlock() -> None:
    body = """
    setp.lt.u32 %p1, %r0, 16;
    @%p1 bra WAIT;
    bar.warp.sync 0xFFFF0000;
    bra.uni AGAIN;
    WAIT:
    shfl.sync.bfly.b32 %r102, %r0, 1, 31, -1;
    bra.uni DONE;
    AGAIN:
    bar.sync 0;
    DONE:
    """
    with pytest.raises(Fault, match=r"deadlock: lanes wait at \['shfl"):
        run(body, [])


def test_a_barrier_that_one_warp_skips() -> None:
    """Who has left is not waited for; who waits elsewhere is."""
    skip = "setp.ge.u32 %p1, %r0, 32;\n@%p1 bra DONE;\nbar.sync 0;\nDONE:\n"
    run(skip, [], threads=64)
    with pytest.raises(Fault, match=re.escape("threads at barriers [1, 2]")):
        run(
            "setp.ge.u32 %p1, %r0, 32;\n@%p1 bra OTHER;\nbar.sync 1;\nbra.uni DONE;\nOTHER:\nbar.sync 2;\nDONE:\n",
            [], threads=64,
        )  # fmt: skip


def test_a_loop_of_another_length_in_every_thread() -> None:
    body = f"""
    mov.b32 %r100, 0;
    mov.b32 %r101, 0;
    AGAIN:
    add.u32 %r101, %r101, %r100;
    add.u32 %r100, %r100, 1;
    setp.le.u32 %p1, %r100, %r0;
    @%p1 bra AGAIN;
    {at("%d0", "%r1", 256, "%d2")}
    {store("%r101", "%d2")}
    """
    (found,) = run(body, [(192, np.uint32)], threads=64, blocks=3)
    assert found.tolist() == [t * (t + 1) // 2 for t in range(64)] * 3


def test_a_shuffle_from_a_lane_that_is_not_there() -> None:
    reports = Reports()
    body = """
    setp.lt.u32 %p1, %r0, 16;
    @!%p1 bra DONE;
    shfl.sync.bfly.b32 %r102, %r0, 16, 31, 0xFFFF;
    DONE:
    """
    run(body, [], reports=reports)
    assert "reads a lane that does not take part" in str(reports)
