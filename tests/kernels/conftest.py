"""How the Triton kernels are checked where there is a GPU and where there is none.

`checks_<op>.py` beside a test file holds the checks themselves; they run in a process of their own,

    under Triton's interpreter, on the CPU      TRITON_INTERPRET=1, which Triton reads at its import
    natively, on a GPU                          the same checks, with bfloat16 for float64

so that neither mode leaks into the other tests. To run them by hand:
TRITON_INTERPRET=1 python -m pytest tests/kernels/checks_st_attention.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def run_checks() -> Callable[..., None]:
    """run_checks("st_attention", interpreted=True, slow=False): fails with what the checks printed last.

    `slow`: only what is marked slow, or only what is not; None: all of it.
    """
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; it comes with a CUDA build of torch")

    def run(op: str, *, interpreted: bool, slow: bool | None = None) -> None:
        path = HERE / f"checks_{op}.py"
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment.pop("COLAWORLD_OPS", None)  # the checks force what they check
        if interpreted:
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)]
        if slow is not None:
            command += ["-m", "slow" if slow else "not slow"]
        done = subprocess.run(
            command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{path.name}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"

    return run


@pytest.fixture
def compile_only(monkeypatch) -> Callable[[ModuleType], list]:
    """compile_only(kernels): from now on a launch in that file compiles for sm_90 and runs nothing.

    Returns the list that the compiled kernels will stand in. Needs no GPU: the driver is a stand-in.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    compiled = []

    class Launch:
        def __init__(self, kernel) -> None:
            self.kernel = kernel

        def __getitem__(self, grid):
            def run(*arguments, **options) -> None:
                compiled.append(self.kernel.warmup(*arguments, grid=grid, **options))

            return run

    def replace(kernels: ModuleType) -> list:
        for name in ("forward_kernel", "backward_kernel"):
            monkeypatch.setattr(kernels, name, Launch(getattr(kernels, name)))
        return compiled

    monkeypatch.setattr(driver, "_active", Driver())
    return replace
