"""Nothing on the host runs for the first time on a GPU: the checks beside this file, without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import stand_in

HERE = Path(__file__).parent


@pytest.mark.slow
def test_models_and_the_joint_step() -> None:
    pytest.importorskip("triton", reason="triton comes with a CUDA build of torch")
    library = stand_in.library()
    if library is None:
        pytest.skip("no C++ compiler (g++ or c++, or name one in CXX)")
    environment = {**os.environ, "COLAWORLD_NATIVE_LIBRARY": str(library)}
    environment.pop("COLAWORLD_OPS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "checks_route.py"],
        cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
