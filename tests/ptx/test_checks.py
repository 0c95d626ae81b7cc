"""`tests/kernels/checks_*.py` on kernels from their PTX, in a process of its own: see plugin.py."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = sorted((ROOT / "tests" / "kernels").glob("checks_*.py"))

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="triton is not installed; it comes with a CUDA build of torch",
)


def run(path: Path, arch: int, *options: str) -> None:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "COLAWORLD_OPS")
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "tests"), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ptx.plugin", "--ptx-arch", str(arch)]
    command += ["-p", "no:cacheprovider", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{path.name}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"


def test_some_checks() -> None:
    """One file, a part of it: that the way works."""
    run(
        ROOT / "tests" / "kernels" / "checks_vector_quantize.py",
        90,
        "-m",
        "not slow",
        "-k",
        "lowest_index_wins_a_tie",
    )


@pytest.mark.slow
@pytest.mark.parametrize("arch", [90, 80])
@pytest.mark.parametrize("path", CHECKS, ids=lambda p: p.stem)
def test_all_checks(path, arch) -> None:
    run(path, arch)
