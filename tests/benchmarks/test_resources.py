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


@pytest.mark.skipif(not resources.RESULTS.is_file(), reason="no resource table is committed yet")
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
