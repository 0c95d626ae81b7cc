"""`colaworld info`: the facts agree with the ops, and JSON is JSON."""

from __future__ import annotations

import json

import torch

from colaworld import ops
from colaworld.cli import info


def test_json_tells_what_explain_tells(capsys) -> None:
    assert info.run(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["op"] for row in told["ops"]} == set(ops.names())
    on_cpu = [r for r in told["ops"] if r["op"] == "vector_quantize" and r["device"] == "cpu"]
    expected = ops.explain("vector_quantize", torch.empty(4, 32))
    assert [(r["implementation"], r["would_run"], r["reason"]) for r in on_cpu] == [
        (v.name, v.would_run, v.reason) for v in expected
    ]
    assert told["packages"]["torch"] == torch.__version__
    assert ("absent" in told["extension"]) == (ops.build_info() is None)


def test_the_table_names_each_op_and_a_forced_choice(capsys) -> None:
    with ops.force("reference"):
        assert info.run([]) == 0
    text = capsys.readouterr().out
    for name in (*ops.names(), f"torch {torch.__version__}"):
        assert name in text
    if ops.build_info() is not None:
        assert "'reference' is" in text  # the table may fold the rest of the reason


def test_a_device_that_is_not_here_can_be_asked_about(capsys) -> None:
    assert info.run(["--device", "cuda", "--dtype", "bfloat16", "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    asked = [line for line in lines if " on cuda: " in line]
    assert len([line for line in asked if line.endswith(": runs")]) == len(ops.examples())
    for name in ("st_attention temporal", "st_attention spatial", "adaln"):
        (reason,) = [line for line in asked if line.startswith(f"{name} on cuda: cpu: ")]
        assert "cuda" in reason.split("cpu: ")[1]  # where the tensors are


def test_the_cuda_kernels_are_listed(capsys) -> None:
    assert info.run(["--kernels"]) == 0
    text = capsys.readouterr().out
    built = ops.build_info()
    if built is None or not built["cuda"]:
        assert "no CUDA kernels: " in text
        return
    # 2 weights of 72 and 2 tables of 16 x 36 numbers of 4 bytes; for each of 4 warps 16 rows of q, k and
    # v, 72 numbers of 2 bytes: 32 832 bytes.
    assert "st_attention forward, bfloat16, D 72, T <= 16: 128 threads, 32.1 kB shared" in text
