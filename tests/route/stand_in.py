"""A GPU that need not be there: CPU tensors go the way of CUDA tensors, through every line on the host.

    CUDA C++   csrc/cuda's own tensor and launch code, compiled by a C++ compiler; kernels lane by lane (simt.h)
    Triton     launch functions of `kernels/` as they are; kernels from the PTX that Triton compiled (tests/ptx)
    torch      its CPU kernels

Not here: what only a device can tell (streams, graphs, cuBLAS, cuDNN, speed).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
HOST = [HERE.parent / "csrc" / name for name in ("simt.h", "listing.cuh")]


def library() -> Path | None:
    """The CUDA ops as CPU ops, built once for each state of the sources; None without a compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    ours = [HERE / name for name in ("gpu_on_host.h", "gpu_on_host.cpp", "launch.cuh")]
    # Ours come last: they take the place of csrc/cuda's files of the same names.
    sources = [*sorted((CSRC / "cuda").iterdir()), *HOST, *ours]
    above = [*CSRC.glob("*.h"), CSRC / "facts.cpp", *CSRC.glob("cpu/instruction_set.*")]
    digest = hashlib.sha256(torch.__version__.encode())
    for source in (*sources, *above):
        digest.update(source.read_bytes())
    cache = Path(tempfile.gettempdir()) / f"gpu-on-host-{os.getuid()}"
    made = cache / f"{digest.hexdigest()[:16]}.so"
    if made.exists():
        return made
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name) / "cuda"
        folder.mkdir()
        for source in sources:
            shutil.copy(source, folder)
        for source in above:
            target = Path(name) / source.relative_to(CSRC)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
        torch_folder = Path(torch.__file__).parent
        done = subprocess.run(
            [compiler, "-std=c++17", "-O1", "-g0", "-fPIC", "-shared", "-w",
             "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DCOLAWORLD_CUDA_ARCHITECTURES=90",
             *(f'-DCOLAWORLD_{name}="stand-in 0"' for name in ("VERSION", "CUDA_NOTE", "TORCH_VERSION")),
             f"-I{torch_folder / 'include'}",
             "-x", "c++", folder / "gpu_on_host.cpp", Path(name) / "facts.cpp",
             Path(name) / "cpu" / "instruction_set.cpp", "-o", Path(name) / "made.so",
             f"-L{torch_folder / 'lib'}", "-ltorch_cpu"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-6000:]
        (Path(name) / "made.so").rename(made)
    return made


@contextlib.contextmanager
def gpu(arch: int = 90) -> Iterator[object]:
    """Within it CPU tensors are taken for CUDA tensors of that architecture; gives the PTX session.

    Needs a process whose compiled library is that of `library()`.
    """
    from ptx.triton_driver import on_ptx

    from colaworld.ops import _dispatch, _registry, attention_backends, reference

    plain = _dispatch.facts_of

    def facts_of(*arguments, **options):
        facts = plain(*arguments, **options)
        return replace(facts, device="cuda") if facts.device == "cpu" else facts

    def check_rows(name, rows, count, table) -> None:
        # As on a device: not waited for.
        torch._assert_async(((rows >= 0) & (rows < table.shape[0])).all(), name)

    def flex(q, k, v, *, block_mask) -> torch.Tensor:
        # Its definition, since torch has no gradient of it on a CPU.
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
        mask = block_mask.mask_mod(0, 0, i, j)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with on_ptx(arch) as session, torch.library._scoped_library("colaworld", "IMPL") as scoped:
        for op in _registry.ALL:
            if op.launch is not None:
                scoped.impl(f"{op.name}_triton", op.launch, "CPU")
        with (
            mock.patch.object(_dispatch, "facts_of", facts_of),
            mock.patch.object(reference, "_check_rows", check_rows),
            mock.patch.object(attention_backends, "flex", lambda: flex),
        ):
            yield session
    assert not session.reports, str(session.reports)


class HostRead(AssertionError):
    """Something asked a tensor for its values: on a GPU the host would wait, and no graph is captured."""


class NoHostReads(TorchDispatchMode):
    """Raises HostRead where a value, or a size that depends on values, would leave the device."""

    READS = (
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
        "aten::unique_consecutive",
        "aten::unique_dim",
        "aten::equal",
        "aten::is_nonzero",
        "aten::bincount",
        "aten::repeat_interleave.Tensor",
    )

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function._schema.name in self.READS or str(function._schema).startswith(self.READS):
            raise HostRead(f"{function} reads values on the host")
        index = arguments[1] if function._schema.name.startswith("aten::index") else ()
        for part in index if isinstance(index, (list, tuple)) else ():
            if isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8):
                raise HostRead(f"{function} with a mask counts on the host")
        return function(*arguments, **(named or {}))
