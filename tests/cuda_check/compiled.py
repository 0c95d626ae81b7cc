"""Every GPU kernel as it is shipped, compiled ahead of time and read: one row each. No GPU is needed.

Triton kernels are compiled in each of their configurations, the kernels of the compiled library are
read out of it. What was read is kept in `build/resources` under a hash of all that it follows from,
so kernels that did not change cost nothing. Not here: what a row means (`sass.py`, `predict.py`),
what becomes of it (`resources.py`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from colaworld import ops
from colaworld.ops import _native

from . import predict, sass
from .predict import Row

KEPT = Path(__file__).resolve().parents[2] / "build" / "resources"
OPS = ("st_attention", "qk_norm_rope", "adaln", "vector_quantize")  # files in kernels
_USAGE = re.compile(
    r"Function (?P<name>\S+):\s*\n\s*REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+)"
)


def rows(only: str | None = None, workers: int = 2) -> Iterator[Row]:
    """One row for each kernel, configuration and architecture; of one op where it is named."""
    yield from triton_rows(only, workers)
    yield from cuda_rows(only)


def triton_rows(only: str | None = None, workers: int = 2) -> Iterator[Row]:
    """The Triton kernels, in `workers` processes; none where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return
    architectures = importlib.import_module("colaworld.kernels.tuning").ARCHITECTURES
    jobs = [
        (op, arch, place, _key(configuration, arch))
        for arch in architectures
        for op in OPS
        if only in (None, op)
        for place, configuration in enumerate(_configurations(op, arch))
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        made = {
            key: pool.submit(_compile, op, arch, place)
            for op, arch, place, key in jobs
            if not _kept(key).is_file()
        }
        for op, arch, _, key in jobs:
            read = _remembered(key, lambda key=key: made[key].result())
            yield {"impl": "triton", "op": op, "arch": arch, **read}


def _configurations(op: str, arch: int) -> list[Any]:
    return list(importlib.import_module(f"colaworld.kernels.{op}").configurations(arch))


def _compile(op: str, arch: int, place: int) -> Row:
    """Runs in a process of its own, so the configuration is named, not sent."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    configuration = _configurations(op, arch)[place]
    names = configuration.kernel.arg_names
    attributes = {
        (names.index(name),): [["tt.divisibility", divisor]]
        for name, divisor in configuration.divisible.items()
    }
    source = ASTSource(
        fn=configuration.kernel,
        signature=dict(configuration.signature),
        constexprs=dict(configuration.constants),
        attrs=attributes,
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": configuration.num_warps, "num_stages": configuration.num_stages},
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        (read,) = read_cubin(cubin, arch)
    read |= {
        "kernel": configuration.kernel.__name__,
        "config": configuration.label,
        "compiler": f"triton {triton.__version__}",
        "threads": 32 * compiled.metadata.num_warps,
    }
    return read | {"shared": read["shared"] + compiled.metadata.shared}


def cuda_rows(only: str | None = None) -> Iterator[Row]:
    """The kernels within the compiled library; none where it was built without CUDA."""
    built = ops.build_info()
    if built is None or not built["cuda"] or _native.PATH is None:
        return
    launches = {kernel.name: kernel for kernel in ops.cuda_kernels(ask_driver=False)}
    with tempfile.TemporaryDirectory() as folder:
        _tool("cuobjdump", "-xelf", "all", _native.PATH, folder=folder)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            arch = int(re.search(r"\.sm_(\d+)", cubin.name)[1])
            key = _hash(cubin.read_bytes(), built["cuda_note"], _reader())
            for read in _remembered(key, lambda: list(read_cubin(cubin, arch))):  # noqa: B023
                launch = launches[launch_name(read["kernel"])]
                op = launch.name.split()[0].strip(",")
                op = "vector_quantize" if op == "code_statistics" else op  # one file of kernels
                if only in (None, op):
                    yield {
                        "impl": "cuda",
                        "op": op,
                        "arch": arch,
                        **read,
                        "config": "",
                        "compiler": built["cuda_note"],
                        "threads": launch.threads,
                        "shared": read["shared"] + launch.dynamic_shared,
                    }


_LAUNCHES = (  # what a kernel is called, and how the library lists it (csrc/cuda/kernels.h)
    (r"st_attention::(\w+)<(\w+), (\d+), 2>", r"st_attention \1, \2, D \3, T <= 16"),
    (r"st_attention::(\w+)<(\w+), (\d+), 4>", r"st_attention \1, \2, D \3, T <= 32"),
    (r"st_attention_float::(\w+)<(\d+)>", r"st_attention \1, float32, D 128, T <= \2"),
    (r"sum", r"st_attention, sums of the weights"),
    (r"vector_quantize_kernels::assign<(\w+), 4>", r"vector_quantize, 64 rows a block, \1"),
    (r"vector_quantize_kernels::assign<(\w+), 8>", r"vector_quantize, 128 rows a block, \1"),
    (r"code_statistics_kernels::add<(\w+), 1>", r"code_statistics at its largest, \1, d <= 32"),
    (r"code_statistics_kernels::add<(\w+), 4>", r"code_statistics at its largest, \1, d > 32"),
    (r"code_statistics_kernels::merge<float32>", r"code_statistics, sums of parts"),
)


def launch_name(kernel: str) -> str:
    """How the library lists a kernel, which says how it is launched. ValueError: no line above fits."""
    name = kernel.replace("colaworld::cuda::", "")
    for short, long in (("bf16", "bfloat16"), ("fp16", "float16"), ("<float", "<float32")):
        name = re.sub(rf"{short}\b", long, name)
    for pattern, listed in _LAUNCHES:
        if found := re.fullmatch(pattern, name):
            return found.expand(listed)
    raise ValueError(f"{kernel}: expected a line of _LAUNCHES in {__name__} for it, got none")


# --- reading ------------------------------------------------------------------------------------


def read_cubin(cubin: Path, arch: int) -> Iterator[Row]:
    """What is compiled of each kernel in a file of machine code."""
    usage = _tool("cuobjdump", "-res-usage", str(cubin))
    code = sass.functions(_tool("cuobjdump", "-sass", str(cubin)))
    for used in resource_usage(usage):
        name = used.pop("name")
        # From sm_90 on what belongs to the system is among the shared memory that is told.
        system = predict.SYSTEM_SHARED if arch >= 90 and used["shared"] else 0
        yield {
            "kernel": plain_name(name),
            **used,
            "shared": used["shared"] - system,
            **sass.summary(code[name]),
        }


def resource_usage(text: str) -> Iterator[Row]:
    """Registers, stack and shared memory of each function, from `cuobjdump -res-usage`."""
    for found in _USAGE.finditer(text):
        numbers = {key: int(found[key]) for key in ("registers", "stack", "shared")}
        yield {"name": found["name"], **numbers}


def plain_name(mangled: str) -> str:
    """A C++ name without its parameters; the mangled one where there is no c++filt."""
    try:
        done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    except OSError:
        return mangled
    plain = done.stdout.strip().replace("(anonymous namespace)::", "")
    return plain.removeprefix("void ").split("(")[0]


def _tool(name: str, *arguments: str, folder: str | None = None) -> str:
    """Runs a tool that comes with triton, or the one of the CUDA toolkit."""
    spec = importlib.util.find_spec("triton")
    tool = name
    if spec is not None and spec.origin is not None:
        tool = str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name)
    try:
        done = subprocess.run(
            [tool, *arguments], capture_output=True, text=True, check=False, cwd=folder
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{tool} cannot be run ({error}); it comes with triton and with the CUDA toolkit"
        ) from error
    if done.returncode != 0:
        raise RuntimeError(f"{tool} {' '.join(arguments)}: {done.stderr.strip() or done.stdout}")
    return done.stdout


# --- what was read before ------------------------------------------------------------------------


def _key(configuration: Any, arch: int) -> str:
    import triton

    return _hash(
        kernel_source(configuration.kernel),
        sorted(configuration.signature.items()),
        sorted((name, repr(value)) for name, value in configuration.constants.items()),
        sorted(configuration.divisible.items()),
        configuration.num_warps,
        configuration.num_stages,
        configuration.label,
        arch,
        triton.__version__,
        _reader(),
    )


def kernel_source(kernel: Any) -> str:
    """The text of a Triton kernel with all that it calls, and the constants it reads.

    Triton's own key of a kernel changes with the line that it stands on.
    """
    texts: dict[str, str] = {}
    left = [kernel]
    while left:
        function = left.pop()
        name = f"{function.__module__}.{function.__name__}"
        if name in texts:
            continue
        texts[name] = function.src
        for node in ast.walk(ast.parse(function.src)):
            value = None
            if isinstance(node, ast.Name):
                value = function.__globals__.get(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                value = getattr(function.__globals__.get(node.value.id), node.attr, None)
            if hasattr(value, "src") and hasattr(value, "arg_names"):
                if not value.__module__.startswith("triton."):
                    left.append(value)
            elif type(value).__name__ == "constexpr":
                texts[ast.unparse(node)] = repr(value)
    return json.dumps(sorted(texts.items()))


def _reader() -> str:
    """Rows follow from how they are read, too."""
    return "".join(Path(file).read_text() for file in (__file__, sass.__file__))


def _hash(*parts: Any) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(part if isinstance(part, bytes) else repr(part).encode())
    return made.hexdigest()


def _kept(key: str) -> Path:
    return KEPT / f"{key}.json"


def _remembered(key: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, or gave when it was last asked under this key."""
    file = _kept(key)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(make()))
        part.replace(file)
    return json.loads(file.read_text())
