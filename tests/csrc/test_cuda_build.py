"""What the CUDA compiler made, read from the built library: nothing here needs a GPU.

The library needs no symbol that torch 2.11 does not have, and no kernel uses a stack (so none
spills registers), on any architecture. Not here: what the kernels compute (test_cuda_kernels.py).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from colaworld.ops import _cuda, _native

pytestmark = pytest.mark.skipif(not _native.AVAILABLE, reason=str(_native.reason()))

needs_cuda_build = pytest.mark.skipif(
    not _cuda.ARCHITECTURES, reason="the library was built without CUDA"
)
# What a kernel may use at most: registers of a thread, shared memory of a block by architecture.
REGISTERS = 255
SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
OLDEST = (2, 11)


def library() -> Path:
    assert _native.PATH is not None
    return Path(_native.PATH)


def undefined() -> dict[str, str]:
    """Dynamic symbols that the library takes from elsewhere, and their kind: U, or w when weak."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm (binutils) to read symbols with")
    out = subprocess.run(
        [nm, "-D", "--undefined-only", library()], capture_output=True, text=True, check=True
    ).stdout
    return {name: kind for kind, name in (line.split()[-2:] for line in out.splitlines())}


def needed_libraries() -> list[str]:
    """The shared libraries that the loader brings in with the library."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf (binutils) to read the dynamic section with")
    out = subprocess.run([readelf, "-d", library()], capture_output=True, text=True, check=True)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", out.stdout)


def versions(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Functions that a torch header declares, each with the torch version its guard asks for."""
    stack: list[tuple[int, int]] = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#if"):
            guard = re.search(r"TORCH_FEATURE_VERSION\s*>=\s*TORCH_VERSION_(\d+)_(\d+)", line)
            stack.append((int(guard[1]), int(guard[2])) if guard else (0, 0))
        elif line.startswith("#endif"):
            stack.pop()
        else:
            for name in re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", line):
                yield name, max(stack, default=(0, 0))


def declared() -> dict[str, tuple[int, int]]:
    """Every function of torch's C shim, with the first version that has it (0.0: before guards)."""
    include = Path(torch.__file__).parent / "include" / "torch" / "csrc"
    found: dict[str, tuple[int, int]] = {}
    for header in [
        *(include / "inductor").rglob("shim*.h"),
        *(include / "stable").rglob("shim*.h"),
    ]:
        for name, version in versions(header.read_text()):
            found[name] = min(version, found.get(name, version))
    return found


def test_the_guards_of_headers_are_understood() -> None:
    text = """
    void aoti_torch_old(int x);
    #if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_10_0
    AOTI_TORCH_EXPORT int
    torch_ten(void);
    #ifdef USE_CUDA
    int torch_ten_cuda(void);
    #endif // USE_CUDA
    #endif
    #if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_12_0
    int torch_twelve(void);
    #endif
    """
    assert dict(versions(text)) == {
        "aoti_torch_old": (0, 0),
        "torch_ten": (2, 10),
        "torch_ten_cuda": (2, 10),
        "torch_twelve": (2, 12),
    }


def test_every_symbol_of_torch_is_in_torch_2_11() -> None:
    have = declared()
    asked = [name for name in undefined() if re.match(r"(aoti_)?torch_", name)]
    assert "torch_library_impl" in asked and have["torch_library_impl"] == (2, 10)
    for name in asked:
        # Names made by a macro (dtypes, layouts, ...) are in no declaration that can be read.
        made = re.match(r"aoti_torch_(dtype|layout|memory_format|device_type)_", name)
        assert made or name in have, f"{name}: not declared in torch's C shim"
        assert made or have[name] <= OLDEST, f"{name}: since torch {have[name]}"


def test_nothing_else_of_torch_or_cuda_is_asked_for() -> None:
    for name in undefined():
        assert not re.match(r"_ZNK?(2at|3c10|5torch|6caffe2)", name), f"{name}: not a stable symbol"
        assert not re.match(r"cu(da)?[A-Z]", name), f"{name}: the CUDA runtime is not linked in"


@needs_cuda_build
def test_a_torch_without_cuda_can_load_the_library() -> None:
    needed = {name: kind for name, kind in undefined().items() if "cuda" in name}
    weak = {name for name, kind in needed.items() if kind == "w"}
    # The number of a device type is there in any torch; the stream is not.
    assert set(needed) - weak <= {"aoti_torch_device_type_cuda"}
    assert "aoti_torch_get_current_cuda_stream" in weak


