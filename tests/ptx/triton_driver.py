"""`kernel[grid](...)` of Triton on CPU tensors: compiled for a GPU that need not be there, run from its PTX.

    with on_ptx(90) as session:
        kernels.nearest(z, codebook)      # a launch function of `kernels/`
    assert not session.reports

Triton compiles what it would for that architecture, with its own view of the arguments (ones, multiples
of 16). ptxas is left out, so compiled kernels go to a cache of their own.
Not here: kernels that nvcc compiled (`native_driver.py`).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch

from ptx.count import Counts
from ptx.faults import Fault, Reports
from ptx.fresh import Flags, Fresh, address_of, bytes_of
from ptx.launch import launch
from ptx.machine import Shape
from ptx.memory import GlobalMemory
from ptx.parse import Module
from ptx.program import Program

CACHE = Path(os.environ.get("PTX_CACHE") or Path(tempfile.gettempdir()) / f"ptx-{os.getuid()}")
# What a launch function asks of `tensor.is_cuda` and hands on as a constant.
AS_ON_A_GPU = {"PIN": True}
_PACK = {
    "i1": "?", "u1": "?", "i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I",
    "i64": "q", "u64": "Q", "fp32": "f", "fp64": "d",
}  # fmt: skip


@dataclass
class Ran:
    """One launch."""

    kernel: str
    constants: dict[str, object]
    dtypes: dict[str, str]  # argument -> type
    arch: int
    shape: Shape
    counts: Counts
    seconds: float = 0.0


@dataclass
class Session:
    arch: int
    reports: Reports = field(default_factory=Reports)
    launches: list[Ran] = field(default_factory=list)
    blocks: range | None = None  # of every launch run only these
    races: bool = True
    apart: bool = False  # see launch.py
    transform: object = None  # text -> text, of the PTX before it runs: for mutations
    fresh: Fresh | None = None


@contextlib.contextmanager
def on_ptx(arch: int = 90, *, unwritten: bool = True, **options) -> Iterator[Session]:
    """Within it, Triton kernels run from their PTX; `options` are fields of Session."""
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on"):
        raise RuntimeError("TRITON_INTERPRET is set: kernels would run in Triton's interpreter")
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from colaworld.kernels import launch as launches

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", arch, 32)

        def get_current_device(self):
            return arch  # Triton keeps what it compiled by the number of a device

        def get_current_stream(self, device):
            return 0

    session = Session(arch, **options)
    compile_only = JITFunction.run

    def run(self, *arguments, grid, warmup=False, **named):
        named |= {n: v for n, v in AS_ON_A_GPU.items() if n in named}
        compiled = compile_only(self, *arguments, grid=grid, warmup=True, **named)
        if not warmup:
            _run(session, self, compiled, arguments, named, grid)
        return compiled

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": str(CACHE / "triton")}))
        enter(mock.patch.object(driver, "_active", Driver()))
        enter(mock.patch.object(CUDABackend, "make_cubin", lambda *_: b""))
        enter(mock.patch.object(JITFunction, "run", run))
        enter(mock.patch.object(launches, "architecture", lambda tensor: arch))
        if unwritten:
            session.fresh = enter(Fresh())
        yield session


def _run(session: Session, function, compiled, arguments, named, grid) -> None:
    started = time.perf_counter()
    program = _program(compiled, session.transform)
    bound = inspect.signature(function.fn).bind(
        *arguments, **{n: v for n, v in named.items() if n in function.arg_names}
    )
    bound.apply_defaults()
    memory = GlobalMemory()
    parameters, buffers = _parameters(session, function, compiled, bound.arguments, memory)
    blocks = tuple(grid(bound.arguments) if callable(grid) else grid)
    shape = Shape(
        (*blocks, 1, 1)[:3], (32 * compiled.metadata.num_warps, 1, 1), compiled.metadata.shared
    )
    ran = Ran(
        compiled.metadata.name, dict(_constants(compiled)), dict(compiled.src.signature),
        session.arch, shape, Counts(),
    )  # fmt: skip
    session.launches.append(ran)
    launch(
        program, shape, memory, parameters, reports=session.reports, counts=ran.counts,
        races=session.races, apart=session.apart, blocks=session.blocks,
    )  # fmt: skip
    ran.seconds = time.perf_counter() - started
    if session.fresh is not None:
        for address, buffer in buffers.items():
            if buffer.written is not None:
                session.fresh.of[address] = Flags(buffer.written, buffer.granule)


def _constants(compiled) -> Iterator[tuple[str, object]]:
    names = list(compiled.src.signature)
    for key, value in compiled.src.constants.items():
        if isinstance(key, tuple) and len(key) == 1:
            yield names[key[0]], value
        elif isinstance(key, str):
            yield key, value


def _program(compiled, transform) -> Program:
    if transform is None and hasattr(compiled, "_ptx_program"):
        return compiled._ptx_program
    text = compiled.asm["ptx"]
    module = Module(text if transform is None else transform(text))
    program = Program(module.kernels[compiled.metadata.name])
    if transform is None:
        compiled._ptx_program = program
    return program


def _parameters(session: Session, function, compiled, values, memory: GlobalMemory):
    """The bytes that the kernel reads its arguments from, and the buffers by their real address."""
    packed = bytearray()
    bases: dict[int, int] = {}
    buffers = {}

    def add(form: str, value) -> None:
        size = struct.calcsize(form)
        packed.extend(bytes(-len(packed) % size))
        packed.extend(struct.pack("<" + form, value))

    for name in function.arg_names:
        kind = compiled.src.signature.get(name, "constexpr")
        value = values[name]
        if kind == "constexpr":
            continue
        if isinstance(value, torch.Tensor):
            address = address_of(value)
            if address not in bases:
                flags = session.fresh.of.get(address) if session.fresh is not None else None
                raw = bytes_of(value)
                bases[address] = memory.add(raw, name, skew=address % 256)
                buffers[address] = memory.buffers[-1]
                buffers[address].granule = value.element_size()
                if flags is not None:
                    buffers[address].granule = flags.granule
                    buffers[address].written = flags.written
            buffer = buffers[address]
            if value.element_size() < buffer.granule and buffer.written is None:
                buffer.granule = value.element_size()
            add("Q", bases[address] + value.data_ptr() - address)
        elif kind in _PACK:
            add(_PACK[kind], value)
        else:
            raise Fault(f"{function.__name__}: argument {name} of type {kind}: {value!r}")
    packed.extend(bytes(-len(packed) % 8 + 16))  # two pointers that these kernels do not use
    return bytes(packed), buffers
