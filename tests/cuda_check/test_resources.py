"""The resource table of the GPU kernels: what is a failure, what is written, what is committed."""

from __future__ import annotations

import json

import pytest

from cuda_check import kernel_table, predict, resources

ROW = {
    "kernel": "forward",
    "impl": "cuda",
    "op": "st_attention",
    "config": "",
    "arch": 90,
    "compiler": "nvcc 13",
    "threads": 128,
    "registers": 64,
    "stack": 0,
    "shared": 1024,
    "instructions": 1000,
    "loop": 500,
    "loads": {"128": 4, "32": 2},
    "copies": 0,
    "stores": {"64": 2},
    "in_flight": 64,
    "depths": [[500, 0, 0], [500, 72, 0]],
}


def test_the_width_of_loads_by_hand() -> None:
    # 64 bytes in instructions of 128 bits and 8 in those of 32: (64 x 128 + 8 x 32) / 72.
    assert resources.mean_width({"128": 4, "32": 2}) == pytest.approx(117.33, abs=0.01)
    assert resources.mean_width({}) == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"registers": 60, "shared": 0, "instructions": 900, "in_flight": 72}, None),
        ({"stack": 16}, "16 bytes of stack, expected none"),
        ({"shared": 300_000}, "300000 bytes of shared memory, the limit is 232448"),
        ({"registers": 65}, "registers rose from 64 to 65"),
        ({"registers": 73}, "blocks on a multiprocessor fell from 8 to 6"),
        ({"threads": 160}, "blocks on a multiprocessor fell from 8 to 6"),
        ({"kernel": "other"}, "not in the committed table"),
        ({"instructions": 1020}, None),
        ({"instructions": 1021}, "instructions rose from 1000 to 1021"),
        ({"loop": 511}, "instructions of the main loop rose from 500 to 511"),
        ({"loads": {"64": 8, "32": 2}}, "mean width of loads fell from 117.333 to 60.4444"),
        ({"loads": {"128": 4, "32": 3}}, "mean width of loads fell"),
        ({"stores": {"32": 4}}, "mean width of stores fell from 64 to 32"),
        ({"in_flight": 63}, None),
        ({"in_flight": 60}, "bytes in flight fell from 65536 to 61440"),
    ],
)
def test_complaints(change, complaint) -> None:
    lines = resources.complaints([{**ROW, **change}], [ROW])
    if complaint is None:
        assert lines == []
    else:
        assert any(complaint in line for line in lines), lines


def test_rows_of_another_compiler_are_held_to_the_limits_alone() -> None:
    other = {**ROW, "compiler": "nvcc 14", "registers": 200, "in_flight": 0}
    assert resources.complaints([other], [ROW]) == []
    (line,) = resources.complaints([{**other, "stack": 8}], [ROW])
    assert "8 bytes of stack" in line


def test_a_kernel_that_is_gone_is_told_where_its_group_was_read() -> None:
    old = {**ROW, "kernel": "old"}
    (line,) = resources.complaints([ROW], [ROW, old])
    assert "no longer shipped" in line
    # Another op, architecture or kind may not have been built here.
    assert resources.complaints([], [ROW]) == []
    for elsewhere in ({"op": "adaln"}, {"arch": 80}, {"impl": "triton"}):
        assert resources.complaints([ROW], [ROW, old | elsewhere]) == []


def test_one_op_is_written_and_the_others_stay() -> None:
    adaln = {**ROW, "op": "adaln", "kernel": "a"}
    gone, new = {**ROW, "kernel": "gone"}, {**ROW, "kernel": "new"}
    elsewhere = {**ROW, "arch": 80}
    assert resources.together([new, ROW], [adaln, gone, ROW, elsewhere]) == [
        adaln, elsewhere, new, ROW,
    ]  # fmt: skip
    assert resources.together([], [adaln]) == [adaln]


def test_what_is_committed_is_sound() -> None:
    committed = json.loads(resources.RESULTS.read_text())
    assert committed and not any(row["stack"] for row in committed)
    for row in committed:
        assert row["shared"] <= predict.PROCESSOR[row["arch"]].block_shared, row
        assert predict.blocks_of(row) >= 1, row
        assert 0 < row["loop"] <= row["instructions"] or row["loop"] == 0, row
    assert resources.together(committed, []) == committed
    assert len({resources._key(row) for row in committed}) == len(committed)


@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_the_readmes_show_the_committed_rows(impl) -> None:
    root = resources.ROOT
    text = (root / kernel_table.READMES[impl]).read_text()
    table = kernel_table.markdown(json.loads(resources.RESULTS.read_text()), impl)
    assert kernel_table.with_table(text, table) == text, "resources --write writes it"


def test_a_table_by_hand(monkeypatch) -> None:
    made = [
        {**ROW, "kernel": "colaworld::cuda::k", "arch": arch, "registers": arch - 40}
        for arch in (80, 90)
    ]
    # 10 000 blocks of one pass: (500 + 500) x 4 warps x 10 000 over 528 x 1.9e9; 4.3e9 bytes.
    # 50 registers: 9 blocks; 72 bytes a lane are loaded of which 50 come from memory, 64 under way.
    work = predict.Work(
        64_000_000, 4_236_000_000, passes=10_000, blocks=10_000, pieces=(128, 16), step=144
    )
    shown = (
        kernel_table.Shown("cuda", "st_attention", "a kernel", "k", work),
        kernel_table.Shown("cuda", "st_attention", "the same", "k"),
        kernel_table.Shown("triton", "adaln", "another", "c"),
    )
    monkeypatch.setattr(kernel_table, "SHOWN", shown)
    assert kernel_table.markdown(made, "cuda").splitlines() == [
        "| kernel | warps | registers on sm_80 / 90 | shared | blocks | loop | loads | in flight | sectors | issue us | bytes us | floor us |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| a kernel | 4 | 40 / 50 | 1.0 kB | 9 | 500 | 4 x 128, 2 x 32 | 51.2 kB | 26.2 | 39.9 | 1000.0 | 1000.0 |",
        "| the same | 4 | 40 / 50 | 1.0 kB | 9 | 500 | 4 x 128, 2 x 32 |  |  |  |  |  |",
    ]  # fmt: skip
    triton = {**ROW, "impl": "triton", "op": "adaln", "config": "c", "loop": 0, "copies": 1}
    assert kernel_table.markdown([triton | {"sectors": 30.0}], "triton").splitlines()[2] == (
        "| another | 4 | 64 | 1.0 kB | 8 | 1000, no loop | 4 x 128, 2 x 32 copied |  | 30.0 |  |  |  |"
    )
    with pytest.raises(ValueError, match="'c': expected a row on each of"):
        kernel_table.markdown([triton | {"config": "gone"}], "triton")
    with pytest.raises(ValueError, match="a README needs the lines"):
        kernel_table.with_table("no marks", "x")


def test_everything_that_is_shown_is_in_the_committed_table() -> None:
    rows = json.loads(resources.RESULTS.read_text())
    for shown in kernel_table.SHOWN:
        archs = [row["arch"] for row in rows if kernel_table.is_shown(row, shown)]
        assert predict.ARCH in archs and len(archs) == len(set(archs)), shown
