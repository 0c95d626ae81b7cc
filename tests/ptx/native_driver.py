"""The kernels that nvcc compiled, run from their PTX on CPU tensors.

    native = Native.built()                       # PTX of sm_90, out of the built library
    native = Native.compiled(80)                  # from csrc/cuda/*.cu, by nvcc
    out = native.attention(qkv, ..., causal=True)

Which kernel a call takes, with how many blocks, threads, bytes and which parameters, is asked of the
launch code of csrc/cuda itself: compiled for the host, with a `launch` that writes down (`native/`).
The structs that it takes are read out of its headers. Not here: tensors in csrc/cuda/*_cuda.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ptx.count import Counts
from ptx.faults import Reports
from ptx.fresh import bytes_of, poison
from ptx.launch import launch
from ptx.machine import Shape
from ptx.memory import GlobalMemory
from ptx.parse import Module
from ptx.program import Program
from ptx.triton_driver import CACHE

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc" / "cuda"
SIMT = HERE.parent / "csrc"
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_KINDS = {
    "int64_t": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float, "bool": ctypes.c_bool,
    "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "double": ctypes.c_double,
}  # fmt: skip


class Missing(Exception):
    """What this machine lacks for it: a compiler, a tool, a CUDA build of the library."""


# --- the launch code, on the host ------------------------------------------------------------------


@functools.cache
def struct(name: str) -> type[ctypes.Structure]:
    """A struct of csrc/cuda/*.h as ctypes knows it; its size is checked against the compiler's."""
    for header in sorted(CSRC.glob("*.h")):
        found = re.search(rf"struct {name} \{{(.*?)\n\}};", header.read_text(), re.S)
        if found is None:
            continue
        fields: list[tuple[str, type]] = []
        for line in re.sub(r"//[^\n]*", "", found[1]).split(";"):
            words = line.replace("const ", "").strip()
            if not words:
                continue
            kind, names = words.split(None, 1)
            pointer = "*" in words
            for field_name in names.replace("*", "").split(","):
                fields.append((field_name.strip(), ctypes.c_void_p if pointer else _KINDS[kind]))
        made = type(name, (ctypes.Structure,), {"_fields_": fields})
        assert ctypes.sizeof(made) == getattr(host(), f"size_of_{name}")(), f"{name} in {header}"
        return made
    raise LookupError(f"no struct {name} in {CSRC}")


@functools.cache
def host() -> ctypes.CDLL:
    """The launch code as a library."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None or shutil.which("nm") is None:
        raise Missing("no C++ compiler (g++ or c++, or name one in CXX) with nm")
    sources = [
        *sorted(CSRC.glob("*")),
        SIMT / "simt.h",
        SIMT / "listing.cuh",
        *sorted((HERE / "native").iterdir()),
    ]
    digest = hashlib.sha256(b"".join(s.read_bytes() for s in sources if s.is_file())).hexdigest()
    library = CACHE / f"launches-{digest[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            folder = Path(name)  # side by side: ours takes the place of csrc/cuda/launch.cuh
            for source in sources:
                if source.is_file():
                    shutil.copy(source, folder)
            made = folder / "made.so"
            done = subprocess.run(
                [compiler, "-std=c++17", "-O0", "-g0", "-fPIC", "-shared", "-w", "-x", "c++",
                 folder / "launches.cpp", "-o", made],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise RuntimeError(f"the launch code does not compile for the host:\n{done.stderr}")
            made.rename(library)
    loaded = ctypes.CDLL(str(library))
    for name in ("kernel_of", "base"):
        getattr(loaded, name).restype = ctypes.c_void_p
    for name in ("blocks_of", "attention_blocks"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


@functools.cache
def _symbols() -> dict[int, str]:
    """Place in the library -> plain name, of every function in it."""
    path = host()._name
    out = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in out.splitlines():
        parts = line.split(None, 2)
        if len(parts) == 3 and parts[1] in "tTwWuV":
            found[int(parts[0], 16)] = plain(parts[2])
    return found


def plain(name: str) -> str:
    """`colaworld::cuda::st_attention::forward<bf16, 72, 2>` without what compilers differ in."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\(.*", "", name.replace("colaworld::cuda::", "")).replace(" ", "")


@dataclass(frozen=True)
class Recorded:
    kernel: str  # its plain name
    blocks: int
    threads: int
    bytes: int
    parameters: bytes


def recorded(function: str, *arguments: object) -> list[Recorded]:
    """What a function of `native/launches.cpp` launches."""
    library = host()
    library.forget()
    getattr(library, function)(*arguments)
    forget = next(at for at, name in _symbols().items() if name == "forget")
    found = []
    for i in range(library.count()):
        at = ctypes.c_char_p()
        size = library.parameters_of(i, ctypes.byref(at))
        found.append(
            Recorded(
                _symbols()[library.kernel_of(i) - library.base() + forget],
                library.blocks_of(i), library.threads_of(i), library.bytes_of(i),
                ctypes.string_at(at, size),
            )
        )  # fmt: skip
    return found


def attention_alignment(dtype: torch.dtype) -> int:
    """Bytes that rows of qkv and grad start on."""
    return host().attention_alignment(ELEMENTS[dtype])


# --- the kernels -----------------------------------------------------------------------------------


def library() -> Path:
    """The compiled ops, where they were built with CUDA."""
    from colaworld import ops
    from colaworld.ops import _native

    built = ops.build_info()
    if _native.PATH is None or built is None or not built["cuda"]:
        raise Missing("the ops were built without CUDA")
    return Path(_native.PATH)


def _cuobjdump() -> str:
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    found = shutil.which("cuobjdump")
    if found is None:
        raise Missing("no cuobjdump (it comes with triton and with the CUDA toolkit)")
    return found


def parts_of(text: str) -> Iterator[tuple[str, str]]:
    """(name, PTX of it alone) of each kernel of a module."""
    starts = [m.start() for m in re.finditer(r"^[^\n]*\.entry\s", text, re.M)]
    shared = "".join(re.findall(r"^\s*(?:\.extern\s+)?\.shared[^;]*;\n", text, re.M))
    for start, end in zip(starts, [*starts[1:], len(text)], strict=False):
        body = text[start : text.rindex("}", start, end) + 1]
        yield re.search(r"\.entry\s+([\w$]+)", body)[1], shared + body


@dataclass(frozen=True)
class Launched:
    kernel: str  # its plain name
    counts: Counts


@dataclass
class Native:
    """The kernels of one architecture, with what their launches found."""

    arch: int
    texts: Sequence[str]  # PTX modules
    reports: Reports = field(default_factory=Reports)
    launches: list[Launched] = field(default_factory=list)
    transform: Callable[[str], str] | None = None
    kernels: dict[str, tuple[str, str]] = field(default_factory=dict)  # plain name -> name, PTX
    _programs: dict[str, Program] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kernels:
            return
        found = {name: part for text in self.texts for name, part in parts_of(text)}
        names = "\n".join(found)
        plainly = subprocess.run(
            ["c++filt"], input=names, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        self.kernels = {plain(p): item for p, item in zip(plainly, found.items(), strict=True)}

    @classmethod
    def built(cls) -> Native:
        text = subprocess.run(
            [_cuobjdump(), "-ptx", library()], capture_output=True, text=True, check=True
        ).stdout
        return cls(90, text.split("Fatbin ptx code:")[1:])

    @classmethod
    def compiled(cls, arch: int) -> Native:
        nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
        if nvcc is None:
            raise Missing("no nvcc")
        sources = sorted(CSRC.iterdir())
        digest = hashlib.sha256(b"".join(s.read_bytes() for s in sources)).hexdigest()[:16]
        texts = []
        for source in sorted(CSRC.glob("*.cu")):
            made = CACHE / f"{source.stem}-{arch}-{digest}.ptx"
            if not made.exists():
                made.parent.mkdir(parents=True, exist_ok=True)
                half = made.with_suffix(f".{os.getpid()}")
                subprocess.run(
                    [nvcc, "-ptx", f"-arch=compute_{arch}", "-std=c++17", source, "-o", half],
                    check=True, capture_output=True, text=True,
                )  # fmt: skip
                half.rename(made)
            texts.append(made.read_text())
        return cls(arch, texts)

    def changed(self, transform: Callable[[str], str]) -> Native:
        """The same kernels with the PTX of each changed, for mutations."""
        return Native(self.arch, self.texts, transform=transform, kernels=self.kernels)

    def program(self, kernel: str) -> Program:
        if kernel not in self._programs:
            name, text = self.kernels[kernel]
            text = text if self.transform is None else self.transform(text)
            made = Module(text).kernels[name]
            made.name = kernel  # in what is reported
            self._programs[kernel] = Program(made)
        return self._programs[kernel]

    def run(self, function: str, *arguments: object, memory: GlobalMemory) -> None:
        """A function of `native/launches.cpp`, and every kernel that it launches."""
        for made in recorded(function, *arguments):
            counts = Counts()
            self.launches.append(Launched(made.kernel, counts))
            launch(
                self.program(made.kernel),
                Shape((made.blocks, 1, 1), (made.threads, 1, 1), made.bytes),
                memory, made.parameters, reports=self.reports, counts=counts,
            )  # fmt: skip

    # --- one method for each op: what its caller in csrc/cuda/*_cuda.cpp does ---

    def attention(
        self,
        qkv: Tensor,  # [B, T, S, 3, H, D]
        q_weight: Tensor | None = None,  # [D] float32
        k_weight: Tensor | None = None,
        cos: Tensor | None = None,  # [T, D / 2] float32
        sin: Tensor | None = None,
        *,
        causal: bool,
        eps: float,
        scale: float,
        grad: Tensor | None = None,  # [B, T, S, H, D]
        resident: int = 2,  # blocks that the device is said to work on at a time
        skew: int = 0,  # addresses of qkv and grad modulo 256
    ) -> tuple[Tensor, ...]:
        """(out,), or with `grad` the gradients of qkv and of the weights that there are."""
        B, T, S, _, H, D = qkv.shape
        memory = GlobalMemory()
        call = struct("StAttentionCall")(
            x=_add(memory, "qkv", qkv, skew), q_weight=_add(memory, "q_weight", q_weight),
            k_weight=_add(memory, "k_weight", k_weight), cos=_add(memory, "cos", cos),
            sin=_add(memory, "sin", sin), pairs=B * S * H, S=S, H=H, T=T, D=D, eps=eps,
            scale=scale, causal=causal,
        )  # fmt: skip
        _strides(call, "x", qkv, ("b", "t", "s", "part", "h"))
        shape = (B, T, S, H, D) if grad is None else (B, T, S, 3, H, D)
        out = _Made(memory, "out", shape, qkv.dtype)
        call.out = out.address
        element, back = ELEMENTS[qkv.dtype], int(grad is not None)
        host().set_resident_blocks(ctypes.c_int64(resident))
        blocks = host().attention_blocks(element, ctypes.byref(call), back)
        rest = (ctypes.c_int64(blocks),)
        if grad is None:
            self.run("attention", element, ctypes.byref(call), back, *rest, memory=memory)
            return (out.whole(),)
        call.grad = _add(memory, "grad", grad, skew)
        _strides(call, "grad", grad, ("b", "t", "s", "h"))
        partial = _Made(memory, "partial", (blocks, 2, D), torch.float32)
        call.partial = partial.address
        self.run("attention", element, ctypes.byref(call), back, *rest, memory=memory)
        sums = [
            None if w is None else _Made(memory, "sum", (D,), torch.float32)
            for w in (q_weight, k_weight)
        ]
        if any(sums):
            self.run(
                "attention_sum", ctypes.c_void_p(partial.address), *rest, D,
                *(ctypes.c_void_p(None if s is None else s.address) for s in sums), memory=memory,
            )  # fmt: skip
        return (out.whole(), *(s.whole() for s in sums if s is not None))

    def nearest(self, z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        """(codes, indices) of z [N, d] in codebook [K, d]."""
        (N, d), K = z.shape, codebook.shape[0]
        memory = GlobalMemory()
        codes = _Made(memory, "codes", (N, d), z.dtype)
        indices = _Made(memory, "indices", (N,), torch.int64)
        call = struct("VectorQuantizeCall")(
            z=_add(memory, "z", z), codebook=_add(memory, "codebook", codebook),
            codes=codes.address, indices=indices.address, N=N, K=K, d=d,
        )  # fmt: skip
        self.run("quantize", ELEMENTS[z.dtype], ctypes.byref(call), memory=memory)
        return codes.whole(), indices.whole()

    def sums(self, z: Tensor, indices: Tensor, K: int, *, counts: bool) -> Tensor:
        """[K, d + counts] sums of the rows of z [N, d], and how many they are."""
        N, d = z.shape
        memory = GlobalMemory()
        width = d + int(counts)
        plan = struct("CodeStatisticsPlan")()
        host().plan(*(ctypes.c_int64(n) for n in (N, K, d, width)), ctypes.byref(plan))
        out = _Made(memory, "out", (K, width), torch.float32)
        partial = out
        if plan.parts > 1:
            partial = _Made(memory, "partial", (plan.parts, K, width), torch.float32)
        call = struct("CodeStatisticsCall")(
            z=_add(memory, "z", z), indices=_add(memory, "indices", indices),
            partial=partial.address, out=out.address, N=N, K=K, d=d, width=width,
        )  # fmt: skip
        self.run(
            "statistics", ELEMENTS[z.dtype], ctypes.byref(call), ctypes.byref(plan), memory=memory
        )
        return out.whole()


class NotWritten(AssertionError):
    """A kernel left numbers of its output as they were."""


class _Made:
    """An output: memory that nobody has written yet."""

    def __init__(self, memory: GlobalMemory, name: str, shape, dtype: torch.dtype) -> None:
        self.tensor = torch.empty(shape, dtype=dtype)
        poison(self.tensor)
        raw = bytes_of(self.tensor)
        self.memory, self.name = memory, name
        self.address = memory.add(raw.view(f"u{dtype.itemsize}"), name, written=False)

    def whole(self) -> Tensor:
        """The tensor, which must have been written to the last number."""
        written = self.memory.written(self.address)
        if not written.all():
            raise NotWritten(f"{int((~written).sum())} of {written.size} granules of {self.name}")
        return self.tensor


def _add(memory: GlobalMemory, name: str, tensor: Tensor | None, skew: int = 0) -> int | None:
    """The address of a tensor's first number; 0 for None."""
    if tensor is None:
        return None
    raw = bytes_of(tensor)
    base = memory.add(raw.view(f"u{tensor.element_size()}"), name, skew=skew)
    return base + tensor.storage_offset() * tensor.element_size()


def _strides(call, name: str, tensor: Tensor, axes: Sequence[str]) -> None:
    for axis, stride in zip(axes, tensor.stride(), strict=False):
        setattr(call, f"{name}_{axis}", stride)
