"""The formulas of predictions, against published examples and by hand."""

from __future__ import annotations

from math import ceil

import pytest
import torch

from cuda_check import kernel_table, predict
from cuda_check.predict import Work

ROW = {
    "arch": 90,
    "threads": 128,
    "registers": 64,
    "shared": 0,
    "in_flight": 32,
    "depths": [[100, 0, 0], [50, 32, 0]],
}


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks"),
    [
        # CUDA C++ Best Practices Guide, "Calculating Occupancy": 64 warps and 65536 registers; 37
        # registers a thread are 12 blocks of 128 threads (75 %), and 4 of 320 (63 %).
        (80, 128, 37, 0, 12),
        (80, 320, 37, 0, 4),
        # CUDA C++ Programming Guide, __launch_bounds__ and technical specifications: 64 warps at 32
        # registers, 2048 threads; at most 32 blocks; 48 warps on sm_89.
        (90, 1024, 32, 0, 2),
        (90, 32, 16, 0, 32),
        (89, 256, 32, 0, 6),
        # Hopper tuning guide: 228 kB on a multiprocessor, 227 kB for one block, 1 kB of each is the
        # system's: two blocks of 113 kB fit, of 114 kB one.
        (90, 128, 32, 227 << 10, 1),
        (90, 128, 32, 113 << 10, 2),
        (90, 128, 32, 114 << 10, 1),
        # Counted by hand: 168 registers are 5376 a warp, 12 warps of 65536; 118 are 3840, 16 warps.
        (90, 128, 168, 0, 3),
        (90, 256, 118, 0, 2),
        (90, 1024, 255, 0, 0),
    ],
)
def test_blocks_on_a_multiprocessor(arch, threads, registers, shared, blocks) -> None:
    assert predict.resident(arch, threads, registers, shared) == blocks


def test_little_by_hand() -> None:
    # 4.3e12 B/s x 0.7e-6 s = 3.01e6 bytes, over 132 multiprocessors.
    assert predict.needed_in_flight() == pytest.approx(22_803, abs=1)


def test_bytes_in_flight_by_hand() -> None:
    # 64 registers: 32 warps, 8 blocks of 4; 128 lanes with 32 bytes each.
    assert predict.blocks_of(ROW) == 8
    assert predict.bytes_in_flight(ROW) == 8 * 128 * 32
    # 1000 passes of 128 lanes could load 4 096 000 bytes, three quarters of which must come.
    work = Work(read=3_072_000, written=0, passes=1000, blocks=10_000)
    assert predict.bytes_in_flight(ROW, work) == pytest.approx(8 * 128 * 32 * 0.75)
    # 200 blocks are two on some multiprocessors.
    few = Work(read=1 << 40, written=0, passes=1000, blocks=200)
    assert predict.bytes_in_flight(ROW, few) == 2 * 128 * 32
    assert predict.bytes_in_flight(ROW | {"depths": [[9, 0, 0]]}, few) == 0


def test_issue_time_by_hand() -> None:
    # (100 x 1000 blocks + 50 x 8000 passes) x 4 warps on 528 schedulers at 1.9 GHz.
    work = Work(read=0, written=0, passes=8000, blocks=1000)
    assert predict.issue_time(ROW, work) == pytest.approx(500_000 * 4 / 528 / 1.9e9)
    # One block cannot go faster than one of its warps: 100 + 50 x 8 instructions.
    alone = Work(read=0, written=0, passes=8, blocks=1)
    assert predict.issue_time(ROW, alone) == pytest.approx(500 / 1.9e9)
    # As many blocks as are resident: 8 x 132.
    held = Work(read=0, written=0, passes=1056)
    assert predict.issue_time(ROW, held) == pytest.approx(150 * 1056 * 4 / 528 / 1.9e9)


def test_loops_within_loops_by_hand() -> None:
    row = ROW | {"depths": [[10, 0, 0], [20, 0, 0], [30, 0, 5], [0, 0, 40]], "threads": 32}
    work = Work(read=0, written=0, passes=100_000, blocks=10_000, inner=(3, 2), arithmetic=4)
    # 30 of the inner loop run three times a pass, 5 of a loop beside it without memory four times a
    # pass, and 40 of such a loop within the inner one four times for each pass of that.
    each = 10 * 10_000 + (20 + 5 * 4) * 100_000 + (30 + 40 * 4) * 300_000
    assert predict.issue_time(row, work) == pytest.approx(each / 528 / 1.9e9)
    once = Work(read=0, written=0, passes=100_000, blocks=10_000)
    each = 10 * 10_000 + (20 + 30 + 5 + 40) * 100_000
    assert predict.issue_time(row, once) == pytest.approx(each / 528 / 1.9e9)


def test_sectors_by_hand() -> None:
    # Heads of 72 numbers of 2 bytes: every other one begins 16 bytes into a sector. Four lanes with 8
    # bytes each: 5 sectors, or 2 x 4 + 1; in one load of 64 channels and one of 8: 5, or 5 + 1.
    assert predict.sector_bytes((32, 32, 32, 32, 16), 144) == pytest.approx(144 / 7)
    assert predict.sector_bytes((128, 16), 144) == pytest.approx(144 / 5.5)
    # A row by neighbouring lanes in one load: 5 sectors wherever it begins.
    assert predict.sector_bytes((144,), 144) == pytest.approx(144 / 5)
    assert predict.sector_bytes((128,), 128) == 32


def test_the_bytes_of_what_is_shown_by_hand() -> None:
    work = {shown.name: shown.work for shown in kernel_table.SHOWN if shown.work}
    # 8 clips, 16 frames, 256 places, 1152 channels, 2 bytes: 75.5 MB; 4 of them forward, 6 and 7 backward.
    assert work["adaln forward, XL, bf16"].bytes_time * 1e6 == pytest.approx(70.2, abs=0.05)
    assert work["adaln backward, XL, bf16"].bytes_time * 1e6 == pytest.approx(105.3, abs=0.05)
    assert work["st_attention backward, XL, bf16"].bytes_time * 1e6 == pytest.approx(
        122.9, abs=0.05
    )


def test_the_grids_of_what_is_shown_are_those_of_the_launches() -> None:
    pytest.importorskip("triton")
    from colaworld.kernels import adaln, qk_norm_rope, st_attention, vector_quantize

    work = {(s.impl, s.name): s.work for s in kernel_table.SHOWN if s.work}
    tokens, places = 8 * 16 * 256, 8 * 256

    rows = max(adaln.FEWEST_ROWS, tokens // adaln.BACKWARD_PROGRAMS)
    assert work["triton", "adaln forward, XL, bf16"].blocks == tokens // adaln.FORWARD_ROWS
    assert work["triton", "adaln backward, XL, bf16"].blocks == 8 * 16 * ceil(256 / rows)
    assert work["triton", "qkv_norm_rope backward, XL, bf16"].blocks == qk_norm_rope.PROGRAMS
    steps = places * 16 // st_attention.PROGRAMS
    assert work["triton", "st_attention backward, XL, bf16"].blocks == ceil(places / steps) * 16
    pieces = work["triton", "code_statistics, pieces of a sort"].blocks
    assert pieces == 8192 + ceil(1_000_000 / vector_quantize.PIECE_ROWS)
    constants, _ = vector_quantize._assign_constants(2000, 32, 32, torch.float32, 90)
    assert work["triton", "vector_quantize, a batch, float32"].blocks == ceil(
        2000 / constants["BN"]
    )