@needs_cuda_build
def test_a_torch_with_cuda_gives_its_stream() -> None:
    # The address that the loader has put in for the weak symbol, as the library sees it: none on a
    # torch without CUDA. It comes from libtorch_cuda.so, which a weak symbol alone does not search
    # and libtorch.so brings along.
    info = _native.build_info()
    assert info is not None and info["cuda_stream"] == torch.backends.cuda.is_built()
    assert "libtorch.so" in needed_libraries()


@needs_cuda_build
def test_the_cuda_runtime_inside_stays_hidden() -> None:
    out = subprocess.run(
        ["nm", "-D", "--defined-only", library()], capture_output=True, text=True, check=True
    ).stdout
    assert not re.search(r" cu(da)?[A-Z]", out)


def cuobjdump() -> str:
    """NVIDIA's reader of compiled kernels: of the toolkit, or the one that comes with Triton."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.exists() else None
    if found is None:
        pytest.skip("no cuobjdump (of the CUDA toolkit, or of Triton)")
    return found


@pytest.fixture(scope="module")
def resources() -> dict[tuple[int, str], dict[str, int]]:
    """(architecture, kernel) -> REG, STACK, SHARED, LOCAL, ..."""
    out = subprocess.run(
        [cuobjdump(), "-res-usage", library()], capture_output=True, text=True, check=True
    ).stdout
    found, architecture, kernel = {}, 0, ""
    for line in out.splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.match(r"\s*Function (\w+):", line):
            kernel = match[1]
        elif "REG:" in line and (match := re.findall(r"([A-Z]+)(?:\[\d\])?:(\d+)", line)):
            found[architecture, kernel] = {name: int(value) for name, value in match}
    return found


@needs_cuda_build
def test_every_architecture_has_every_kernel(resources) -> None:
    kernels = {
        a: {name for arch, name in resources if arch == a} for a in {a for a, _ in resources}
    }
    assert set(kernels) == set(_cuda.ARCHITECTURES)
    first = kernels[_cuda.ARCHITECTURES[0]]
    assert all(names == first for names in kernels.values())

    def count(*parts: str) -> int:
        return sum(all(part in name for part in parts) for name in first)

    # 16-bit: 2 types, 4 head dims, 2 lengths; float32: 2 lengths.
    assert count("12st_attention7forward") == count("12st_attention8backward") == 16
    assert count("st_attention_float", "forward") == count("st_attention_float", "backward") == 2
    assert count("vector_quantize_kernels") == 6  # 3 types, 2 sizes
    assert count("code_statistics_kernels", "add") == 6  # 3 types, few columns or many


@needs_cuda_build
def test_every_kernel_is_listed_with_what_its_launch_takes(resources) -> None:
    if importlib.util.find_spec("colaworld._C") is None:
        pytest.skip("colaworld._C was not built: no headers of Python, or no pybind11")
    kernels = {kernel.name: kernel for kernel in _native.cuda_kernels(ask_driver=False)}
    compiled = {
        kernel for architecture, kernel in resources if architecture == _cuda.ARCHITECTURES[0]
    }
    assert len(kernels) == len(compiled)
    # Weights [2, D] and tables [2, T, D / 2] of 4 bytes; for each of 4 warps 16 rows of q, k and v.
    forward = kernels["st_attention forward, bfloat16, D 72, T <= 16"]
    looked_up, rows = (2 * 72 + 2 * 16 * 36) * 4, 4 * 3 * 16 * 72 * 2
    assert (forward.threads, forward.dynamic_shared) == (4 * 32, looked_up + rows)
    assert forward.registers is forward.local is forward.static_shared is forward.blocks is None
    search = kernels["vector_quantize, 64 rows a block, float32"]
    # Tiles of 32 channels of 64 rows and 64 entries, each padded by 4; a number for each of both.
    assert (search.threads, search.dynamic_shared) == (256, (2 * 32 * (64 + 4) + 64 + 64) * 4)
    for name, kernel in kernels.items():
        assert kernel.dynamic_shared <= SHARED[90], name


@needs_cuda_build
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_driver_that_is_not_there_is_an_error() -> None:
    if importlib.util.find_spec("colaworld._C") is None:
        pytest.skip("colaworld._C was not built: no headers of Python, or no pybind11")
    with pytest.raises(RuntimeError, match="the CUDA driver: "):
        _native.cuda_kernels(ask_driver=True)


@needs_cuda_build
def test_nothing_spills_or_uses_a_stack(resources) -> None:
    for (architecture, kernel), used in resources.items():
        assert used["STACK"] == used["LOCAL"] == 0, (architecture, kernel, used)
        assert used["REG"] <= REGISTERS, (architecture, kernel, used)
        assert used["SHARED"] <= SHARED[architecture], (architecture, kernel, used)
