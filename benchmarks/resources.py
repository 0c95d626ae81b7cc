"""What every GPU kernel takes of a processor: registers, stack, shared memory. No GPU is needed.

    python -m colaworld.benchmarks.resources            print, and compare with the committed table
    python -m colaworld.benchmarks.resources --write    print, and write the table

Triton kernels are compiled ahead of time in each configuration that is shipped; the kernels of the
compiled library are read out of it. A kernel that touches the stack (its registers spilled), asks for
more shared memory than the architecture has, or takes more than the committed row is a failure.
Not here: times (`run.py`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colaworld import ops

RESULTS = Path(__file__).parent / "results" / "resources.json"
TRITON_FILES = ("st_attention", "qk_norm_rope", "adaln", "vector_quantize")
# Shared memory that one block may use, in bytes (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
_TENSOR_CORES = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA|IMMA)\b")
_USAGE = re.compile(
    r"Function (?P<name>\S+):\s*\n\s*REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+)"
)

Row = dict[str, Any]


def rows() -> Iterator[Row]:
    """One row for each kernel, configuration and architecture."""
    yield from triton_rows()
    yield from cuda_rows()


def triton_rows() -> Iterator[Row]:
    """The Triton kernels; none where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return
    tuning = importlib.import_module("colaworld.kernels.tuning")
    for arch in tuning.ARCHITECTURES:
        for name in TRITON_FILES:
            module = importlib.import_module(f"colaworld.kernels.{name}")
            for configuration in module.configurations(arch):
                yield _compile(configuration, arch)


def _compile(configuration: Any, arch: int) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

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
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        used = next(_usage(_cuobjdump("-res-usage", file.name)))
        tensor_cores = len(_TENSOR_CORES.findall(_cuobjdump("-sass", file.name)))
    return {
        "kernel": configuration.kernel.__name__,
        "impl": "triton",
        "config": f"{configuration.label}, {configuration.num_warps} warps",
        "arch": arch,
        "registers": used["registers"],
        "stack": used["stack"],
        "shared": max(used["shared"], compiled.metadata.shared),
        "tensor_core_instructions": tensor_cores,
    }


def cuda_rows() -> Iterator[Row]:
    """The kernels within the compiled library; none where it was built without CUDA."""
    built = ops.build_info()
    spec = importlib.util.find_spec("colaworld._native")
    if built is None or not built["cuda"] or spec is None or spec.origin is None:
        return
    listing = _cuobjdump("-lelf", spec.origin)
    for arch in sorted({int(found) for found in re.findall(r"sm_(\d+)", listing)}):
        usage = _cuobjdump("-arch", f"sm_{arch}", "-res-usage", spec.origin)
        sass = _sass_by_function(_cuobjdump("-arch", f"sm_{arch}", "-sass", spec.origin))
        for used in _usage(usage):
            yield {
                "kernel": _plain(used["name"]),
                "impl": "cuda",
                "config": "",
                "arch": arch,
                "registers": used["registers"],
                "stack": used["stack"],
                "shared": used["shared"],
                "tensor_core_instructions": len(_TENSOR_CORES.findall(sass.get(used["name"], ""))),
            }


def _usage(text: str) -> Iterator[dict[str, Any]]:
    for found in _USAGE.finditer(text):
        numbers = {key: int(found[key]) for key in ("registers", "stack", "shared")}
        yield {"name": found["name"], **numbers}


def _sass_by_function(text: str) -> dict[str, str]:
    parts = re.split(r"Function : (\S+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _plain(mangled: str) -> str:
    try:
        done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    except OSError:
        return mangled
    plain = done.stdout.strip().replace("(anonymous namespace)::", "")
    return plain.removeprefix("void ").split("(")[0]


def _cuobjdump(*arguments: str) -> str:
    """Runs the cuobjdump that comes with triton, or the one of the CUDA toolkit."""
    tool = "cuobjdump"
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        tool = str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    try:
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{tool} cannot be run ({error}); it comes with triton and with the CUDA toolkit"
        ) from error
    if done.returncode != 0:
        raise RuntimeError(f"{tool} {' '.join(arguments)}: {done.stderr.strip() or done.stdout}")
    return done.stdout


def _key(row: Row) -> tuple[Any, ...]:
    return row["impl"], row["kernel"], row["config"], row["arch"]


def complaints(found: list[Row], committed: list[Row]) -> list[str]:
    """What is wrong with these rows, one line each; nothing when all is well."""
    before = {_key(row): row for row in committed}
    lines = []
    for row in found:
        name = "{impl} {kernel} [{config}] sm_{arch}".format(**row)
        if row["stack"]:
            lines.append(f"{name}: {row['stack']} bytes of stack, expected none")
        limit = SHARED_LIMIT.get(row["arch"])
        if limit is not None and row["shared"] > limit:
            lines.append(f"{name}: {row['shared']} bytes of shared memory, the limit is {limit}")
        old = before.get(_key(row))
        if old is None:
            lines.append(f"{name}: not in the committed table; look at it, then --write")
            continue
        for what in ("registers", "shared"):
            if row[what] > old[what]:
                lines.append(f"{name}: {what} rose from {old[what]} to {row[what]}")
    # Kinds that could not be built here (no nvcc, no triton) are not missing.
    kinds = {row["impl"] for row in found}
    gone = before.keys() - {_key(row) for row in found}
    lines += [
        f"{key}: in the committed table, but no longer shipped"
        for key in sorted(gone)
        if key[0] in kinds
    ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table")
    arguments = parser.parse_args()
    found = []
    for row in rows():
        found.append(row)
        print(
            "{impl:7} sm_{arch:<4} {registers:4} registers {stack:3} stack {shared:6} shared "
            "{tensor_core_instructions:4} tensor core  {kernel} {config}".format(**row),
            flush=True,
        )
    for kind, reason in (("triton", "triton is not installed"), ("cuda", "built without CUDA")):
        if not any(row["impl"] == kind for row in found):
            print(f"{kind}: no kernels to read ({reason})")
    if arguments.write:
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n")
        print(f"written: {RESULTS.name}")
    wrong = complaints(found, json.loads(RESULTS.read_text()) if RESULTS.is_file() else [])
    for line in wrong:
        print(f"WRONG {line}")
    print(f"{len(found)} rows, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
