"""What every GPU kernel takes of a processor: registers, stack, shared memory. No GPU is needed.

    python -m colaworld.benchmarks.resources            print, and compare with the committed table
    python -m colaworld.benchmarks.resources --write    print, and write the table and the READMEs' part of it

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


# Which rows the READMEs show: where a model spends its time. (impl, kernel as it is called there,
# part of the row's kernel and config, bytes that it has to move at the sizes named, or None)
_N_XL = 8 * 16 * 256 * 1152  # numbers of q, or of x, in STDiT3-XL with eight clips
_N_LAM = 8 * 8 * 256 * 768  # the same in the latent action model
SHOWN: tuple[tuple[str, str, str, int | None], ...] = (
    ("triton", "st_attention forward, XL, bf16", "st_attention forward 16x72 T<=16 bf16, ", 8 * _N_XL),
    ("triton", "st_attention backward, XL, bf16", "st_attention backward 16x72 T<=16 bf16, ", 14 * _N_XL),
    ("triton", "st_attention forward, LAM, bf16", "st_attention forward 12x64 T<=16 bf16 causal, ", 8 * _N_LAM),
    ("triton", "st_attention backward, LAM, bf16", "st_attention backward 12x64 T<=16 bf16 causal, ", 14 * _N_LAM),
    ("triton", "st_attention forward, LAM, float32", "st_attention forward 12x64 T<=16 fp32 causal, ", 16 * _N_LAM),
    ("triton", "st_attention backward, LAM, float32", "st_attention backward 12x64 T<=16 fp32 causal, ", 28 * _N_LAM),
    ("triton", "qk_norm_rope forward, XL, bf16", "qk_norm_rope forward 16x72 head, interleaved bf16", 8 * _N_XL),
    ("triton", "qk_norm_rope backward, XL, bf16", "qk_norm_rope backward 16x72 head, interleaved bf16", 12 * _N_XL),
    ("triton", "qk_norm_rope forward, Wan, bf16", "qk_norm_rope forward 12x128 across, interleaved bf16", None),
    ("triton", "qk_norm_rope backward, Wan, bf16", "qk_norm_rope backward 12x128 across, interleaved bf16", None),
    ("triton", "adaln forward, XL, bf16", "adaln forward C=1152 bf16 gated, ", 8 * _N_XL),
    ("triton", "adaln backward, XL, bf16", "adaln backward C=1152 bf16 gated, ", 12 * _N_XL),
    ("triton", "adaln second pass", "adaln sum, ", None),
    ("triton", "vector_quantize, a batch, float32", "vector_quantize K=32 d=32 fp32 few rows, ", None),
    ("triton", "vector_quantize, K 8192 d 64, float32", "vector_quantize K=8192 d=64 fp32 many rows, ", None),
    ("triton", "code_statistics, small table", "code_statistics select K=32 d=32 fp32, ", None),
    ("triton", "code_statistics, pieces of a sort", "code_statistics pieces K=8192 d=64 fp32, ", None),
    ("triton", "code_statistics, entries of a sort", "code_statistics entries K=8192 d=64 fp32, ", None),
    ("triton", "update_codebook", "update_codebook K=32 d=32, ", None),
    ("cuda", "st_attention forward, XL, bf16", "st_attention::forward<colaworld::cuda::bf16, 72, 2>", 8 * _N_XL),
    ("cuda", "st_attention backward, XL, bf16", "st_attention::backward<colaworld::cuda::bf16, 72, 2>", 14 * _N_XL),
    ("cuda", "st_attention forward, XL, T <= 32, bf16", "st_attention::forward<colaworld::cuda::bf16, 72, 4>", 8 * _N_XL),
    ("cuda", "st_attention backward, XL, T <= 32, bf16", "st_attention::backward<colaworld::cuda::bf16, 72, 4>", 14 * _N_XL),
    ("cuda", "st_attention forward, LAM, bf16", "st_attention::forward<colaworld::cuda::bf16, 64, 2>", 8 * _N_LAM),
    ("cuda", "st_attention backward, LAM, bf16", "st_attention::backward<colaworld::cuda::bf16, 64, 2>", 14 * _N_LAM),
    ("cuda", "st_attention forward, D 128, bf16", "st_attention::forward<colaworld::cuda::bf16, 128, 2>", None),
    ("cuda", "st_attention backward, D 128, bf16", "st_attention::backward<colaworld::cuda::bf16, 128, 2>", None),
    ("cuda", "st_attention forward, LAM, float32", "st_attention_float::forward<16>", 16 * _N_LAM),
    ("cuda", "st_attention backward, LAM, float32", "st_attention_float::backward<16>", 28 * _N_LAM),
    ("cuda", "st_attention, sums of the weights", "colaworld::cuda::sum", None),
    ("cuda", "vector_quantize, 64 rows a block, float32", "assign<float, 4>", None),
    ("cuda", "vector_quantize, 128 rows a block, float32", "assign<float, 8>", None),
    ("cuda", "code_statistics, float32", "code_statistics_kernels::add<float, 1>", None),
    ("cuda", "code_statistics, merge", "code_statistics_kernels::merge<float>", None),
)  # fmt: skip
COPY = 4.3e12  # bytes a second expected of a copy on an H200, of the 4.8e12 it is sold with
READMES = {"triton": "kernels/README.md", "cuda": "csrc/README.md"}
OPEN = "<!-- resources: written by `python -m colaworld.benchmarks.resources --write` -->"
CLOSE = "<!-- end of resources -->"


def markdown(rows_: list[Row], impl: str) -> str:
    """The table of a README: what was compiled, and the time that its bytes alone take."""
    archs = sorted({row["arch"] for row in rows_ if row["impl"] == impl})
    registers = f"registers on sm_{' / '.join(map(str, archs))}"
    # What a CUDA kernel asks for when it is launched is not in the compiled code.
    columns = ["kernel", registers, "by its bytes"]
    columns[1:1] = ["warps"] if impl == "triton" else []
    columns[-1:-1] = ["shared memory"] if impl == "triton" else []
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for kind, name, part, moved in SHOWN:
        if kind != impl:
            continue
        found = {
            row["arch"]: row for row in rows_ if row["impl"] == impl and part in _full_name(row)
        }
        if set(found) != set(archs):
            raise ValueError(
                f"resources: {part!r}: expected a row on each of {archs}, got {sorted(found)}"
            )
        each = [found[arch] for arch in archs]
        warps = {row["config"].rsplit(", ", 1)[-1].removesuffix(" warps") for row in each}
        cells = {
            "kernel": name,
            "warps": ", ".join(sorted(warps)),
            registers: " / ".join(str(row["registers"]) for row in each),
            "shared memory": f"{max(row['shared'] for row in each) / 1024:.1f} kB",
            "by its bytes": "" if moved is None else f"{moved / COPY * 1e3:.3f} ms",
        }
        lines.append(f"| {' | '.join(cells[column] for column in columns)} |")
    return "\n".join(lines)


def _full_name(row: Row) -> str:
    return f"{row['kernel']} {row['config']}"


def with_table(text: str, table: str) -> str:
    """The text of a README with another table. ValueError where it has no place for one."""
    before, found, rest = text.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not found or not closed:
        raise ValueError(f"resources: a README needs the lines {OPEN!r} and {CLOSE!r}")
    return f"{before}{OPEN}\n{table}\n{CLOSE}{after}"


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
        for kind, name in READMES.items():
            file = RESULTS.parents[2] / name
            if file.is_file() and any(row["impl"] == kind for row in found):
                file.write_text(with_table(file.read_text(), markdown(found, kind)))
                print(f"written: {name}")
    wrong = complaints(found, json.loads(RESULTS.read_text()) if RESULTS.is_file() else [])
    for line in wrong:
        print(f"WRONG {line}")
    print(f"{len(found)} rows, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
