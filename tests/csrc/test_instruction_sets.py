"""The compiled kernels on every instruction set that this processor runs, and the build facts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colaworld.ops import _native

pytestmark = pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))

# Sizes around every border: lanes (4, 8, 16), pairs of blocks, row blocks (4, 6, 12), spans (96).
PROGRAM = """
import torch
from colaworld import ops
from colaworld.ops import _native
print(_native.build_info()["chosen_instruction_set"])
g = torch.Generator().manual_seed(0)
torch.set_num_threads(2)
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for N, K, d in [(1, 1, 1), (3, 4, 2), (5, 16, 3), (13, 33, 31), (97, 65, 16), (205, 130, 70), (4099, 48, 9)]:
        z, c = torch.randn(N, d, generator=g).to(dtype), torch.randn(K, d, generator=g).to(dtype)
        codes, indices = ops.vector_quantize(z, c)
        distance = (z.double()[:, None] - c.double()).square().sum(-1)
        excess = distance.gather(1, indices[:, None])[:, 0] - distance.min(1).values
        size = z.double().square().sum(1) + c.double().square().sum(1).max()
        assert (excess <= (d + 1) * 2.0**-23 * size).all(), (dtype, N, K, d)
        assert torch.equal(codes, c[indices])
        twice = torch.cat([c, c])  # every entry again, K further on: the first one must win
        assert torch.equal(ops.vector_quantize(z, twice)[1], indices), (dtype, N, K, d)
        z[N // 2] = torch.nan
        assert ops.vector_quantize(z, c)[1][N // 2] == 0
print("done")
"""


def run(program: str, isa: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "COLAWORLD_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_finds_the_nearest(isa: str) -> None:
    done = run(PROGRAM, isa)
    if "got '" + isa + "'" in done.stderr:
        pytest.skip(f"this processor or build does not offer {isa}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa, "done"]


def test_an_unknown_instruction_set_is_an_error() -> None:
    done = run(
        "import torch, colaworld.ops as o; o.vector_quantize(torch.ones(1, 1), torch.ones(1, 1))",
        "mmx",
    )
    assert done.returncode != 0
    assert "COLAWORLD_CPU_ISA: expected one of baseline" in done.stderr
    assert "got 'mmx'" in done.stderr


def test_build_info_is_complete_and_consistent() -> None:
    info = _native.build_info()
    assert set(info) == {
        "version",
        "compiler",
        "compiled_instruction_sets",
        "chosen_instruction_set",
        "cuda",
        "cuda_architectures",
        "cuda_note",
        "cuda_stream",
        "torch_built_against",
    }
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{info["version"]}"\n' in project
    assert info["compiled_instruction_sets"][0] == "baseline"
    assert info["chosen_instruction_set"] in info["compiled_instruction_sets"]
    assert info["cuda"] == bool(info["cuda_architectures"])
    assert info["cuda_note"]
    assert info["cuda"] or not info["cuda_stream"]
