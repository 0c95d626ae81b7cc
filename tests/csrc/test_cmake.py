"""What CMake decides before anything is compiled: what is built, from which files, and what it says.

Not here: what comes out (test_cuda_build.py, test_instruction_sets.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BESIDE = str(Path(sys.executable).parent)  # of the Python that runs: an environment's own tools


def tool(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([BESIDE, os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"no {name}")
    return found


@dataclass(frozen=True)
class Configured:
    """What a run of CMake left."""

    failed: bool
    said: str  # without line breaks
    folder: Path

    def commands(self) -> dict[str, str]:
        """How each source is compiled, by its name."""
        listed = json.loads((self.folder / "compile_commands.json").read_text())
        return {Path(entry["file"]).name: entry["command"] for entry in listed}


@pytest.fixture
def configure(tmp_path: Path):
    """configure(*options, source=..., VARIABLE=...): a run of CMake, without CUDA unless asked for."""

    def run(*options: str, source: Path = ROOT, **environment: str) -> Configured:
        left = {k: v for k, v in os.environ.items() if not k.startswith(("COLAWORLD_", "CUDA"))}
        command = [tool("cmake"), "-S", str(source), "-B", str(tmp_path / "build"), "-G", "Ninja"]
        command += [
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        command += ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options]
        done = subprocess.run(
            command,
            env={"COLAWORLD_CUDA": "0", **left, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Configured(done.returncode != 0, " ".join(done.stdout.split()), tmp_path / "build")

    return run


@pytest.mark.parametrize(
    "missing",
    [
        ("-DPython_INCLUDE_DIR=/nowhere",),
        # A folder without them, taken as given; CMake itself would stop there.
        (f"-DPython_INCLUDE_DIR={Path(__file__).parent}", "-DPython_ARTIFACTS_INTERACTIVE=TRUE"),
        ("-DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON",),
    ],
    ids=["no folder", "no headers", "no pybind11"],
)
def test_the_ops_need_neither_the_headers_of_python_nor_pybind11(configure, missing) -> None:
    done = configure(*missing)
    assert not done.failed, done.said
    assert "colaworld: WITHOUT colaworld._C" in done.said
    assert "facts.cpp" in done.commands() and "bindings.cpp" not in done.commands()


def test_a_new_op_is_found_by_its_files(configure, tmp_path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "csrc", source / "csrc")
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in ("cpu/new.cpp", "cpu/new_kernel.h", "cuda/new_cuda.cpp", "cuda/new.cu"):
        (source / "csrc" / name).touch()
    done = configure(source=source)
    assert not done.failed, done.said
    assert "-O3" not in done.commands()["new.cpp"].split()  # those flags are for kernels
    assert "-mavx512f" in done.commands().get("avx512.cpp", "-mavx512f")  # x86 alone has it
    kernels = (done.folder / "every_kernel.h").read_text().splitlines()
    assert '#include "new_kernel.h"' in kernels and '#include "adaln_kernel.h"' in kernels
    assert not {"new_cuda.cpp", "new.cu"} & set(done.commands())  # CUDA is off


def test_the_version_is_the_packages(configure) -> None:
    (line,) = [
        line
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if "version = " in line[:10]
    ]
    version = line.split('"')[1]
    command = configure().commands()["facts.cpp"]
    assert f'-DCOLAWORLD_VERSION=\\"{version}\\"' in command


def test_it_says_when_there_is_no_cuda(configure) -> None:
    done = configure()
    assert "colaworld: WITHOUT CUDA: switched off at build time (COLAWORLD_CUDA=0)" in done.said
    done = configure(COLAWORLD_CUDA="", CUDACXX="/bin/false")
    assert "colaworld: WITHOUT CUDA: /bin/false did not compile at build time" in done.said
    assert not done.failed and "facts.cpp" in done.commands()


def test_cuda_that_was_asked_for_must_be_there(configure) -> None:
    done = configure(COLAWORLD_CUDA="1", CUDACXX="/bin/false")
    assert done.failed
    assert "COLAWORLD_CUDA=1 asks for CUDA, but /bin/false did not compile" in done.said
    assert "on the PATH, in bin/ of CUDA_HOME and CUDA_PATH" in done.said


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_toolkit_off_the_path_is_found(configure, tmp_path, variable) -> None:
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f'#!/bin/sh\nexec {tool("nvcc")} "$@"\n')
    nvcc.chmod(0o755)
    folders = [f for f in os.environ["PATH"].split(os.pathsep) if not (Path(f) / "nvcc").exists()]
    done = configure(
        COLAWORLD_CUDA="",
        COLAWORLD_CUDA_ARCHITECTURES="90",
        PATH=os.pathsep.join(folders),
        **{variable: str(tmp_path / "toolkit")},
    )
    assert not done.failed and "colaworld: with CUDA (nvcc " in done.said, done.said
    assert done.commands()["st_attention.cu"].split()[0] == str(nvcc)
