"""The resource table of the GPU kernels: what is read, what is a failure, what is committed."""

from __future__ import annotations

import json

import pytest

from benchmarks import resources

ROW = {
    "kernel": "forward",
    "impl": "cuda",
    "config": "",
    "arch": 90,
    "registers": 128,
    "stack": 0,
    "shared": 1024,
    "tensor_core_instructions": 4,
}


def test_usage_is_read_by_hand() -> None:
    text = (
        "Resource usage:\n Common:\n  GLOBAL:0\n Function _Z3addPf:\n"
        "  REG:12 STACK:8 SHARED:256 LOCAL:0 CONSTANT[0]:900 TEXTURE:0\n"
    )
    assert list(resources._usage(text)) == [
        {"name": "_Z3addPf", "registers": 12, "stack": 8, "shared": 256}
    ]
    assert resources._plain("_Z3addPf") in ("add", "_Z3addPf")  # without c++filt it stays


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"registers": 100, "shared": 0}, None),
        ({"stack": 16}, "16 bytes of stack, expected none"),
        ({"shared": 300_000}, "300000 bytes of shared memory, the limit is 232448"),
        ({"registers": 129}, "registers rose from 128 to 129"),
        ({"kernel": "other"}, "not in the committed table"),
    ],
)
def test_complaints(change, complaint) -> None:
    lines = resources.complaints([{**ROW, **change}], [ROW])
    if complaint is None:
        assert lines == []
    else:
        assert any(complaint in line for line in lines)


def test_a_kernel_that_is_gone_is_told_where_its_kind_was_built() -> None:
    assert resources.complaints([], [ROW]) == []
    (line,) = resources.complaints([ROW], [ROW, {**ROW, "kernel": "old"}])
    assert "no longer shipped" in line


def test_what_is_committed_is_sound() -> None:
    committed = json.loads(resources.RESULTS.read_text())
    assert committed and not any(row["stack"] for row in committed)
    assert all(row["shared"] <= resources.SHARED_LIMIT[row["arch"]] for row in committed)


def test_a_tool_that_fails_is_an_error(monkeypatch) -> None:
    import subprocess

    def run(*_, **__):
        return subprocess.CompletedProcess([], 1, "", "no such file")

    monkeypatch.setattr(resources.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="no such file"):
        resources._cuobjdump("-lelf", "missing.so")


@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_the_readmes_show_the_committed_rows(impl) -> None:
    root = resources.RESULTS.parents[2]
    text = (root / resources.READMES[impl]).read_text()
    table = resources.markdown(json.loads(resources.RESULTS.read_text()), impl)
    assert resources.with_table(text, table) == text, "resources --write writes it"


def test_a_table_by_hand() -> None:
    made = [{**ROW, "kernel": "k", "arch": arch, "registers": arch} for arch in (80, 90)]
    shown = (("cuda", "a kernel", "k", 4_300_000_000), ("triton", "another", "t", None))
    before = resources.SHOWN
    try:
        resources.SHOWN = shown
        assert resources.markdown(made, "cuda").splitlines() == [
            "| kernel | registers on sm_80 / 90 | by its bytes |",
            "|---|---|---|",
            "| a kernel | 80 / 90 | 1.000 ms |",
        ]
        triton = {**ROW, "impl": "triton", "kernel": "t", "config": "c, 4 warps", "shared": 2048}
        assert resources.markdown([*made, triton], "triton").splitlines()[2] == (
            "| another | 4 | 128 | 2.0 kB |  |"
        )
        with pytest.raises(ValueError, match="'t': expected a row on each of"):
            resources.markdown([{**triton, "kernel": "gone"}], "triton")
    finally:
        resources.SHOWN = before
    with pytest.raises(ValueError, match="a README needs the lines"):
        resources.with_table("no marks", "x")
