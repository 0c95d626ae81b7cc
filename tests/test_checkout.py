"""A checkout that was never installed: Python finds it by PYTHONPATH alone, a library is carried, and
`make gpu` starts at once.

Such is a machine without a network or a compiler. Not here: installing and building.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colaworld.ops import _native

ROOT = Path(__file__).resolve().parents[1]


def run(program: str, **environment: str) -> str:
    """What the program prints in a Python that has the packages here, but no colaworld installed."""
    # -S: the .pth files of this environment, through which an editable install is found, are not read.
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    path = os.pathsep.join([str(ROOT), *packages])
    left = {k: v for k, v in os.environ.items() if not k.startswith("COLAWORLD_")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={**left, "PYTHONPATH": path, **environment},
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernels_are_there() -> None:
    told = run("import colaworld.kernels.adaln as m; print(m.__file__)")
    assert told.strip() == str(ROOT / "kernels" / "adaln.py")


def test_the_benchmarks_are_there() -> None:
    told = run("import colaworld.benchmarks.rows as m; print(m.__file__)")
    assert told.strip() == str(ROOT / "benchmarks" / "rows.py")


def test_without_a_library_the_references_run() -> None:
    told = run("from colaworld import ops; print(ops.build_info(), ops.why_not_compiled())")
    assert told.startswith("None the extension is not built")


@pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))
def test_a_carried_library_runs(tmp_path: Path) -> None:
    # Under a name of its own, and told by a relative path.
    carried = tmp_path / "carried.so"
    shutil.copy(str(_native.PATH), carried)
    told = run(
        "import torch; from colaworld import ops\n"
        "with ops.force('cpu'):\n"
        "    codes, indices = ops.vector_quantize(torch.tensor([[0.9], [2.2]]), torch.tensor([[1.0], [2.0]]))\n"
        "print(ops.build_info()['torch_built_against'], indices.tolist())",
        COLAWORLD_NATIVE_LIBRARY=os.path.relpath(carried, ROOT.parent),
    )
    info = _native.build_info()
    assert info is not None and told.strip() == f"{info['torch_built_against']} [0, 1]"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_gpu_takes_the_python_that_is_there(tmp_path: Path) -> None:
    def commands(target: str) -> list[str]:
        shutil.copy(ROOT / "Makefile", tmp_path)
        make = ["make", "-n", "--no-print-directory", target, "PYTHON=python9", "GPU_OPTIONS=--x"]
        done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    quick = "python9 -m benchmarks.gpu A --x"
    assert commands("gpu-quick") == [quick]
    assert commands("gpu") == [quick, "python9 -m benchmarks.gpu B --x"]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    assert commands("gpu-quick") == [".venv/bin/python -m benchmarks.gpu A --x"]
